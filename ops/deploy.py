"""Builds both functions and deploys the stack.

The first run prompts for the template's parameters and saves their values in
samconfig.local.toml. None of them is a secret. After that, SET='NAME=value …'
changes individual parameters, and ARGS=--guided prompts for all of them again.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys

from stack import LOCAL_CONFIG, ROOT, Stack

PRICES = """Monthly cost of each choice in us-east-1, excluding requests (docs/operations.md has the calculation):

  Cache=serverless, in a new network        about 58 USD: NAT gateway 33, its address 4, cache 6, metrics and alarms 15
  Cache=serverless, in an existing network  about 22 USD: cache 6, metrics and alarms 15
  Cache=existing                            about 16 USD: metrics and alarms
  Cache=none                                about 16 USD: metrics and alarms (no locks, no shared limits)

The mirror writes nothing until MirrorApply is true. Do a dry run first: make invoke-mirror ARGS=--dry-run
"""


def fail(message):
    sys.exit(f"make deploy: {message}")


def run(stack, *command):
    if subprocess.run(command, cwd=ROOT, env=stack.environment(), check=False).returncode:
        fail(f"{' '.join(command[:2])} failed")


def query_aws(stack, *arguments):
    completed = subprocess.run(["aws", *arguments, "--output", "text"], capture_output=True, text=True, check=False,
                               env=stack.environment())
    return completed.stdout.strip() if completed.returncode == 0 else None


def build(stack, architecture):
    if architecture == "arm64" and platform.machine() not in ("aarch64", "arm64") and shutil.which("rustup"):
        run(stack, "rustup", "target", "add", "aarch64-unknown-linux-gnu")
    run(stack, "sam", "build", "--parameter-overrides", f"Architecture={architecture}")


def deploy(stack, *arguments):
    run(stack, "sam", "deploy", "--config-file", str(ROOT / LOCAL_CONFIG), *arguments)


def main():
    stack = Stack()
    changes = dict(pair.partition("=")[::2] for pair in shlex.split(os.environ.get("SET", "")))
    if os.environ.get("ARCH"):
        changes["Architecture"] = os.environ["ARCH"]
    if query_aws(stack, "sts", "get-caller-identity", "--query", "Account") is None:
        fail("the AWS CLI could not identify an account. Run `aws configure` or set AWS_PROFILE.")
    arguments = sys.argv[1:]
    if stack.is_new:
        arguments = ["--guided", *(argument for argument in arguments if argument != "--guided")]
        changes.setdefault("Architecture", "arm64")
        # The mirror reserves one instance, and AWS requires 100 to stay unreserved.
        unreserved = query_aws(stack, "lambda", "get-account-settings",
                               "--query", "AccountLimit.UnreservedConcurrentExecutions")
        if unreserved and unreserved.isdigit() and int(unreserved) <= 100:
            print(f"This account's Lambda quota leaves {unreserved} instances, too few to reserve one for the mirror: "
                  "setting ReserveConcurrency=false. Ask AWS to raise the quota.")
            changes.setdefault("ReserveConcurrency", "false")
    print(PRICES)
    stack.save(changes)
    built = stack.parameters.get("Architecture", "arm64")
    build(stack, built)
    deploy(stack, *arguments)

    stack = Stack()
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", stack.name):
        print("The stack name should be lower case and at most 32 characters: the cache's name is derived from it.")
    chosen = stack.parameters.get("Architecture", "arm64")
    if chosen != built:
        print(f"You chose {chosen}, but {built} was built. Building and deploying again.")
        build(stack, chosen)
        deploy(stack)
    query = "Stacks[0].Outputs[].[OutputKey,OutputValue]"
    print(query_aws(stack, "cloudformation", "describe-stacks", "--stack-name", stack.name, "--query", query) or "")


main()
