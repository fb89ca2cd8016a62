"""Finds the prose in a source file: its comments, its string literals and, in Markdown, its text.

The scanners are small on purpose. They know as much of each language as it takes to tell a comment from a string and
both from code, and they don't parse anything else.
"""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import PurePath
from typing import NamedTuple


class Span(NamedTuple):
    """A part of a file. The kind is one of rustdoc, comment, string, character and markdown."""

    kind: str
    start: int
    end: int


# A lifetime differs from a character literal in that no quote closes it.
RUST = re.compile(
    r"""(?P<rustdoc> //(?:!|/(?!/)) [^\n]* )
    | (?P<comment> //[^\n]* )
    | (?P<block> /\* )
    | \b[bc]?r (?P<hashes>\#*) " (?P<raw>.*?) " (?P=hashes)
    | " (?P<string> (?:\\.|[^"\\])* ) "
    | ' (?P<character> \\(?:u\{\w+\}|x..|.) | [^\\'\n] ) '""",
    re.DOTALL | re.VERBOSE,
)
RUST_BLOCK_EDGE = re.compile(r"/\*|\*/")

# A slash opens a regular expression only after an operator, because a division follows a value.
TYPESCRIPT = re.compile(
    r"""(?P<comment> //[^\n]* | /\*.*?\*/ )
    | ' (?P<single> (?:\\.|[^'\\\n])* ) '
    | " (?P<double> (?:\\.|[^"\\\n])* ) "
    | (?: (?<=[(,=:\[!&|?{};>]) | (?<=[(,=:\[!&|?{};>]\ ) | (?<=return\ ) )
      / (?![*/]) (?: \\. | \[(?:\\.|[^\]\\\n])*\] | [^/\\\[\n] )+ /
    | (?P<brace> [`{}] )""",
    re.DOTALL | re.VERBOSE,
)
TEMPLATE_TEXT = re.compile(r"(?P<text>(?:\\.|[^`\\$]|\$(?!\{))*)(?P<end>`|\$\{|\Z)", re.DOTALL)

# In `$#`, `${x#y}` and `https://host/#part` the sign follows something else than a blank, and opens no comment.
SHELL = re.compile(
    r"""(?P<comment> (?<!\S)\#[^\n]* )
    | ' (?P<single> [^']* ) '
    | " (?P<double> (?:\\.|[^"\\])* ) "
    | \\.""",
    re.DOTALL | re.VERBOSE,
)

HASH_COMMENT = re.compile(r"(?<!\S)#[^\n]*")
HTML_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


def rust(text: str) -> Iterator[Span]:
    """Scans Rust. Block comments nest."""
    position = 0
    while match := RUST.search(text, position):
        kind, position = match.lastgroup, match.end()
        if kind == "block":
            depth = 1
            while depth and (edge := RUST_BLOCK_EDGE.search(text, position)):
                depth += 1 if edge[0] == "/*" else -1
                position = edge.end()
            is_doc = re.match(r"/\*(?:!|\*(?![*/]))", text[match.start() :])
            yield Span("rustdoc" if is_doc else "comment", match.start(), position)
        else:
            yield Span("string" if kind == "raw" else kind, *match.span(kind))


def typescript(text: str) -> Iterator[Span]:
    """Scans TypeScript and JavaScript. A template literal holds code between `${` and `}`."""
    position, open_braces = 0, []
    while match := TYPESCRIPT.search(text, position):
        kind, position = match.lastgroup, match.end()
        if kind == "comment":
            yield Span("comment", *match.span())
        elif kind in ("single", "double"):
            yield Span("string", *match.span(kind))
        elif match[0] == "{":
            open_braces.append("{")
        elif match[0] == "`" or (match[0] == "}" and open_braces and open_braces.pop() == "${"):
            part = TEMPLATE_TEXT.match(text, position)
            yield Span("string", *part.span("text"))
            position = part.end()
            if part["end"] == "${":
                open_braces.append("${")


def python(text: str) -> Iterator[Span]:
    """Scans Python. A string that is a statement of its own is a docstring, which counts as a comment."""
    starts = [0]
    starts += [match.end() for match in re.finditer("\n", text)]
    begins_statement = True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        start, end = (starts[line - 1] + column for line, column in (token.start, token.end))
        name = tokenize.tok_name[token.type]
        if name == "COMMENT":
            yield Span("comment", start, end)
        elif name == "STRING":
            yield Span("comment" if begins_statement else "string", start, end)
        elif name in ("FSTRING_MIDDLE", "TSTRING_MIDDLE"):
            yield Span("string", start, end)
        if name not in ("COMMENT", "NL"):
            begins_statement = name in ("NEWLINE", "INDENT", "DEDENT")


def shell(text: str) -> Iterator[Span]:
    """Scans shell scripts and the Makefile."""
    for match in SHELL.finditer(text):
        if match.lastgroup == "comment":
            yield Span("comment", *match.span())
        elif match.lastgroup:
            yield Span("string", *match.span(match.lastgroup))


def markdown(text: str) -> Iterator[Span]:
    """Takes Markdown as a whole."""
    yield Span("markdown", 0, len(text))


def other(comment: re.Pattern[str] | None, text: str) -> Iterator[Span]:
    """Scans a format in which everything that isn't a comment may be text for a reader, such as YAML."""
    position = 0
    for match in comment.finditer(text) if comment else ():
        yield Span("string", position, match.start())
        yield Span("comment", *match.span())
        position = match.end()
    yield Span("string", position, len(text))


def spans(path: str, text: str) -> Iterator[Span]:
    """Returns the comments and strings of a file, in order. A script without a suffix is known by its first line."""
    name = PurePath(path).name
    suffix = PurePath(path).suffix
    first_line = text.partition("\n")[0] if text.startswith("#!") else ""
    if suffix == ".rs":
        return rust(text)
    if suffix in (".ts", ".js", ".mjs"):
        return typescript(text)
    if suffix == ".py" or "python" in first_line:
        return python(text)
    if suffix == ".sh" or name == "Makefile" or re.search(r"\bsh\b|bash", first_line):
        return shell(text)
    if suffix == ".md":
        return markdown(text)
    if suffix == ".html":
        return other(HTML_COMMENT, text)
    if suffix in (".toml", ".yaml", ".yml", ".txt") or name.startswith("."):
        return other(HASH_COMMENT, text)
    return other(None, text)


def joined(text: str, parts: Iterator[Span]) -> Iterator[Span]:
    """Joins comments on consecutive lines into one, so that a sentence is in one piece."""
    last = None
    for part in parts:
        is_next = last and part.kind == last.kind and part.kind in ("rustdoc", "comment")
        if is_next and re.fullmatch(r"[ \t]*\n[ \t]*", text[last.end : part.start]):
            last = last._replace(end=part.end)
        else:
            if last:
                yield last
            last = part
    if last:
        yield last


def blank(text: str) -> str:
    """Replaces text by spaces, and keeps its line breaks, so that positions in the file stay as they are."""
    return re.sub(r"[^\n]", " ", text)


def line_of(text: str, position: int) -> int:
    """Returns the number of the line that holds this position."""
    return text.count("\n", 0, position) + 1
