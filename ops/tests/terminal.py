"""Runs a command at a terminal of its own, and answers what it asks."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time

INTERRUPT = "\x03"


def run(command, dialog, timeout, **options):
    """Runs a command. `dialog` is what it is expected to ask, with what is typed then.

    Returns its exit code, what it printed, and the part of the dialog that it didn't ask. Fails if it doesn't end in time.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
                               preexec_fn=take_terminal, **options)
    os.close(theirs)
    try:
        printed, waiting = converse(ours, list(dialog), time.monotonic() + timeout)
        return process.wait(timeout), printed, waiting
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()


def converse(terminal, waiting, deadline):
    printed, position, answer = "", 0, ""
    while True:
        if not select.select([terminal], [], [], 2)[0]:
            if time.monotonic() > deadline:
                raise AssertionError(f"the command prints nothing more: {printed}")
            # An interrupt between the prompt and the reading of the answer is noticed only with the next key.
            if answer == INTERRUPT:
                os.write(terminal, answer.encode())
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:
            # What Linux reports when the command has ended.
            data = b""
        if not data:
            return printed, waiting
        printed += data.decode(errors="replace")
        while waiting and waiting[0][0] in printed[position:]:
            question, answer = waiting.pop(0)
            position = printed.index(question, position) + len(question)
            os.write(terminal, answer.encode())


def accept_interrupts():
    """Undoes what the tests inherit from a shell script that runs them in the background: it ignores interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def take_terminal():
    """Makes the new terminal the one whose keys interrupt the command."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    accept_interrupts()
