"""Tests of scripts/prose. Banned words are put together here, so that this file passes the check."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from load import load

prose = load("prose")

BAD = "no" + "body"
PHRASE = ("at", "wo" + "rk")


def lines_with_problems(path: str, source: str) -> list[int]:
    """Returns the line of each banned word in a file."""
    return [int(problem.split(":")[1]) for problem in prose.problems(list(prose.read(path, source)), [])]


def figures(files: dict[str, str]) -> dict[str, object]:
    """Measures these files. The key is that of the row."""
    pieces = [piece for path, source in files.items() for piece in prose.read(path, source)]
    return {figure.row.key: figure for figure in prose.measure(pieces, [])}


class BannedWords(unittest.TestCase):
    def check(self, path: str, source: str, *lines: int) -> None:
        with self.subTest(path=path, source=source):
            self.assertEqual(lines_with_problems(path, source), list(lines))

    def test_rust_comments_and_strings_are_checked(self) -> None:
        for source in [
            f"fn f() {{}}\n// {BAD} is here\n",
            f"fn f() {{}} \n/// {BAD.title()} is here\nfn g() {{}}\n",
            f"\n//! {BAD.upper()}.\n",
            f"fn f() {{}}\nfn g() {{}} // {BAD}\n",
            f"/* a /* b */\n{BAD} */\n",
            f'const A: &str = "a";\nconst B: &str = "{BAD}";\n',
            f'const A: &str = "a \\\n  {BAD}";\n',
            f'const A: &str = "a\n{BAD}\nb";\n',
            f'\nconst A: &str = "a\\n{BAD}";\n',
            f'\nconst A: &str = r#"a "quoted" {BAD}"#;\n',
            f'\nconst A: &[u8] = b"{BAD}";\n',
            f'\nconst A: &[u8] = br##"x"# {BAD}"##;\n',
            f"fn f(c: char) -> bool {{ c == '\"' }}\n// {BAD}\n",
            f"fn f(c: u8) -> bool {{ c == b'\\'' || c == b'\"' }}\n// {BAD}\n",
            f"fn f<'a>(x: &'a str) {{}}\n// it's {BAD}'s\n",
            f'const URL: &str = "https://example.org";\nconst A: &str = "{BAD}";\n',
        ]:
            self.check("a.rs", source, 2)

    def test_rust_code_is_not_checked(self) -> None:
        for source in [
            f"fn {BAD}() {{}}\n",
            f"fn f<'{BAD}>(x: &'{BAD} str) {{}}\n",
            f"fn f() {{ let {BAD} = '\"'; let x = {BAD}; let y = '\"'; }}\n",
            f'fn f() {{ let a = "//"; {BAD}(); }}\n',
            f'fn f() {{ let a = r#"""#; {BAD}(); let b = ""; }}\n',
            f"/* a /* b */ c */ fn {BAD}() {{}}\n",
            f'fn f() {{ let a = format!("{{{BAD}}} {{{BAD}:?}}"); }}\n',
            f"// Calls `{BAD}` and removes_{BAD}.\n",
        ]:
            self.check("a.rs", source)

    def test_a_phrase_is_found_across_lines(self) -> None:
        first, second = PHRASE
        self.check("a.rs", f"/// It is {first}\n/// {second} there.\n", 1)
        self.check("a.rs", f"//\n    // It is {first}\n    // {second} there.\n", 2)
        self.check("a.rs", f'const A: &str = "It is {first} \\\n    {second}";\n', 1)
        self.check("run.sh", f"# It is {first}\n# {second}.\n", 1)
        self.check("a.ts", f"/**\n * It is {first}\n * {second}.\n */\n", 2)
        self.check("a.md", f"It is {first}\n{second}.\n", 1)
        self.check("a.rs", f"let a = b; // It is {first}\nlet c = d; // {second}\n")
        self.check("a.md", f"It is {first} `x` {second}.\n")
        self.check("a.md", f"Look {first} {second}spaces.\n")

    def test_python_is_checked(self) -> None:
        self.check("a.py", f'"""A module\n\nfor {BAD}."""\n', 3)
        self.check("a.py", f"x = 1\ny = 2  # {BAD}\n", 2)
        self.check("a.py", f"x = 1\ny = '{BAD}'\n", 2)
        self.check("a.py", f'x = 1\ny = f"{{x}} is {BAD}"\n', 2)
        self.check("tool", f"#!/usr/bin/env python3\n# {BAD}\n", 2)
        self.check("a.py", f"{BAD} = '#'\nprint({BAD})\n")

    def test_typescript_is_checked(self) -> None:
        self.check("a.ts", f"const a = 1;\nconst b = '{BAD}';\n", 2)
        self.check("a.ts", f"const a = 1;\n/* {BAD} */\n", 2)
        self.check("a.ts", f"const a = `b\n{BAD} ${{c}}`;\n", 2)
        self.check("a.ts", f"const a = `b ${{c ? `${{d}} {BAD}` : {{}}}}`;\n", 1)
        self.check("a.ts", f"const a = /['\"`]/.test(b);\n// {BAD}\n", 2)
        self.check("a.ts", f"const a = b / c; // {BAD} / d\n", 1)
        self.check("a.ts", f"const a = `${{{BAD}({{}})}} https://b`; {BAD}();\n")

    def test_shell_and_make_are_checked(self) -> None:
        self.check("run.sh", f"a=1\necho \"it's {BAD}\"\n", 2)
        self.check("run", f"#!/usr/bin/env bash\necho # {BAD}\n", 2)
        self.check("Makefile", f"a: ## {BAD}\n\t@echo\n", 1)
        self.check("run.sh", f"echo ${{x#{BAD}}} $#{BAD} ${{#{BAD}}} a#{BAD}\n")
        self.check("run.sh", f"setpriv --reuid {BAD}\n")

    def test_other_formats_are_checked(self) -> None:
        self.check("a.yaml", f"a: 1\nb: {BAD} can\n", 2)
        self.check("a.yaml", f"a: >-\n  some text\n  for {BAD}\n", 3)
        self.check("a.yaml", f"a: 1 # {BAD}\n", 1)
        self.check("a.toml", f"a = 1\n# {BAD}\nb = '{BAD}'\n", 2, 3)
        self.check("a.html", f"<p>\n<!-- {BAD} -->\n{BAD}</p>", 2, 3)
        self.check(".gitignore", f"# {BAD}\n/target\n", 1)
        self.check("unknown.format", f"\n{BAD}\n", 2)

    def test_markdown_is_checked_except_in_backticks(self) -> None:
        self.check("a.md", f"# A\n\n| a | {BAD} |\n", 3)
        self.check("a.md", f"`{BAD}` ``{BAD}`` `a\n{BAD}`\n")
        self.check("a.md", f"```sh\n# {BAD}\n```\n\n`a` {BAD}\n", 2, 5)

    def test_every_word_has_advice(self) -> None:
        for phrase, advice in prose.ADVICE.items():
            problems = list(prose.problems(list(prose.read("a.md", phrase)), []))
            self.assertEqual(problems, [f'a.md:1: "{phrase}": {advice} instead'])


