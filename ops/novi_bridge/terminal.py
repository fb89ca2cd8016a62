"""Asks and tells."""

import sys
import textwrap

from novi_bridge.errors import Failure

WIDTH = 120


def say(text="", indent=0, hanging=0):
    """Prints text, wrapped. `indent` is that of its first line, and `hanging` what the other lines have in addition."""
    print(textwrap.fill(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + hanging),
                        break_long_words=False, break_on_hyphens=False), flush=True)


def warn(text):
    say(f"Warning: {text}", hanging=2)


def ask(prompt):
    """Returns one line of input. Ends the command if the input has ended."""
    line = read_line(prompt)
    if line is None:
        raise Failure("nothing answered the question, because the input has ended. Run it at a terminal, or with --yes")
    return line


def confirm(question):
    """Asks a question that only y and yes answer with yes."""
    return (read_line(f"{question} [y/N] ") or "").lower() in ("y", "yes")


def read_line(prompt):
    """Returns one line of input, or None at the end of the input."""
    if sys.stdin.isatty():
        try:
            return input(prompt).strip()
        except EOFError:
            print()
            return None
    print(prompt, end="", flush=True)
    line = sys.stdin.readline()
    # No one has pressed Enter, so the next text would follow the prompt.
    print()
    return line.strip() if line else None


def print_table(rows, left=2):
    """Prints rows of cells, with the first `left` columns aligned to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) if column < left else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())
