"""Runs `novi-bridge parameters` in a process of its own, with a fake AWS CLI, without or at a terminal."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from tests import terminal

OPS = pathlib.Path(__file__).resolve().parent.parent

# The stack is passed in, so that nothing looks for a real one.
PROGRAM = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from novi_bridge import parameters
from novi_bridge.errors import Failure

class Stack:
    parameters = json.loads(sys.argv[2])

    def check_own(self):
        pass

    def environment(self):
        return dict(os.environ)

try:
    parameters.main(sys.argv[3:], Stack())
except Failure as error:
    sys.exit(str(error))
"""
# The maximum time in seconds to wait for a prompt.
PATIENCE = 60


class Result:
    def __init__(self, code, output, errors=""):
        self.code, self.output, self.errors = code, output, errors
        self.text = output + errors


class ParametersCase(unittest.TestCase):
    """A test with an empty Parameter Store."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.write_fake_aws()
        self.settings = {}

    def write_fake_aws(self, first=":"):
        """Writes a program `aws`, which runs a command of the shell before it answers."""
        path = self.folder / "aws"
        path.write_text(f'#!/bin/sh\n{first}\nexec "{sys.executable}" -I -S "{OPS}/tests/fake_ssm.py" "$@"\n',
                        encoding="utf-8")
        path.chmod(0o755)

    def environment(self):
        return {**os.environ, "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}", "FAKE_SSM": str(self.folder),
                "AWS_REGION": "us-east-2", "NO_PROXY": "*", "PYTHONDONTWRITEBYTECODE": "1"}

    def command(self, arguments):
        return [sys.executable, "-c", PROGRAM, str(OPS), json.dumps(self.settings), *arguments]

    def run_with_input(self, *arguments, entered=""):
        completed = subprocess.run(self.command(arguments), input=entered, capture_output=True, text=True, check=False,
                                   env=self.environment(), timeout=PATIENCE)
        return Result(completed.returncode, completed.stdout, completed.stderr)

    def run_at_terminal(self, *arguments, dialog=()):
        """Runs the command at a terminal. A dialog has pairs: a text to wait for, and what is entered then."""
        exited, printed, waiting = terminal.run(self.command(arguments), dialog, PATIENCE, env=self.environment())
        self.assertFalse(waiting, f"it never asked for {waiting[:1]}: {printed}")
        return Result(exited, printed.replace("\r\n", "\n"))

    def stored(self):
        path = self.folder / "store.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def value(self, name):
        return self.stored().get(f"/idaa/{name}", {}).get("Value")

    def store(self, name, value, kind="SecureString", key="alias/aws/ssm"):
        store = self.stored()
        path = f"/idaa/{name}"
        store[path] = {"Name": path, "Type": kind, "Value": value, "Version": 1, "KeyId": key}
        (self.folder / "store.json").write_text(json.dumps(store), encoding="utf-8")

    def misbehave(self, mode):
        (self.folder / "mode").write_text(mode, encoding="utf-8")

    def calls(self, operation=None):
        """Returns the arguments of each call of the AWS CLI."""
        path = self.folder / "calls"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if operation in (None, call[1])]

    def writes(self):
        return len(self.calls("put-parameter"))

    def assert_never_in_arguments(self, secret):
        self.assertNotIn(secret, json.dumps(self.calls()))
