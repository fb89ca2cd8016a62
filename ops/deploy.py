"""Builds both functions and deploys the stack.

The first time it asks for the template's parameters, and keeps the answers in
samconfig.local.toml; none is a secret. After that SET='NAME=value …' changes
some, and ARGS=--guided asks for all again.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys

from stack import FILE, ROOT, Stack

PRICES = """What the choices cost in a month, in us-east-1, before requests (docs/operations.md has the arithmetic):

  Cache=serverless, a network of its own     some 51 USD: NAT gateway 33, its address 4, cache 6, metrics and alarms 8
  Cache=serverless, a network that is there  some 15 USD: cache 6, metrics and alarms 8
  Cache=existing                             some  8 USD: metrics and alarms
  Cache=none                                 some  8 USD: metrics and alarms; no lock, no shared limits

The mirror writes nothing until MirrorApply is true. Look at a dry run first: make invoke-mirror ARGS=--dry-run
"""


def fail(text):
    sys.exit(f"make deploy: {text}")


def run(stack, *command):
    if subprocess.run(command, cwd=ROOT, env=stack.environment(), check=False).returncode:
        fail(f"{' '.join(command[:2])} failed")


def ask_aws(stack, *arguments):
    done = subprocess.run(["aws", *arguments, "--output", "text"], capture_output=True, text=True, check=False,
                          env=stack.environment())
    return done.stdout.strip() if done.returncode == 0 else None


def build(stack, architecture):
    if architecture == "arm64" and platform.machine() not in ("aarch64", "arm64") and shutil.which("rustup"):
        run(stack, "rustup", "target", "add", "aarch64-unknown-linux-gnu")
    run(stack, "sam", "build", "--parameter-overrides", f"Architecture={architecture}")


def deploy(stack, *arguments):
    run(stack, "sam", "deploy", "--config-file", str(ROOT / FILE), *arguments)


def main():
    stack = Stack()
    changes = dict(pair.partition("=")[::2] for pair in shlex.split(os.environ.get("SET", "")))
    if os.environ.get("ARCH"):
        changes["Architecture"] = os.environ["ARCH"]
    if ask_aws(stack, "sts", "get-caller-identity", "--query", "Account") is None:
        fail("the AWS CLI finds no account; run `aws configure`, or set AWS_PROFILE")
    more = sys.argv[1:]
    if stack.is_new:
        more = ["--guided", *(argument for argument in more if argument != "--guided")]
        changes.setdefault("Architecture", "arm64")
        # One instance is reserved for the mirror, and AWS wants 100 left for all others.
        left = ask_aws(stack, "lambda", "get-account-settings", "--query", "AccountLimit.UnreservedConcurrentExecutions")
        if left and left.isdigit() and int(left) <= 100:
            print(f"This account's Lambda quota leaves {left} instances, of which none can be reserved: "
                  "ReserveConcurrency=false. Ask AWS to raise it.")
            changes.setdefault("ReserveConcurrency", "false")
    print(PRICES)
    stack.remember(changes)
    built = stack.parameters.get("Architecture", "arm64")
    build(stack, built)
    deploy(stack, *more)

    stack = Stack()
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", stack.name):
        print("The stack's name should be lower case and at most 32 characters: the cache's name is made of it.")
    answered = stack.parameters.get("Architecture", "arm64")
    if answered != built:
        print(f"The answer was {answered}, and {built} was built: once more.")
        build(stack, answered)
        deploy(stack)
    query = "Stacks[0].Outputs[].[OutputKey,OutputValue]"
    print(ask_aws(stack, "cloudformation", "describe-stacks", "--stack-name", stack.name, "--query", query) or "")


main()
