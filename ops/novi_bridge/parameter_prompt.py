"""Asks for values at a terminal, or reads them from standard input, one line each."""

import contextlib
import sys
import termios


class InputEnded(Exception):
    """Raised if the input ends before an answer."""


def is_terminal():
    return sys.stdin.isatty()


@contextlib.contextmanager
def without_echo():
    """Turns off the terminal's echo. Unlike getpass, it keeps what was already entered, such as more pasted lines."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    silent = list(before)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        # For the line break that wasn't echoed.
        print()


def is_open_json(text):
    """True if a bracket or a string of a JSON array or object isn't closed yet."""
    if not text.lstrip().startswith(("[", "{")):
        return False
    depth, is_string, is_escaped = 0, False, False
    for character in text:
        if is_string:
            is_string = is_escaped or character != '"'
            is_escaped = character == "\\" and not is_escaped
        elif character == '"':
            is_string = True
        else:
            depth += (character in "[{") - (character in "]}")
    return is_string or depth > 0


def read_lines():
    """Reads a line, or all lines of a JSON text, and returns them as one text."""
    text = sys.stdin.readline()
    if not text:
        raise InputEnded
    was_told = not is_terminal()
    while is_open_json(text):
        if not was_told:
            print("\n  The JSON isn't complete yet. Enter the rest, or Ctrl-D to end it here. A terminal cuts a line\n"
                  "  after some 1000 or 4000 characters: read a long text from a file, with @FILE.", flush=True)
            was_told = True
        line = sys.stdin.readline()
        if not line:
            break
        text += line
    return text.strip()


def read_input(prompt, is_secret):
    """Returns what is entered. A secret isn't echoed."""
    if not is_terminal():
        print(prompt)
        return read_lines()
    if is_secret:
        # A terminal echoes at once, so what is pasted as soon as the prompt appears needs this order.
        with without_echo():
            print(prompt, end="", flush=True)
            return read_lines()
    try:
        return input(prompt).strip()
    except EOFError:
        raise InputEnded from None


def confirm(question, default=False):
    """Asks a question at a terminal. Enter means `default`."""
    try:
        answer = input(f"{question} [{'Y/n' if default else 'y/N'}] ").strip().lower()
    except EOFError:
        raise InputEnded from None
    return answer in ("y", "yes") if answer else default
