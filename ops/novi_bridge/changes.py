"""Change sets of the stack: shows one, executes it or deletes it."""

import json
import time

from novi_bridge import memory
from novi_bridge.errors import AwsError, Failure
from novi_bridge.progress import Progress
from novi_bridge.terminal import confirm, print_table, say

POLL_SECONDS = 3
# CloudFormation makes a change set within a minute or two.
TIMEOUT_SECONDS = 600
CAPABILITY = "CAPABILITY_IAM"
# What CloudFormation says if nothing would change.
NO_CHANGES = ["didn't contain changes", "no updates are to be performed"]


def list_ids(stack):
    """Returns the ids of the stack's change sets, the latest first."""
    try:
        found = stack.aws("cloudformation", "list-change-sets", "--stack-name", stack.name).get("Summaries", [])
    except AwsError as error:
        if error.code == "ValidationError" and "does not exist" in str(error):
            return []
        raise
    found.sort(key=lambda entry: entry.get("CreationTime", ""), reverse=True)
    return [entry["ChangeSetId"] for entry in found]


def create_for_parameters(stack, changes, names):
    """Creates a change set that sets parameters of the deployed template. Returns its id."""
    parameters = [{"ParameterKey": name, "ParameterValue": changes[name]} if name in changes
                  else {"ParameterKey": name, "UsePreviousValue": True} for name in names]
    return stack.aws("cloudformation", "create-change-set", "--stack-name", stack.name, "--change-set-type", "UPDATE",
                     "--change-set-name", f"novi-bridge-{int(time.time())}", "--use-previous-template",
                     "--capabilities", CAPABILITY, "--parameters", json.dumps(parameters))["Id"]


def wait_until_created(stack, change_set):
    """Waits for a change set, and returns its changes. Returns None if nothing would change."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        described = stack.aws("cloudformation", "describe-change-set", "--stack-name", stack.name, "--change-set-name",
                              change_set)
        if described["Status"] == "CREATE_COMPLETE":
            return [change["ResourceChange"] for change in described.get("Changes", []) if "ResourceChange" in change]
        if described["Status"] == "FAILED":
            reason = described.get("StatusReason", "no reason")
            delete(stack, change_set)
            if any(text in reason.lower() for text in NO_CHANGES):
                return None
            raise Failure(f"CloudFormation refuses the change: {reason}")
        if time.monotonic() > deadline:
            raise Failure("CloudFormation did not finish the change set in time. Run the command again")
        time.sleep(POLL_SECONDS)


def delete(stack, change_set):
    """Deletes a change set that isn't executed. What is declined must not stay, or it could still be executed."""
    stack.aws("cloudformation", "delete-change-set", "--stack-name", stack.name, "--change-set-name", change_set)


def show(changes):
    rows = [["change", "resource", "type", "replaced"]]
    for change in changes:
        rows.append([change["Action"].lower(), change["LogicalResourceId"], change["ResourceType"],
                     {"True": "yes", "Conditional": "maybe"}.get(change.get("Replacement", ""), "")])
    print_table(rows, left=4)


def confirm_and_execute(stack, change_set, is_confirmed):
    """Shows the change set, asks, and executes it. Returns False if nothing was changed."""
    changes = wait_until_created(stack, change_set)
    if changes is None:
        say("Nothing changes: the stack already is like this.")
        return False
    print()
    show(changes)
    print()
    is_agreed = False
    try:
        is_agreed = is_confirmed or confirm("Apply these changes?")
    finally:
        if not is_agreed:
            discard(stack, change_set)
    if not is_agreed:
        raise Failure("nothing was changed")
    progress = Progress(stack.aws, stack.name)
    stack.aws("cloudformation", "execute-change-set", "--stack-name", stack.name, "--change-set-name", change_set)
    # At once, because the deployment goes on if this command doesn't, and because one that fails leaves a stack.
    memory.remember(stack.name, stack.region)
    progress.follow("The deployment", "Run novi-bridge doctor once it is done")
    return True


def discard(stack, change_set):
    """Deletes a declined change set, and the empty stack that CloudFormation made for a first one."""
    delete(stack, change_set)
    if stack.describe(again=True).get("StackStatus") == "REVIEW_IN_PROGRESS":
        stack.aws("cloudformation", "delete-stack", "--stack-name", stack.name)
