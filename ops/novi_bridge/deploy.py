"""Deploys the stack: for the first time, to upgrade it to this version, or to change only its parameters.

The stack itself remembers its parameters. What was not deployed is never offered or sent again.
"""

from novi_bridge import aftercare, changes, memory, preflight, questions, source, template, upload, values
from novi_bridge.errors import Failure
from novi_bridge.progress import Progress
from novi_bridge.terminal import confirm, say, warn

# A stack in one of these states has to be deleted before it can be deployed again.
DEAD = {"ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED"}
ARCHITECTURE = "Architecture"


def add_arguments(parser):
    parser.add_argument("--set", metavar="NAME=VALUE", dest="set", action="append", default=[],
                        help="set a parameter of the template; may be given more than once. "
                             "On an existing stack, nothing is built or uploaded")
    parser.add_argument("--set-words", metavar="TEXT", default="",
                        help="like --set, with several assignments in one text, quoted as in a shell")
    parser.add_argument("--all", action="store_true", help="ask for every parameter of the template")
    parser.add_argument("--yes", action="store_true", help="ask nothing: keep the live values, and apply the changes")


def main(stack, arguments):
    preflight.check_region(stack.region)
    given = values.assignments(arguments.set, arguments.set_words)
    account = stack.aws("sts", "get-caller-identity")["Account"]
    stack.check_own()
    check_state(stack, arguments.yes)
    where = f"{stack.name} in {stack.region}, account {account}"
    # The functions of another architecture have to be uploaded.
    is_upgrade = (arguments.all or not set(given) - {ARCHITECTURE}
                  or given.get(ARCHITECTURE) not in (None, stack.parameters.get(ARCHITECTURE)))
    was_deployed = stack.is_deployed and stack.status not in DEAD
    if was_deployed and not is_upgrade:
        is_changed = change_parameters(stack, given, where, arguments.yes)
    else:
        is_changed = deploy(stack, given, where, arguments)
    memory.remember(stack.name, stack.region)
    if not is_changed:
        return False
    stack.describe(again=True)
    # A dry run takes minutes, and says nothing new after a change of a parameter.
    return aftercare.check(stack, with_dry_run=is_upgrade or not was_deployed)


def check_state(stack, is_confirmed):
    """Ends the command if the stack can't be deployed in its state."""
    status = stack.status
    if status == "REVIEW_IN_PROGRESS":
        return
    if status.endswith("_IN_PROGRESS"):
        raise Failure(f"CloudFormation is working on the stack ({status}). Wait until it is done, see novi-bridge "
                      "status")
    if status == "UPDATE_ROLLBACK_FAILED":
        raise Failure("the last update failed, and so did going back. Run: aws cloudformation continue-update-rollback "
                      f"--stack-name {stack.name} --region {stack.region}")
    # --yes agrees to a deployment, not to a deletion.
    if status in DEAD and is_confirmed:
        raise Failure(f"the stack {stack.name} is in {status} and has to be deleted first: novi-bridge deploy without "
                      "--yes, or novi-bridge remove")


def delete_dead(stack):
    """Deletes a stack that never came to be, if the operator agrees."""
    say(f"An earlier deployment failed and left the stack {stack.name} in {stack.status}. It has to be deleted first. "
        "That deletes nothing that works.")
    if not confirm("Delete it?"):
        raise Failure(f"the stack in {stack.status} has to be deleted first")
    stack_id = stack.describe()["StackId"]
    progress = Progress(stack.aws, stack_id)
    stack.aws("cloudformation", "delete-stack", "--stack-name", stack_id)
    progress.follow("The deletion", "Run novi-bridge deploy again once it is done")
    stack.describe(again=True)


def change_parameters(stack, given, where, is_confirmed):
    """Changes parameters of the deployed template."""
    live = stack.parameters
    local = template.read(source.template(live.get(ARCHITECTURE, "arm64")))
    deployed = stack.template_parameters(local)
    for name in given:
        if name not in deployed and name in local:
            raise Failure(f"{name} is a parameter of version {source.version()}, but not of the deployed version. "
                          "Upgrade first: novi-bridge deploy")
    values.check_names(given, deployed, "the deployed version")
    values.check_values(given, deployed)
    new = {**live, **given}
    check(live, new)
    values.check_transition(live, new, is_old="Version" not in stack.outputs)
    check_account(stack, live, new, is_confirmed)
    say(f"Changing parameters of {where}. Nothing is built or uploaded.")
    if not show_values(live, new):
        say("Nothing changes: the stack already has these values.")
        return False
    change_set = changes.create_for_parameters(stack, {name: new[name] for name in new if new[name] != live.get(name)},
                                               deployed)
    return changes.confirm_and_execute(stack, change_set, is_confirmed)


