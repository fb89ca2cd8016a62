"""Tests of scripts/cycles on small workspaces."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from load import load

cycles = load("cycles")


class Cycles(unittest.TestCase):
    def found(self, files: dict[str, str]) -> list[str]:
        """Returns what is reported about a crate of these files, without indentation."""
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "Cargo.toml").write_text('[workspace]\nmembers = ["a"]\n')
            for path, text in files.items():
                file = root / "a/src" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            command = [sys.executable, str(cycles.ROOT / "scripts/cycles"), "--root", folder]
            run = subprocess.run(command, check=False, capture_output=True, text=True)
            self.assertEqual(run.stderr, "")
            self.assertEqual(run.returncode, 1 if run.stdout else 0)
            return [line.strip().replace("a/src/", "") for line in run.stdout.splitlines()]

    def assert_cycle(self, files: dict[str, str], between: str) -> None:
        with self.subTest(files=files):
            self.assertEqual(self.found(files)[:1], [f"import cycle between {between}"])

    def assert_none(self, files: dict[str, str]) -> None:
        with self.subTest(files=files):
            self.assertEqual(self.found(files), [])

    def test_a_cycle_is_reported_with_its_lines(self) -> None:
        files = {
            "lib.rs": "mod a;\nmod b;\nmod c;\n",
            "a.rs": "\nuse crate::b::B;\n",
            "b.rs": "use crate::a::A;\n",
            "c.rs": "use crate::a::A;\n",
        }
        self.assertEqual(
            self.found(files),
            [
                "import cycle between a.rs, b.rs",
                "a.rs:2: crate::b::B is in b.rs",
                "b.rs:1: crate::a::A is in a.rs",
            ],
        )

    def test_imports_in_one_direction_are_not_a_cycle(self) -> None:
        self.assert_none({
            "lib.rs": "mod a;\nmod b;\nuse a::A;\nuse std::fmt;\nuse other::{A as C};\n",
            "a.rs": "use crate::b::{self, B as C};\nuse super::b::*;\nuse redis::Client;\n",
            "b.rs": "struct B;\n",
        })

    def test_every_form_of_use_is_an_edge(self) -> None:
        for use in [
            "use crate::b::B;",
            "use crate::b;",
            "use crate::b::*;",
            "use super::b::B;",
            "use super::{c, b};",
            "use crate::{c::C, b::{self}};",
            "use crate::{\n    c::{C, D as E},\n    b::{B as F, G},\n};",
            "pub use crate::b::B;",
            "pub(crate) use super::b::B as _;",
            "fn f() {\n    use crate::b::B;\n}",
            "mod inner {\n    use super::super::b::B;\n}",
        ]:
            files = {"lib.rs": "mod a;\nmod b;\nmod c;\n", "a.rs": use, "b.rs": "use crate::a::A;\n", "c.rs": ""}
            self.assert_cycle(files, "a.rs, b.rs")

    def test_every_form_of_path_is_an_edge(self) -> None:
        for code in [
            "fn f() { crate::b::f() }",
            "fn f() -> super::b::B { todo!() }",
            "fn f() -> Vec<crate::b::B> { todo!() }",
            "impl crate::b::B for A {}",
            "fn f(c: char) -> bool { c == '\"' || crate::b::f() }",
            "#[cfg(test)]\nmod tests {\n    const A: char = '{';\n}\nfn f() { crate::b::f() }",
            "#[cfg(test)]\nuse std::{a, b};\nfn f() { crate::b::f() }",
        ]:
            files = {"lib.rs": "mod a;\nmod b;\n", "a.rs": code, "b.rs": "use crate::a::A;\n"}
            self.assert_cycle(files, "a.rs, b.rs")

    def test_comments_strings_and_tests_are_not_edges(self) -> None:
        for code in [
            "// crate::b::f\n",
            "/* /* */ use crate::b::B; */\n",
            "//! [`crate::b::B`]\n",
            'const A: &str = "crate::b::B";\nconst B: &str = r#"" crate::b::B"#;\n',
            "#[cfg(test)]\nmod tests {\n    use crate::b::B;\n    fn f() { if true { crate::b::f() } }\n}\n",
            "#[cfg(test)]\nuse crate::b::{B, C};\n",
            "#[cfg(test)]\n#[allow(dead_code)]\nfn f() -> crate::b::B { crate::b::f() }\n",
            "#[cfg(test)]\nmod tests;\n",
            "pub(in crate::b) struct A;\n",
            "fn f() { other::crate_::b::f() }\n",
        ]:
            self.assert_none({
                "lib.rs": "mod a;\nmod b;\n",
                "a.rs": code,
                "a/tests.rs": "use crate::b::B;\n",
                "b.rs": "use crate::a::A;\n",
            })

    def test_a_parent_and_a_child_that_use_each_other_are_a_cycle(self) -> None:
        for parent in [
            "mod c;\nuse self::c::C;\n",
            "mod c;\nfn f() { c::f() }\n",
            "mod c;\npub use self::c::*;\n",
            "mod c;\npub use self::c::C;\nfn f(c: &C) {}\n",
        ]:
            files = {"lib.rs": "mod a;\n", "a/mod.rs": parent, "a/c.rs": "use super::A;\n"}
            self.assert_cycle(files, "a/c.rs, a/mod.rs")
            files = {"lib.rs": "mod a;\n", "a.rs": parent, "a/c.rs": "use crate::a::A;\n"}
            self.assert_cycle(files, "a.rs, a/c.rs")
            self.assert_cycle({"main.rs": parent.replace("self", "crate"), "c.rs": "use super::A;\n"}, "c.rs, main.rs")

    def test_a_declaration_and_a_reexport_are_not_uses_by_the_parent(self) -> None:
        for parent in ["mod c;\n", "mod c;\npub use self::c::C;\n", "mod c;\npub(crate) use c::{C, D};\n"]:
            self.assert_none({"lib.rs": "mod a;\n", "a/mod.rs": parent, "a/c.rs": "use super::A;\n"})

    def test_an_import_on_the_way_is_followed(self) -> None:
        facade = "mod c;\npub use self::c::C;\n"
        files = {"lib.rs": "mod a;\nmod b;\n", "a/mod.rs": facade, "a/c.rs": "use crate::b::B;\n"}
        self.assert_cycle({**files, "b.rs": "use crate::a::C;\n"}, "a/c.rs, b.rs")
        self.assert_cycle({**files, "b.rs": "use crate::a;\nfn f() { a::C::new() }\n"}, "a/c.rs, b.rs")
        self.assert_none({**files, "b.rs": "use crate::a::D;\n"})
        self.assert_none({
            "lib.rs": "mod a;\n",
            "a/mod.rs": "mod c;\nmod d;\nuse self::c::C;\npub use self::d::D;\n",
            "a/c.rs": "use super::D;\n",
            "a/d.rs": "",
        })

    def test_longer_cycles_and_binaries_are_found(self) -> None:
        self.assert_cycle(
            {
                "bin/x/main.rs": "mod a;\nmod b;\nmod c;\n",
                "bin/x/a.rs": "use crate::b::B;\n",
                "bin/x/b.rs": "use crate::c::C;\n",
                "bin/x/c.rs": "use crate::a::A;\n",
            },
            "bin/x/a.rs, bin/x/b.rs, bin/x/c.rs",
        )


if __name__ == "__main__":
    unittest.main()
