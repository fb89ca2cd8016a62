"""Invokes the mirror and returns what it answers."""

import json
import os
import tempfile

from novi_bridge import aws
from novi_bridge.errors import Failure

# A run takes at most 900 seconds.
READ_TIMEOUT_SECONDS = 930
# The CLI starts and connects in addition.
TIMEOUT_SECONDS = READ_TIMEOUT_SECONDS + 120


def invoke(stack, event, function=None):
    """Invokes the function and returns its result. Ends the command if the mirror did not run."""
    # By default, the CLI times out after a minute and invokes the function again, and a second concurrent run doesn't
    # help. The read timeout prevents a network that silently drops idle connections from blocking the CLI forever.
    environment = {**stack.environment(), "AWS_MAX_ATTEMPTS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "result.json")
        command = ["lambda", "invoke", "--function-name", function or f"{stack.name}-mirror",
                   "--cli-read-timeout", str(READ_TIMEOUT_SECONDS),
                   # On stdin, because the addresses of an explain event must not appear in the process list.
                   "--payload", "fileb:///dev/stdin", path]
        completed = aws.run(command, environment, json.dumps(event), TIMEOUT_SECONDS)
        if "timeout" in completed.stderr.lower():
            raise Failure("the invocation timed out, but the run may have continued. "
                          "Its report is the `run completed` line of its log")
        if completed.returncode:
            raise explain(stack, aws.explain(command, completed.stderr))
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
    if result.get("errorType") == "NotStarted":
        raise Failure(f"the mirror did not run: {result['errorMessage']}")
    return result


def explain(stack, error):
    if error.code == "ResourceNotFoundException":
        return Failure(f"the stack {stack.name} has no mirror in {stack.region}. "
                       "Deploy it (novi-bridge deploy), or name another one with --stack and --region")
    if error.code == "TooManyRequestsException":
        return Failure("the mirror can't run now. Either a run is under way, and it ends by itself, or it is stopped. "
                       "See novi-bridge status")
    return error


def extract_report(result):
    """Returns the report. A function error carries it in its message."""
    message = result.get("errorMessage")
    if message is None:
        return result
    if "{" not in message:
        raise Failure(f"the mirror returned no report and may have written changes: {message}")
    return json.loads(message[message.index("{"):message.rindex("}") + 1])
