"""Deletes the stack, and says what stays."""

import re

from novi_bridge import memory, preflight
from novi_bridge.aws import batches
from novi_bridge.errors import AwsError, Failure
from novi_bridge.parameter_store import MULTIPART
from novi_bridge.progress import Progress
from novi_bridge.terminal import ask, say, warn


def add_arguments(parser):
    parser.add_argument("--parameters", action="store_true", help="also delete the SSM parameters, secrets included")
    parser.add_argument("--yes", action="store_true", help="don't ask")


def main(stack, arguments):
    description = stack.describe()
    if not description or stack.status == "DELETE_COMPLETE":
        raise Failure(f"the stack {stack.name} doesn't exist in {stack.region}")
    stack.check_own()
    if stack.status.endswith("_IN_PROGRESS") and stack.status != "REVIEW_IN_PROGRESS":
        raise Failure(f"CloudFormation is working on the stack ({stack.status}). Wait until it is done")
    prefix = stack.parameters.get("ParameterPrefix")
    if arguments.parameters:
        check_prefix(stack, prefix)
    say(f"This deletes the stack {stack.name} in {stack.region}: the API, the mirror, the cache, the logs and the "
        "alarms. From then on no member can be verified, and lists stay as they are.")
    if arguments.parameters:
        say(f"It also deletes the SSM parameters below {prefix}. Nothing brings them back, and without ledger_key the "
            "ledger that stays can't be read again.")
    # Before anything is deleted, because the outputs that name it go with the stack.
    say("What stays:")
    for text in what_stays(stack, prefix, arguments.parameters):
        say(f"- {text}", hanging=2)
    if not arguments.yes and ask(f"Type the stack's name to delete it ({stack.name}): ") != stack.name:
        raise Failure("nothing was deleted")
    stack_id = description["StackId"]
    progress = Progress(stack.aws, stack_id)
    stack.aws("cloudformation", "update-termination-protection", "--no-enable-termination-protection", "--stack-name",
              stack_id)
    stack.aws("cloudformation", "delete-stack", "--stack-name", stack_id)
    try:
        progress.follow("The deletion", "novi-bridge status tells how it ends")
    except Failure:
        if arguments.parameters:
            warn(f"the SSM parameters below {prefix} were not deleted. docs/operations/remove.md has the commands, "
                 'under "Without the command".')
        raise
    if arguments.parameters:
        delete_parameters(stack, prefix)
    memory.forget(stack.name, stack.region)
    say("The stack is deleted.")


def check_prefix(stack, prefix):
    """Ends the command if it isn't known where the parameters are, or if another stack uses them."""
    if not prefix:
        raise Failure("the stack doesn't say where its SSM parameters are. Leave out --parameters")
    found = stack.aws("cloudformation", "describe-stacks")["Stacks"]
    for entry in found:
        values = {value["ParameterKey"]: value.get("ParameterValue") for value in entry.get("Parameters", [])}
        if entry["StackName"] != stack.name and values.get("ParameterPrefix") == prefix:
            raise Failure(f"the stack {entry['StackName']} uses the parameters below {prefix}, too. Leave out "
                          "--parameters")


def what_stays(stack, prefix, with_parameters):
    staying = []
    bucket = stack.outputs.get("LedgerBucket")
    if bucket:
        staying.append(f"the ledger, in the bucket {bucket}. A new stack has a new one. Once you don't need it: "
                       f"aws s3 rm --recursive s3://{bucket}, delete its old versions, and aws s3api delete-bucket "
                       f"--bucket {bucket}")
    # Older templates delete the address together with the network.
    allocation = stack.outputs.get("FixedAddressAllocationId")
    if allocation:
        address = stack.outputs.get("FixedAddress", "that you gave to the stack")
        staying.append(f"the address {address}, for about 4 USD a month. AllocationId={allocation} gives it to a new "
                       f"stack, and aws ec2 release-address --allocation-id {allocation} gives it back")
    if not with_parameters:
        below = f" below {prefix}" if prefix else ""
        staying.append(f"the SSM parameters{below}, secrets included. novi-bridge remove --parameters deletes "
                       "them, too. Later, aws ssm delete-parameters does")
    staying.append("the uploaded code, in the bucket of the stack aws-sam-cli-managed-default, which other SAM "
                   "applications may use")
    staying.append("the lists and their members in Mailman, and alarm emails that were sent")
    return staying


def delete_parameters(stack, prefix):
    names = preflight.ssm_parameters()[0]
    existing = preflight.existing_parameters(stack, prefix, names)
    parts = stack.aws("ssm", "get-parameters-by-path", "--path", f"{prefix}/{MULTIPART}", "--query",
                      "Parameters[].Name")
    existing += [name[len(prefix) + 1:] for name in parts if re.fullmatch(r"\d+", name.rsplit("/", 1)[1])]
    for batch in batches(existing):
        paths = [f"{prefix}/{name}" for name in batch]
        try:
            stack.aws("ssm", "delete-parameters", "--names", *paths)
        except AwsError as error:
            warn(f"the SSM parameters below {prefix} were not all deleted. {error}")
            return
    say(f"{len(existing)} SSM parameters below {prefix} are deleted.")