class Commits(unittest.TestCase):
    def test_a_subject_may_have_72_characters(self) -> None:
        commits = [("1111111", "x" * 72), ("2222222", "é" * 73)]
        (problem,) = prose.problems([], commits)
        self.assertRegex(problem, "^2222222: the subject has 73 characters, and the limit is 72: é+$")
        figure = prose.measure([], commits)[-1]
        self.assertEqual((figure.rate(), figure.hits), (50.0, [commits[1]]))

    def test_subjects_are_those_after_the_first_commit_without_merges(self) -> None:
        with tempfile.TemporaryDirectory() as folder:

            def git(*arguments: str) -> str:
                identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
                return subprocess.check_output(["git", *identity, *arguments], cwd=folder, text=True)

            self.assertIsNone(prose.subjects(Path(folder)))
            git("init", "-q", "-b", "main")
            git("commit", "-q", "--allow-empty", "-m", "first")
            self.assertIsNone(prose.subjects(Path(folder)))
            with mock.patch.object(prose, "FIRST_COMMIT", git("rev-parse", "HEAD").strip()):
                git("switch", "-q", "-c", "side")
                git("commit", "-q", "--allow-empty", "-m", "a: second\n\nBody.")
                git("switch", "-q", "main")
                git("merge", "-q", "--no-ff", "-m", "merge", "side")
                self.assertEqual([subject for _, subject in prose.subjects(Path(folder))], ["a: second"])


