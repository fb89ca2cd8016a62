"""Runs the AWS CLI, and says in one line what to do if that fails.

Secrets are never passed to the CLI as an argument, which would expose them in the process list. They are also kept out
of error messages.
"""

import contextlib
import json
import os
import re
import subprocess
import tempfile

from novi_bridge.errors import DENIED, AwsError, Failure

# The most names that SSM's GetParameters and DeleteParameters take.
MAX_NAMES = 10
# The CLI retries, and gives up on a connection after a minute.
TIMEOUT_SECONDS = 180

# What the CLI prints, as a regular expression, with what to tell the operator instead.
EXPLANATIONS = [
    (r"sso session .* (expired|invalid)|error loading sso token|token for .* does not exist|refresh failed",
     "The login of AWS SSO has expired. Run: aws sso login"),
    (r"\((ExpiredToken|ExpiredTokenException|RequestExpired)\)|security token .* is expired",
     "The AWS credentials have expired. Log in again (aws sso login, or reload CloudShell)"),
    (r"unable to locate credentials|partial credentials found|no credentials",
     "AWS credentials are missing. Run `aws configure` or `aws sso login`, or set AWS_PROFILE"),
    (r"\((InvalidClientTokenId|UnrecognizedClientException|SignatureDoesNotMatch|AuthFailure|InvalidAccessKeyId)\)",
     "AWS doesn't accept the credentials. Run `aws configure`, or set AWS_PROFILE. "
     "A region that the account has not enabled gives the same error"),
    (r"config profile \(.*\) could not be found",
     "AWS_PROFILE names a profile that isn't configured. List them with: aws configure list-profiles"),
    (r"you must specify a region|no region",
     "No AWS region is set. Add --region, such as --region us-east-1"),
    (r"could not connect to the endpoint url|invalid endpoint|provided region_name .* doesn't match",
     "AWS can't be reached. Check the name of the region, and the network"),
    (r"connect timeout|read timeout|connection was closed|proxy connection|failed to resolve",
     "AWS can't be reached. Check the network"),
    (r"certificate_verify_failed|ssl validation failed",
     "The TLS connection to AWS failed. If a proxy opens TLS connections, set AWS_CA_BUNDLE to its certificate"),
    (r"invalid choice|unknown options",
     "The AWS CLI is too old for this command. Update it: "
     "https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html"),
]


def batches(names):
    """Returns lists of at most as many names as one call of SSM takes."""
    return [names[first:first + MAX_NAMES] for first in range(0, len(names), MAX_NAMES)]


def environment(region):
    """Returns the environment of every program that calls AWS."""
    regions = {"AWS_REGION": region, "AWS_DEFAULT_REGION": region} if region else {}
    # Without a pager, which waits for a key at a terminal.
    return {**os.environ, **regions, "AWS_PAGER": "", "SAM_CLI_TELEMETRY": "0"}


@contextlib.contextmanager
def private_file(text):
    """Yields a path from which only child processes can read `text`, any number of times, and the open files for that."""
    if hasattr(os, "memfd_create"):
        # Only in memory. The CLI reads the file twice, so a pipe wouldn't work.
        with open(os.memfd_create("request"), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            yield f"/dev/fd/{file.fileno()}", (file.fileno(),)
    else:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            yield file.name, ()


def without_value(message, request):
    """Removes the value that was to be written from a message of the CLI, which quotes a request that it can't use."""
    value = (request or {}).get("Value")
    for text in filter(None, (value, json.dumps(value)[1:-1] if value else None)):
        message = message.replace(text, "(value)")
    return message


def run(arguments, env, stdin=None, timeout=TIMEOUT_SECONDS, pass_fds=()):
    """Runs the AWS CLI. Returns the completed process, also if it failed."""
    # Without input, the CLI must not read what is meant for this command.
    source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    try:
        return subprocess.run(["aws", *arguments], capture_output=True, text=True, check=False, env=env,
                              timeout=timeout, pass_fds=pass_fds, **source)
    except FileNotFoundError:
        raise Failure("the AWS CLI is missing. Install it: "
                      "https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html") from None
    except subprocess.TimeoutExpired:
        raise AwsError(f"aws {' '.join(arguments[:2])} timed out after {timeout} s. Check the network") from None


def call(arguments, env, timeout=TIMEOUT_SECONDS, request=None):
    """Returns what the AWS CLI answers, parsed. `request` has what must not be an argument. Raises AwsError if it fails."""
    words = [*arguments, "--output", "json"]
    if request is None:
        completed = run(words, env, timeout=timeout)
    else:
        with private_file(json.dumps(request)) as (path, files):
            completed = run([*words, "--cli-input-json", f"file://{path}"], env, timeout=timeout, pass_fds=files)
    if completed.returncode:
        raise explain(arguments, without_value(completed.stderr, request))
    try:
        return json.loads(completed.stdout or "{}")
    except ValueError:
        name = " ".join(arguments[:2])
        raise AwsError(f"aws {name} failed: it did not answer with JSON. Update the AWS CLI") from None


def explain(arguments, stderr):
    """Returns the error for what the CLI printed."""
    text = " ".join(stderr.split())
    found = re.search(r"An error occurred \((\w+)\) when calling the \w+ operation(?: \([^)]*\))?: (.*)", text)
    code, cause = found.groups() if found else ("", text or "no message")
    name = f"aws {' '.join(arguments[:2])}"
    for pattern, advice in EXPLANATIONS:
        if re.search(pattern, text, re.IGNORECASE):
            return AwsError(f"{name} failed. {advice}.", code)
    if code in DENIED:
        return AwsError(f"{name} failed: the AWS identity may not do this. {cause}. "
                        "docs/operations/permissions.md has the policy that it needs", code)
    return AwsError(f"{name} failed: {cause}", code)
