"""Builds the functions, if this is a checkout, and uploads them together with the template. The SAM CLI does both."""

import platform
import shutil
import subprocess

from novi_bridge import changes, source
from novi_bridge.errors import Failure

# A first build compiles everything, on a small machine for both functions.
BUILD_SECONDS = 2 * 3600
UPLOAD_SECONDS = 1800
TAGS = {"Application": "novi-bridge"}


def require_tools():
    if not shutil.which("sam"):
        raise Failure("the SAM CLI is missing. Install it: "
                      "https://docs.aws.amazon.com/serverless-application-model/latest/developerguide/install-sam-cli.html")


def run(stack, command, timeout):
    # The terminal's interrupt reaches the tool, too.
    process = subprocess.Popen(command, cwd=source.root(), env=stack.environment(), stdin=subprocess.DEVNULL)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise Failure(f"{' '.join(command[:2])} took more than {timeout} s, and was ended") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if code:
        raise Failure(f"{' '.join(command[:2])} failed. Its message is above. Nothing was changed")


def build(stack, architecture):
    """Builds the functions of a checkout. Returns the template to deploy."""
    if not source.is_checkout():
        return source.template(architecture)
    if architecture == "arm64" and platform.machine() not in ("aarch64", "arm64") and shutil.which("rustup"):
        run(stack, ["rustup", "target", "add", "aarch64-unknown-linux-gnu"], BUILD_SECONDS)
    run(stack, ["sam", "build", "--parameter-overrides", f"Architecture={architecture}"], BUILD_SECONDS)
    return source.root() / ".aws-sam" / "build" / "template.yaml"


def create_change_set(stack, template, values):
    """Uploads the functions. Returns the id of a change set that deploys them, or None if nothing would change."""
    overrides = [override(name, value) for name, value in values.items()]
    # A tag that isn't passed is deleted. AWS sets those of its own itself, and refuses them here.
    live = {entry["Key"]: entry["Value"] for entry in stack.describe().get("Tags", [])}
    tags = [tag(key, value) for key, value in {**live, **TAGS}.items() if not key.startswith("aws:")]
    command = ["sam", "deploy", "--template-file", str(template), "--stack-name", stack.name, "--region", stack.region,
               "--resolve-s3", "--capabilities", changes.CAPABILITY, "--no-confirm-changeset",
               "--no-execute-changeset", "--no-fail-on-empty-changeset", "--tags", *tags,
               "--parameter-overrides", *overrides]
    with changes.discarding_unfinished(stack) as before:
        run(stack, command, UPLOAD_SECONDS)
        return next((change_set for change_set in changes.list_ids(stack) if change_set not in before), None)


def override(name, value):
    """Returns a parameter in the form in which `sam` keeps every character of its value."""
    quoted = value.replace('"', '\\"')
    return f'{name}="{quoted}"'


def tag(key, value):
    """Returns a tag in the form in which `sam` keeps spaces and equals signs. AWS allows no quotes in tags."""
    return f'"{key}"="{value}"'