def deploy(stack, given, where, arguments):
    """Deploys this version, with the live values and what the operator changes."""
    is_dead = stack.status in DEAD
    is_new = is_dead or not stack.is_deployed
    # A new stack takes nothing over from a dead one.
    live = {} if is_new else stack.parameters
    parameters = template.read(source.template(live.get(ARCHITECTURE, "arm64")))
    values.check_names(given, parameters, f"version {source.version()}")
    values.check_values(given, parameters)
    if is_new:
        start_new(stack, given, arguments)
    upload.require_tools()
    if is_dead:
        delete_dead(stack)
    new = {name: parameter.default or "" for name, parameter in parameters.items()}
    new.update({name: value for name, value in live.items() if name in parameters})
    new.update(given)
    say(f"{'Deploying' if is_new else 'Upgrading'} {where}, to version {source.version()}"
        f"{'' if is_new else ' from ' + stack.outputs.get('Version', 'an older one')}.")
    gone = [name for name, value in live.items() if name not in parameters and value]
    if gone:
        warn(f"this version doesn't have the parameters {', '.join(gone)} any more.")
    if not arguments.yes:
        say(f"Enter keeps the value in brackets{'' if is_new else ', which is that of the live stack'}. "
            f"{questions.CLEAR} makes a text empty.")
        print()
        new = questions.ask_all(parameters, new) if arguments.all else questions.ask_five(parameters, new)
        print()
    values.check_values(new, parameters)
    check(live, new)
    preflight.unless_denied(preflight.check_quota, stack, live, new, given)
    if not is_new:
        # After the check of the quota, which can change ReserveConcurrency.
        preflight.unless_denied(preflight.check_stopped, stack, live, new)
    preflight.unless_denied(preflight.check_zones, stack, live, new)
    preflight.unless_denied(preflight.check_parameters, stack, new["ParameterPrefix"])
    preflight.check_elasticache_role(stack, new, arguments.yes)
    if not is_new:
        show_values(live, new)
    built = upload.build(stack, new[ARCHITECTURE])
    change_set = upload.create_change_set(stack, built, new)
    if change_set is None:
        say("Nothing changes: the stack already is like this.")
        return False
    return changes.confirm_and_execute(stack, change_set, arguments.yes)


def start_new(stack, given, arguments):
    """Checks what is decided for good with a first deployment: its name, and that it is wanted."""
    preflight.check_name(stack.name)
    if arguments.yes and "Cache" not in given:
        raise Failure("a first deployment with --yes needs --set Cache=…, because it decides what the stack costs")
    others = stack.others()
    if others:
        say(f"There already is {', '.join(others)} in this region. --stack names it, if you mean to upgrade it.")
        if not arguments.yes and not confirm(f"Create another stack, {stack.name}?"):
            raise Failure("nothing was changed")


def check(live, new):
    """Checks the values that belong together."""
    values.check_combination(new)
    for warning in values.warnings(live, new):
        warn(warning)


def check_account(stack, live, new, is_confirmed):
    """Checks what the changed parameters need of the account."""
    if new.get("ReserveConcurrency") != live.get("ReserveConcurrency"):
        preflight.unless_denied(preflight.check_quota, stack, live, new, {"ReserveConcurrency"})
        preflight.unless_denied(preflight.check_stopped, stack, live, new)
    if new.get("Cache") != live.get("Cache"):
        preflight.check_elasticache_role(stack, new, is_confirmed)
        preflight.unless_denied(preflight.check_zones, stack, live, new)
    if new.get("ParameterPrefix") != live.get("ParameterPrefix"):
        preflight.unless_denied(preflight.check_parameters, stack, new["ParameterPrefix"])


def show_values(live, new):
    """Prints the parameters that get another value. Returns their names."""
    changed = [name for name in new if new[name] != live.get(name)]
    for name in changed:
        before = f"{live[name] or '(empty)'} → " if name in live else "new: "
        say(f"{name}: {before}{new[name] or '(empty)'}", indent=2, hanging=2)
    return changed
