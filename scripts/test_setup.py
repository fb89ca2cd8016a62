"""Tests of what `make` installs for operators, with a PATH that has little else than Python."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What every Unix has, macOS included. Neither setpriv, nor apt-get, nor a compiler, nor cargo.
PROGRAMS = ["bash", "make", "sh", "env", "dirname", "cat", "mkdir", "rm", "id", "grep", "sed", "expand"]
COPIED = ["Makefile", "scripts/setup", "ops/requirements.txt", "ops/requirements-deploy.txt", "tests/requirements.txt"]
# The commands of operators that need only the AWS CLI.
TARGETS = ["parameters", "status", "doctor", "probe", "invoke-mirror", "stop", "start", "remove"]

# A Python that creates virtual environments with an `aws`, in which `pip install` only notes what it should install.
PYTHON = """\
#!{python}
import os, pathlib, sys
if sys.argv[1:3] == ["-m", "venv"]:
    bin = pathlib.Path(sys.argv[3], "bin")
    bin.mkdir(parents=True)
    log = pathlib.Path("installed")
    (bin / "pip").write_text("#!/bin/sh\\necho \\"$@\\" >>" + str(log.resolve()) + "\\n")
    (bin / "aws").write_text("#!/bin/sh\\n")
    for program in bin.iterdir():
        program.chmod(0o755)
elif sys.argv[1] == "--version":
    print("Python {version}")
elif "version_info" in sys.argv[2]:
    sys.exit({version!r} == "3.9.6")
else:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""
# Prints which AWS CLI it would call.
COMMAND = "#!/bin/sh\necho \"$1 calls $(command -v aws)\"\n"


class Setup(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.bin, self.root = Path(folder.name, "bin"), Path(folder.name, "checkout")
        self.bin.mkdir()
        for name in PROGRAMS:
            program = shutil.which(name)
            assert program, f"{name} is missing"
            (self.bin / name).symlink_to(program)
        for path in COPIED:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, self.root / path)
        self.write(self.root / "ops/novi-bridge", COMMAND)
        # Shorter, because setup sleeps between the dots of its progress.
        self.write(self.bin / "sleep", f"#!/bin/sh\nexec {shutil.which('sleep')} 0.1\n")
        self.python("3.12.1")

    def write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def python(self, version: str) -> None:
        self.write(self.bin / "python3", PYTHON.format(python=sys.executable, version=version))

    def run_command(self, *command: str) -> subprocess.CompletedProcess[str]:
        # Not a Python outside PATH.
        environment = {"PATH": str(self.bin), "HOME": str(self.root), "PYTHON": "python3"}
        return subprocess.run(
            command, cwd=self.root, env=environment, check=False, timeout=60, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )

    def make(self, *arguments: str) -> list[str]:
        """Runs make, which must succeed, and returns the lines that it prints."""
        run = self.run_command("make", *arguments)
        self.assertEqual((run.returncode, run.stderr), (0, ""), run.stdout)
        return run.stdout.splitlines()

    def installed(self) -> list[str]:
        """Returns the file of requirements of each installation."""
        log = self.root / "installed"
        return [line.split()[-1] for line in log.read_text().splitlines()] if log.exists() else []

    def test_operators_need_only_python_and_an_aws_cli(self) -> None:
        self.write(self.bin / "aws", "#!/bin/sh\n")
        for target in TARGETS:
            with self.subTest(target=target):
                command = "run" if target == "invoke-mirror" else target
                self.assertEqual(self.make(target), [f"{command} calls {self.bin}/aws"])
        self.assertEqual(self.installed(), [])

    def test_without_an_aws_cli_only_that_is_installed_and_only_once(self) -> None:
        first, second = self.make("probe"), self.make("stop")
        self.assertIn("Installing the AWS CLI into ops/.venv", first[0])
        self.assertEqual(first[-1], f"probe calls {self.root}/ops/.venv/bin/aws")
        self.assertEqual(second, [f"stop calls {self.root}/ops/.venv/bin/aws"])
        self.assertEqual(self.installed(), ["ops/requirements.txt"])

    def test_the_aws_cli_of_developers_is_used(self) -> None:
        folder = self.root / ".venv/bin"
        folder.mkdir(parents=True)
        self.write(folder / "aws", "#!/bin/sh\n")
        (self.root / ".venv/.requirements").write_text("anything\n")
        self.assertEqual(self.make("probe"), [f"probe calls {folder}/aws"])

    def test_an_installation_that_was_interrupted_is_repeated(self) -> None:
        self.make("probe")
        (self.root / "ops/.venv/.requirements").unlink()
        self.make("probe")
        self.assertEqual(self.installed(), ["ops/requirements.txt"] * 2)

    def test_a_python_that_is_too_old_to_install_the_aws_cli_is_reported(self) -> None:
        self.python("3.9.6")
        run = self.run_command("make", "probe")
        self.assertNotEqual(run.returncode, 0)
        self.assertIn("needs Python 3.10 or newer, and this is Python 3.9.6", run.stderr)
        self.assertIn("https://docs.aws.amazon.com/cli/", run.stderr)

    def test_deploying_from_a_checkout_needs_rust_and_pinned_tools_but_not_those_of_the_tests(self) -> None:
        self.write(self.bin / "aws", "#!/bin/sh\n")
        run = self.run_command("scripts/setup", "deploy")
        self.assertIn("Rust is missing", run.stderr)
        for name in ("cargo", "cc"):
            self.write(self.bin / name, "#!/bin/sh\n")
        for _ in range(2):
            run = self.run_command("scripts/setup", "deploy")
            self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertEqual(self.installed(), ["ops/requirements-deploy.txt"])
        # A new version of a tool.
        with (self.root / "ops/requirements.txt").open("a") as file:
            file.write("awscli==99.0.0\n")
        self.run_command("scripts/setup", "deploy")
        self.assertEqual(self.installed(), ["ops/requirements-deploy.txt"] * 2)

    def test_developers_do_not_install_the_tools_to_deploy_a_second_time(self) -> None:
        for name in ("cargo", "cc", "setpriv", "unshare"):
            self.write(self.bin / name, "#!/bin/sh\n")
        for arguments in ([], ["deploy"], ["deploy", "aws"]):
            run = self.run_command("scripts/setup", *arguments)
            self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertEqual(self.installed(), ["tests/requirements.txt"])

    def test_setup_runs_with_the_bash_of_macos(self) -> None:
        """Version 3.2, which few machines have to test with."""
        text = (ROOT / "scripts/setup").read_text()
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        for newer in (
            r"(declare|local) -[An]", r"\bmapfile\b", r"\breadarray\b", r"\$\{\w+(\^|,|@)", r"\|&", r"&>>",
            r"\bcoproc\b", r"wait -n", r"\[\[ -v", r"printf '%\(",
        ):
            self.assertNotRegex(code, newer)


if __name__ == "__main__":
    unittest.main()
