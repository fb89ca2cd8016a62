"""Tests of scripts/release on a small repository with made-up functions."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

from load import load

release = load("release")

TRACKED = {
    "Cargo.toml": '[workspace]\nmembers = []\n\n[workspace.package]\nedition = "2024"\nversion = "1.2.3"\n',
    "README.md": "# A bridge\n",
    "LICENSE-MIT": "MIT\n",
    "docs/operations.md": "# Operations\n",
    "docs/growth.svg": "<svg/>\n",
    "ops/novi_root.py": "ROOT = 1\n",
    "ops/novi_bridge/__init__.py": "",
    "ops/novi_bridge/cli.py": "import novi_root\n",
    "ops/novi_bridge/prices.json": "{}\n",
    "ops/mappings.example.json": "{}\n",
    # Not for operators.
    "ops/sbom.py": "",
    "ops/requirements.txt": "",
    "ops/requirements-deploy.txt": "",
    "ops/tests/test_cli.py": "",
    "tests/requirements.txt": "",
    ".gitignore": "/target\n",
}
EXPECTED = {
    "README.md", "LICENSE-MIT", "docs/operations.md", "docs/growth.svg", "novi-bridge", "novi_root.py",
    "mappings.example.json", "novi_bridge/__init__.py", "novi_bridge/cli.py", "novi_bridge/prices.json",
    "template.yaml", "template-x86_64.yaml", "functions/arm64/verify/bootstrap", "functions/arm64/mirror/bootstrap",
    "functions/x86_64/verify/bootstrap", "functions/x86_64/mirror/bootstrap", "sbom/verify.cdx.json",
    "sbom/mirror.cdx.json", "VERSION", "SHA256SUMS",
}
GIT = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
TIME = 1_750_000_001  # 2025-06-15T15:06:41Z
EXECUTABLES = {"novi-bridge", *(path for path in EXPECTED if path.startswith("functions/"))}


def git(root: Path, *arguments: str, **environment: str) -> None:
    subprocess.run(
        [*GIT, *arguments], cwd=root, check=True, timeout=60, capture_output=True, env=os.environ | environment
    )


def write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def made_up(name: str, function: str) -> bytes:
    """Returns what passes for a function: the start of an ELF header."""
    machine = release.ARCHITECTURES[name].machine
    return b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little") + f"{name} {function}".encode()


def create_checkout(root: Path) -> None:
    """Creates a committed checkout, and the outputs of a build in it."""
    write(root, TRACKED)
    write(root, {"ops/novi-bridge": "#!/usr/bin/env python3\nimport novi_bridge.cli\n"})
    shutil.copy(release.ROOT / "template.yaml", root)
    (root / "scripts").mkdir()
    shutil.copy(release.ROOT / "scripts/release", root / "scripts")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    dates = {"GIT_AUTHOR_DATE": f"{TIME} +0200", "GIT_COMMITTER_DATE": f"{TIME} +0200"}
    git(root, "commit", "--quiet", "--message", "Add a bridge", **dates)
    for name in release.ARCHITECTURES:
        for function in ("verify", "mirror"):
            path = root / "target/functions" / name / function / "bootstrap"
            path.parent.mkdir(parents=True)
            path.write_bytes(made_up(name, function))
    write(root, {f"target/sbom/{function}.cdx.json": "{}\n" for function in ("verify", "mirror")})


class Release(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.original = Path(folder.name)
        create_checkout(cls.original)

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name, "checkout")
        shutil.copytree(self.original, self.root)

    def release(self, *arguments: str, root: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs the checkout's script on what was built there."""
        root = root or self.root
        command = [sys.executable, root / "scripts/release", "--functions", root / "target/functions", *arguments]
        return subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)

    def bundle(self, *arguments: str, root: Path | None = None, version: str = "1.2.3") -> Path:
        """Makes a bundle, and returns its path."""
        run = self.release(*arguments, root=root)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        return (root or self.root) / f"target/release-bundle/novi-bridge-{version}.zip"

    def files(self, path: Path) -> dict[str, bytes]:
        """Returns the files of a bundle by their paths in its only folder."""
        with zipfile.ZipFile(path) as archive:
            folder = f"{path.stem}/"
            self.assertEqual({name[:len(folder)] for name in archive.namelist()}, {folder})
            return {name[len(folder):]: archive.read(name) for name in archive.namelist()}

    def assert_refused(self, expected: str, *arguments: str) -> None:
        run = self.release(*arguments)
        self.assertEqual(run.returncode, 1, run.stdout)
        self.assertRegex(run.stderr, f"^make release: .*{expected}")
        self.assertFalse((self.root / "target/release-bundle").exists())

    def test_the_same_commit_gives_the_same_bytes_in_another_folder_later_and_with_another_umask(self) -> None:
        first = self.bundle()
        clone = self.root.parent / "elsewhere/clone"
        git(self.root, "clone", "--quiet", str(self.root), str(clone))
        for folder in ("functions", "sbom"):
            shutil.copytree(self.root / "target" / folder, clone / "target" / folder)
        for path in clone.rglob("*"):
            os.utime(path, (0, 0))
            if path.is_file():
                path.chmod(0o600)
        # git tracks the mode of an executable. Without this, the clone would be dirty.
        git(clone, "config", "core.fileMode", "false")
        previous = os.umask(0o077)
        try:
            second = self.bundle(root=clone)
        finally:
            os.umask(previous)
        self.assertEqual(first.read_bytes(), second.read_bytes())

    def test_a_bundle_contains_what_a_deployment_needs_and_nothing_else(self) -> None:
        files = self.files(self.bundle())
        self.assertEqual(set(files), EXPECTED)
        self.assertEqual(files["VERSION"], b"1.2.3\n")
        for name in release.ARCHITECTURES:
            for function in ("verify", "mirror"):
                self.assertEqual(files[f"functions/{name}/{function}/bootstrap"], made_up(name, function))

    def test_digests_cover_every_file_and_the_zip(self) -> None:
        path = self.bundle()
        files = self.files(path)
        sums = files.pop("SHA256SUMS").decode()
        expected = [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in sorted(files.items())]
        self.assertEqual(sums.splitlines(), expected)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.assertEqual(path.with_name(f"{path.name}.sha256").read_text(), f"{digest}  {path.name}\n")

    def test_each_template_has_the_code_of_its_architecture(self) -> None:
        files = self.files(self.bundle())
        original = (release.ROOT / "template.yaml").read_text().splitlines()
        for name, template in (("arm64", "template.yaml"), ("x86_64", "template-x86_64.yaml")):
            lines = zip(original, files[template].decode().splitlines(), strict=True)
            changed = [(before.strip(), after.strip()) for before, after in lines if before != after]
            code = [("CodeUri: .", f"CodeUri: functions/{name}/{function}") for function in ("verify", "mirror")]
            default = [("Default: arm64", "Default: x86_64")] if name == "x86_64" else []
            self.assertEqual(changed, [*default, *code])

    def test_modes_and_times_are_fixed(self) -> None:
        with zipfile.ZipFile(self.bundle()) as archive:
            for entry in archive.infolist():
                name = entry.filename.partition("/")[2]
                expected = 0o100755 if name in EXECUTABLES else 0o100644
                self.assertEqual((entry.create_system, oct(entry.external_attr >> 16)), (3, oct(expected)), name)
                self.assertEqual(entry.date_time, (2025, 6, 15, 15, 6, 40), name)
            self.assertEqual(archive.namelist(), sorted(archive.namelist()))

    @unittest.skipUnless(shutil.which("unzip"), "unzip is not installed")
    def test_unzip_sets_the_modes(self) -> None:
        command = ["unzip", "-q", str(self.bundle()), "-d", str(self.root.parent)]
        subprocess.run(command, check=True, timeout=60)
        folder = self.root.parent / "novi-bridge-1.2.3"
        files = [path for path in folder.rglob("*") if path.is_file()]
        found = {path.relative_to(folder).as_posix() for path in files if path.stat().st_mode & 0o100}
        self.assertEqual(found, EXECUTABLES)

    def test_a_change_that_is_not_committed_is_refused_or_marked(self) -> None:
        for path in ("README.md", "ops/novi_bridge/new.py"):
            with self.subTest(path=path):
                write(self.root, {path: "changed\n"})
                self.assert_refused("differs from the commit")
                git(self.root, "add", ".")
                git(self.root, "commit", "--quiet", "--message", "Change")
        write(self.root, {"README.md": "changed again\n"})
        files = self.files(self.bundle("--allow-dirty", version="1.2.3-dirty"))
        self.assertEqual(files["README.md"], b"changed again\n")
        self.assertEqual(files["VERSION"], b"1.2.3-dirty\n")

    def test_what_is_not_tracked_stays_out(self) -> None:
        write(self.root, {".git/info/exclude": "*.json\n", "docs/private.json": "{}\n"})
        self.assertEqual(set(self.files(self.bundle())), EXPECTED)

    def test_a_function_that_is_missing_or_wrong_is_refused(self) -> None:
        function = self.root / "target/functions/arm64/mirror/bootstrap"
        home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
        for content, expected in (
            (None, "is missing"),
            (b"#!/bin/sh\n", "is not a program for arm64"),
            (made_up("x86_64", "mirror"), "is not a program for arm64"),
            (made_up("arm64", "mirror") + f"{self.root}/shared/src/lib.rs".encode(), "contains the path"),
            (made_up("arm64", "mirror") + f"{home}/registry/src/a/lib.rs".encode(), "contains the path"),
        ):
            with self.subTest(expected=expected):
                function.unlink(missing_ok=True)
                if content is not None:
                    function.write_bytes(content)
                self.assert_refused(expected)

    def test_one_architecture_can_be_built_and_sboms_left_out(self) -> None:
        shutil.rmtree(self.root / "target/functions/arm64")
        shutil.rmtree(self.root / "target/sbom")
        self.assert_refused("arm64/verify/bootstrap is missing")
        self.assert_refused("sbom/verify.cdx.json is missing", "--architecture", "x86_64")
        left_out = {path for path in EXPECTED if "arm64" in path or "sbom" in path} | {"template.yaml"}
        files = self.files(self.bundle("--architecture", "x86_64", "--no-sbom"))
        self.assertEqual(set(files), EXPECTED - left_out)

    def test_a_bundle_that_is_too_large_for_cloudshell_is_refused(self) -> None:
        with (self.root / "target/functions/x86_64/verify/bootstrap").open("ab") as file:
            file.truncate(release.MAX_BYTES)
        self.assert_refused("and the limit is 100,000,000")

    def test_a_tag_must_name_the_version(self) -> None:
        self.assertEqual(self.release("--check-tag", "v1.2.3").returncode, 0)
        for tag in ("v1.2.4", "1.2.3", "v1.2.3-rc1", ""):
            self.assert_refused(r"expected the tag v1\.2\.3", "--check-tag", tag)

    def test_a_template_that_is_not_understood_is_refused(self) -> None:
        template = (self.root / "template.yaml").read_text()
        for line, expected in (
            ("      CodeUri: .\n", "expected one `CodeUri: .` in Verify, found 0"),
            ("    Default: arm64\n", "expected a parameter Architecture"),
        ):
            with self.subTest(line=line):
                self.assertIn(line, template)
                with self.assertRaisesRegex(release.Failed, expected):
                    release.template(template.replace(line, "", 1), "arm64")


class BuildEnvironment(unittest.TestCase):
    def test_the_callers_compilers_and_flags_do_not_change_the_binaries(self) -> None:
        dropped = [
            "RUSTFLAGS", "RUSTC_WRAPPER", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS",
            "CARGO_PROFILE_RELEASE_LTO", "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", "CARGO_LAMBDA_COMPILER",
            "AWS_LC_SYS_NO_ASM", "CC", "CFLAGS", "CC_x86_64_unknown_linux_gnu", "TARGET_CC", "HOST_CFLAGS",
        ]
        kept = ["PATH", "HOME", "CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_HTTP_PROXY", "AWS_PROFILE", "CCACHE_DIR"]
        for name in dropped:
            self.assertTrue(release.BUILD_VARIABLES.match(name), name)
        for name in kept:
            self.assertFalse(release.BUILD_VARIABLES.match(name), name)
