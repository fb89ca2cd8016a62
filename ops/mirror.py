"""Invokes the mirror, and prints tables. The commands that invoke it share this."""

import json
import os
import subprocess
import sys
import tempfile

from stack import Stack

# A run takes at most 900 seconds.
READ_TIMEOUT_SECONDS = 930


class Mirror:
    """The deployed mirror, as the command's arguments name it."""

    def __init__(self, parser):
        self._stack = Stack()
        parser.add_argument("--stack", default=self._stack.name, help=f"name of the stack (default: {self._stack.name})")
        parser.add_argument("--function", help="name of the function, if it is not the stack's")

    def invoke(self, arguments, event):
        """Invokes the function and returns its result. Ends the command if the mirror did not run."""
        result = invoke(arguments.function or f"{arguments.stack}-mirror", event, self._stack.environment())
        if result.get("errorType") == "NotStarted":
            sys.exit(f"The mirror did not run: {result['errorMessage']}")
        return result


def invoke(function, event, environment):
    """Invokes the function with the AWS CLI and returns its result."""
    # By default, the CLI times out after a minute and invokes the function again, and a second concurrent run doesn't
    # help. The read timeout prevents a network that silently drops idle connections from blocking the CLI forever.
    environment = {**environment, "AWS_MAX_ATTEMPTS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        result = os.path.join(folder, "result.json")
        command = ["aws", "lambda", "invoke", "--function-name", function,
                   "--cli-read-timeout", str(READ_TIMEOUT_SECONDS),
                   # On stdin, because the addresses of an explain event must not appear in the process list.
                   "--payload", "fileb:///dev/stdin", result]
        completed = subprocess.run(command, input=json.dumps(event), capture_output=True, text=True, check=False,
                                   env=environment)
        if "timeout" in completed.stderr.lower():
            sys.exit("The invocation timed out, but the run may have continued. "
                     "Its report is the `run completed` line of its log.")
        if completed.returncode:
            sys.exit(f"Invoking the mirror failed: {completed.stderr.strip()}")
        with open(result, encoding="utf-8") as file:
            return json.load(file)


def print_table(rows, left=2):
    """Prints rows of cells, with the first `left` columns aligned to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) if column < left else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())
