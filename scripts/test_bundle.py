"""Tests of this checkout's release bundle as an administrator uses it, unzipped on a machine that has hardly anything.

The functions in it are made up. `make test-sam` runs real ones from a bundle.
"""

import ast
import contextlib
import glob
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path

from load import load
from test_release import made_up

release = load("release")
sys.path.insert(0, str(release.ROOT / "ops"))

from tests.world import REPORT, World  # noqa: E402 (only now on the path)

# Stands for each CLI, with the fake cloud of the command's tests.
STUB = """\
#!/usr/bin/python3
import sys
sys.path.insert(0, "/home/fakes")
import fakes
fakes.{program}(sys.argv[1:])
"""
# What came with later versions of Python, and doesn't show as a syntax error.
NEWER_MODULES = {"tomllib", "annotationlib", "compression"}
NEWER_NAMES = {
    "pairwise", "batched", "StrEnum", "file_digest", "UTC", "chdir", "aclosing", "TaskGroup", "ExceptionGroup", "Self",
    "assert_never", "TypeAlias", "ParamSpec", "NotRequired", "override", "add_note", "hardlink_to", "bit_count",
}
NEWER_KEYWORDS = {"slots", "kw_only", "strict", "root_dir", "walk_up", "delete_on_close"}


def python_39() -> str | None:
    """Returns a Python 3.9, which AWS CloudShell and macOS have."""
    versions = f"{os.environ.get('PYENV_ROOT', os.path.expanduser('~/.pyenv'))}/versions"
    for candidate in (shutil.which("python3.9"), *glob.glob(f"{versions}/3.9.*/bin/python3.9")):
        # The one on PATH may be a shim of a version that isn't active.
        if candidate and not subprocess.run([candidate, "-V"], check=False, capture_output=True, timeout=60).returncode:
            return candidate
    return None


def write_bundle(folder: Path) -> Path:
    """Makes the bundle of this checkout with made-up functions, and unzips it. Returns its folder."""
    for name in release.ARCHITECTURES:
        for function in release.FUNCTIONS.values():
            path = folder / "functions" / name / function / "bootstrap"
            path.parent.mkdir(parents=True)
            path.write_bytes(made_up(name, function))
    with contextlib.redirect_stdout(io.StringIO()):
        path = release.release(
            release.ROOT, folder, folder / "functions", list(release.ARCHITECTURES), None, allow_dirty=True
        )
    return release.unzip(path, folder)


