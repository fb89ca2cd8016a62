"""Change sets of the stack: shows one, executes it or deletes it."""

import contextlib
import json
import time

from novi_bridge import memory
from novi_bridge.errors import AwsError, Failure
from novi_bridge.progress import Progress
from novi_bridge.terminal import confirm, print_table, say, warn

POLL_SECONDS = 3
# CloudFormation makes a change set within a minute or two.
TIMEOUT_SECONDS = 600
# How long to wait until a change set can be deleted.
DELETION_SECONDS = 60
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
    with discarding_unfinished(stack):
        return stack.aws("cloudformation", "create-change-set", "--stack-name", stack.name, "--change-set-type",
                         "UPDATE", "--change-set-name", f"novi-bridge-{int(time.time())}", "--use-previous-template",
                         "--capabilities", CAPABILITY, "--parameters", json.dumps(parameters))["Id"]


@contextlib.contextmanager
def discarding_unfinished(stack):
    """Discards the change sets that are made inside of it if that fails or is interrupted."""
    before = list_ids(stack)
    try:
        yield before
    except BaseException:
        try:
            for change_set in list_ids(stack):
                if change_set not in before:
                    discard(stack, change_set)
        except AwsError as error:
            warn(f"a change set may be left, which could still be executed. {error}.")
        raise


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
            if any(text in reason.lower() for text in NO_CHANGES):
                return None
            raise Failure(f"CloudFormation refuses the change: {reason}")
        if time.monotonic() > deadline:
            raise Failure("CloudFormation did not finish the change set in time. Run the command again")
        time.sleep(POLL_SECONDS)


def show(changes):
    rows = [["change", "resource", "type", "replaced"]]
    for change in changes:
        rows.append([change["Action"].lower(), change["LogicalResourceId"], change["ResourceType"],
                     {"True": "yes", "Conditional": "maybe"}.get(change.get("Replacement", ""), "")])
    print_table(rows, left=4)


def confirm_and_execute(stack, change_set, is_confirmed):
    """Shows the change set, asks, and executes it. Returns False if nothing was changed."""
    is_sent = False
    try:
        changes = wait_until_created(stack, change_set)
        if changes is None:
            say("Nothing changes: the stack already is like this.")
            return False
        print()
        show(changes)
        print()
        if not is_confirmed and not confirm("Apply these changes?"):
            raise Failure("nothing was changed")
        progress = Progress(stack.aws, stack.name)
        is_sent = True
        stack.aws("cloudformation", "execute-change-set", "--stack-name", stack.name, "--change-set-name", change_set)
    except AwsError as error:
        # Without a code, CloudFormation may execute it although its answer didn't arrive.
        is_sent = is_sent and not error.code
        raise
    finally:
        if is_sent:
            # At once, because the deployment goes on if this command doesn't, and one that fails leaves a stack.
            memory.remember(stack.name, stack.region)
        else:
            discard(stack, change_set)
    progress.follow("The deployment", "Run novi-bridge doctor once it is done")
    return True


def discard(stack, change_set):
    """Deletes a change set that isn't executed, and the empty stack that CloudFormation made for a first one.

    What is declined must not stay, or it could still be executed.
    """
    try:
        delete(stack, change_set)
        if stack.describe(again=True).get("StackStatus") == "REVIEW_IN_PROGRESS":
            stack.aws("cloudformation", "delete-stack", "--stack-name", stack.name)
    except AwsError as error:
        warn(f"the change set {change_set} of {stack.name} could not be deleted, and could still be executed. {error}.")


def delete(stack, change_set):
    """Deletes a change set. CloudFormation refuses that while it makes the change set."""
    deadline = time.monotonic() + DELETION_SECONDS
    while True:
        try:
            stack.aws("cloudformation", "delete-change-set", "--stack-name", stack.name, "--change-set-name",
                      change_set)
            return
        except AwsError as error:
            if not error.code.startswith("InvalidChangeSetStatus") or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)