class Tree(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        for path, text in {
            ".gitignore": "/ignored.md\n",
            "ignored.md": BAD,
            "Cargo.lock": f"# {BAD}",
            "LICENSE-MIT": BAD,
            "fuzz/seeds/a/b": BAD,
            "docs/a.md": f"All is well.\n\nSo is {BAD}.\n",
            "image.png": "",
            "target/a.md": BAD,
        }.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text)
        (self.root / "image.png").write_bytes(b"\x89PNG\xff")

    def run_script(self, *arguments: str) -> tuple[int, list[str]]:
        command = [sys.executable, str(prose.ROOT / "scripts/prose"), "--root", str(self.root), *arguments]
        run = subprocess.run(command, check=False, capture_output=True, text=True)
        self.assertEqual(run.stderr, "")
        return run.returncode, run.stdout.splitlines()

    def test_untracked_files_are_checked_and_ignored_ones_are_not(self) -> None:
        subprocess.run(["git", "init", "-q"], cwd=self.root, check=True)
        (self.root / ".gitignore").write_text("/ignored.md\n/target\n")
        self.assertEqual(list(prose.files(self.root)), [".gitignore", "docs/a.md", "image.png"])

    def test_a_tree_without_git_is_checked(self) -> None:
        (self.root / "ignored.md").unlink()
        status, output = self.run_script()
        self.assertEqual(status, 1)
        self.assertRegex(output[0], "^NOT CHECKED: commit subjects")
        self.assertRegex("\n".join(output[1:]), rf'^docs/a\.md:3: "{BAD}": .* instead$')
        (self.root / "docs/a.md").write_text("All is well.\n")
        self.assertEqual(self.run_script()[0], 0)

    def test_a_report_fails_if_a_figure_reaches_its_limit(self) -> None:
        (self.root / "ignored.md").unlink()
        status, output = self.run_script("--report", "--quiet")
        self.assertEqual((status, len(output)), (1, 1))
        self.assertRegex(output[0], rf"^{BAD}.* 1 .* per 10,000 words  must be below 2  OVER$")
        self.assertEqual(self.run_script("--lines", "indefinite")[1][-1].strip(), f"docs/a.md:3: So is {BAD}.")
        self.assertIn("        1  docs/a.md", self.run_script("--by-file")[1])
        (self.root / "docs/a.md").write_text("All is well.\n")
        self.assertEqual(self.run_script("--report", "--quiet"), (0, []))


class Report(unittest.TestCase):
    def test_rates_are_per_word_of_comments_and_markdown(self) -> None:
        measured = figures({
            "a.rs": 'fn f() {} // one two where\nconst A: &str = "where where";\n/// Returns `where`, it.\n',
            "a.md": "It's where.\n\n```\nwhere\n```\n",
            "a.py": '"""Docstring."""\nx = "where"\n',
        })
        self.assertEqual(measured["where"].total, 8)
        self.assertEqual([place for place, _ in measured["where"].hits], ["a.rs:1", "a.md:1"])
        self.assertEqual(measured["where"].rate(), 2_500)
        self.assertEqual(len(measured["contractions"].hits), 1)

    def test_openers_are_per_rustdoc_comment(self) -> None:
        measured = figures({
            "a.rs": "//! What it is.\n//! How it works.\n\n/// Returns it.\n/// Why?\nfn f() {}\n\n// How\n"
            "/** Whether it is. */\nfn g() {}\n/// `None` where it isn't.\nfn h() {}\n/// However.\nfn i() {}\n"
        })["openers"]
        self.assertEqual([place for place, _ in measured.hits], ["a.rs:1", "a.rs:9"])
        self.assertEqual((measured.total, measured.rate()), (5, 40.0))

    def test_semicolons_are_per_word_of_markdown(self) -> None:
        measured = figures({"a.md": "One; two&nbsp;three `a;b`.\n", "a.rs": "// a; b; c\n"})["semicolons"]
        self.assertEqual((len(measured.hits), measured.total), (1, 3))

    def test_is_no_longer_and_is_not_do_not_count(self) -> None:
        text = "It is no list. There\nare no lists. It was none. It is no longer. It is not. It is nothing. No one is."
        self.assertEqual(len(figures({"a.md": text})["negative"].hits), 3)

    def test_a_figure_at_its_limit_is_over(self) -> None:
        row = next(row for row in prose.ROWS if row.key == "where")
        self.assertTrue(prose.Figure(row, [("a", "")] * 15, 10_000).is_over())
        self.assertFalse(prose.Figure(row, [("a", "")] * 15, 10_001).is_over())
        self.assertFalse(prose.Figure(row, [], 0).is_over())
        self.assertFalse(prose.Figure(row._replace(limit=None), [("a", "")], 1).is_over())


if __name__ == "__main__":
    unittest.main()