class Machine:
    """A file system that contains only Python, `env`, what both are linked with, the stubs, and the bundle."""

    def __init__(self, root: Path, bundle: Path, python: str) -> None:
        self.root = root
        described = subprocess.run(
            [python, "-c", "import sys, sysconfig; print(sys._base_executable, sysconfig.get_path('stdlib'), "
             "sysconfig.get_path('platstdlib'), sep='\\n')"],
            check=True, timeout=60, stdout=subprocess.PIPE, text=True,
        ).stdout.split("\n")
        executable = Path(described[0]).resolve()
        env = Path(shutil.which("env") or "")
        ignored = shutil.ignore_patterns("site-packages", "dist-packages", "test", "__pycache__", "config-*", "idlelib")
        for folder in {described[1], described[2]}:
            shutil.copytree(folder, self.at(folder), ignore=ignored, dirs_exist_ok=True)
        modules = [str(path) for path in Path(described[2], "lib-dynload").glob("*.so")]
        self.copy(executable)
        self.copy(env, "/usr/bin/env")
        for library in self.libraries(str(executable), str(env), *modules):
            self.copy(Path(library))
        if not self.at("/usr/bin/python3").exists():
            self.at("/usr/bin/python3").symlink_to(executable)
        for path in ("/tmp", "/dev", "/home"):
            self.at(path).mkdir(parents=True, exist_ok=True)
        # A device can't be created in a user namespace. What is written to a file of this name does no harm.
        self.at("/dev/null").touch()
        for program in ("aws", "sam"):
            self.at(f"/usr/bin/{program}").write_text(STUB.format(program=program))
            self.at(f"/usr/bin/{program}").chmod(0o755)
        self.at("/home/cloud").mkdir()
        self.copy(release.ROOT / "ops/tests/fakes.py", "/home/fakes/fakes.py")
        shutil.copytree(bundle, self.at("/home/bundle"))

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def copy(self, source: Path, path: str = "") -> None:
        destination = self.at(path or str(source))
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, destination)

    @staticmethod
    def libraries(*programs: str) -> set[str]:
        linked = subprocess.run(["ldd", *programs], check=False, timeout=60, capture_output=True, text=True).stdout
        return set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", linked, re.MULTILINE))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the folder of the bundle."""
        unshare = [shutil.which("unshare") or "", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        environment = {
            "PATH": "/usr/bin", "HOME": "/home", "AWS_REGION": "us-east-1", "FAKE_CLOUD": "/home/cloud",
            # Proxies of this machine are for the real cloud.
            "NO_PROXY": "*",
        }
        return subprocess.run(
            [*unshare, "--root", str(self.root), "--wd", "/home/bundle", *command], env=environment, check=False,
            timeout=120, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )


class Bundle(unittest.TestCase):
    """What needs no machine of its own."""

    def modules(self) -> Iterator[tuple[str, ast.Module]]:
        """Yields the command's modules, parsed as Python 3.9."""
        for path, file in release.command_files(release.ROOT):
            if path.endswith(".py") or path == "novi-bridge":
                yield path, ast.parse(file.content, path, feature_version=(3, 9))

    def test_the_command_uses_nothing_newer_than_python_39(self) -> None:
        for path, module in self.modules():
            postponed = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in module.body)
            found = []
            for node in ast.walk(module):
                if isinstance(node, ast.Import):
                    found += NEWER_MODULES.intersection(alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    found += NEWER_NAMES.intersection(alias.name for alias in node.names)
                    found += NEWER_MODULES.intersection([node.module])
                elif isinstance(node, ast.Attribute):
                    found += NEWER_NAMES.intersection([node.attr])
                elif isinstance(node, ast.keyword):
                    found += NEWER_KEYWORDS.intersection([node.arg])
                elif isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation and not postponed:
                    # Such as `str | None`.
                    found += [ast.unparse(part) for part in ast.walk(node.annotation) if isinstance(part, ast.BinOp)]
            self.assertEqual(found, [], path)

    def test_the_command_imports_only_the_standard_library_and_what_is_in_the_bundle(self) -> None:
        files = {path for path, _ in release.command_files(release.ROOT)}
        own = {"novi_bridge", *(path[:-len(".py")] for path in files if "/" not in path and path.endswith(".py"))}
        for path, module in self.modules():
            for node in ast.walk(module):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    self.assertEqual(node.level, 0, "expected absolute imports")
                    names = [str(node.module)]
                for name in names:
                    self.assertTrue(name.split(".")[0] in sys.stdlib_module_names | own, f"{path} imports {name}")


@unittest.skipUnless(sys.platform == "linux" and shutil.which("unshare"), "needs a Linux with unshare")
class EmptyMachine(World):
    """The bundle on a machine that has only Python 3.9, and both CLIs as fakes."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        bundle = write_bundle(Path(folder.name, "made"))
        cls.version = bundle.name[len("novi-bridge-"):]
        cls.python = python_39()
        cls.machine = Machine(Path(folder.name, "root"), bundle, cls.python or sys.executable)
        run = cls.machine.run("python3", "--version")
        if run.returncode:
            raise unittest.SkipTest(f"this user can't change the root folder: {run.stderr}")

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.machine.at("/home/cloud")

    def run_command(self, *arguments: str) -> str:
        """Runs the command, which must succeed, and returns what it prints."""
        self.write_cloud()
        run = self.machine.run("./novi-bridge", *arguments)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.read_cloud()
        return run.stdout

    def test_the_machine_has_only_python_and_the_fakes(self) -> None:
        programs = {path.name for path in self.machine.at("/usr/bin").iterdir()}
        self.assertEqual(programs - {Path(sys.executable).resolve().name}, {"env", "python3", "aws", "sam"})
        for absent in ("cargo", "git", "/bin/sh"):
            self.assertNotEqual(self.machine.run(absent).returncode, 0)
        version = self.machine.run("python3", "--version").stdout
        self.assertIn("Python 3.9" if self.python else "Python 3", version)

    def test_the_command_names_its_version(self) -> None:
        self.assertEqual(self.run_command("--version"), f"novi-bridge {self.version}\n")

    def test_every_module_can_be_imported(self) -> None:
        paths = [path[:-len(".py")] for path, _ in release.command_files(release.ROOT) if path.endswith(".py")]
        modules = [path.replace("/", ".").replace(".__init__", "") for path in paths]
        run = self.machine.run("python3", "-c", "".join(f"import {module}\n" for module in modules))
        self.assertEqual((run.returncode, run.stderr), (0, ""))

    def test_each_architecture_is_deployed_without_a_build(self) -> None:
        for name, architecture in release.ARCHITECTURES.items():
            with self.subTest(architecture=name):
                self.cloud["stacks"], self.cloud["results"] = [], [REPORT]
                self.run_command("deploy", "--yes", "--set", "Cache=none", "--set", f"Architecture={name}")
                [call] = self.calls_of("sam")
                template = Path("/home/bundle", architecture.template)
                self.assertEqual(call[1:4], ["deploy", "--template-file", str(template)])
                self.assertIn(f'Architecture="{name}"', call)
                folders = re.findall(r"^      CodeUri: (.*)$", self.machine.at(str(template)).read_text(), re.MULTILINE)
                self.assertEqual(folders, [f"functions/{name}/verify", f"functions/{name}/mirror"])
                for folder in folders:
                    self.assertTrue(self.machine.at(f"/home/bundle/{folder}/bootstrap").is_file())

    def test_a_stack_is_operated(self) -> None:
        self.add_stack()
        self.assertIn("UPDATE_COMPLETE", self.run_command("status"))
        self.run_command("stop")
        self.assertEqual(self.cloud["concurrency"], {"novi-bridge-mirror": 0})
        self.run_command("start")
        self.run_command("run", "--dry-run")
        self.run_command("deploy", "--yes", "--set", "LogLevel=DEBUG")
        self.assertEqual((self.stack()["Parameters"]["LogLevel"], self.calls_of("sam")), ("DEBUG", []))


if __name__ == "__main__":
    unittest.main()
