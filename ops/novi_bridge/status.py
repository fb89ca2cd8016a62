"""Says how the stack is."""

from novi_bridge import facts, functions, source
from novi_bridge.errors import UNEXPECTED, AwsError
from novi_bridge.terminal import print_table, say

WIDTH = 14
COLUMNS = ["subscribed", "unsubscribed", "withheld"]


def main(stack, _arguments):
    stack.require()
    line("stack", f"{stack.name} in {stack.region}: {stack.status}")
    line("version", version(stack))
    line("API", stack.outputs.get("ApiUrl", "none"))
    tell("health", lambda: facts.health(stack)[1])
    tell("schedule", lambda: facts.schedule(stack)[1])
    for name in functions.NAMES:
        tell(name, lambda name=name: state(stack, name))
    tell("alarms", lambda: ", ".join(facts.alarms(stack)) or "none is on")
    tell("subscription", lambda: facts.describe_subscriptions(stack)[1])
    tell("ledger", lambda: ledger(stack))
    tell("last run", lambda: tell_last_run(stack))


def line(name, text):
    say(f"{name.ljust(WIDTH)}{text}", hanging=WIDTH)


def tell(name, read):
    """Prints a fact, if there is one to print. What can't be read doesn't keep the others from being told."""
    try:
        text = read()
    except AwsError as error:
        text = f"unknown: {error}"
    except UNEXPECTED:
        text = "unknown: expected another answer of the AWS CLI"
    if text:
        line(name, text)


def version(stack):
    deployed, own = stack.outputs.get("Version", "without a number"), source.version()
    return deployed if deployed == own else f"{deployed}. This folder has {own}: novi-bridge deploy upgrades"


def state(stack, name):
    if functions.is_stopped(stack, name):
        return f"stopped: novi-bridge start {name}"
    if name == "verify":
        return "on"
    if facts.writes(stack):
        return "on, and writes"
    return "on, but writes nothing: novi-bridge deploy --set MirrorApply=true"


def ledger(stack):
    age = facts.ledger_age(stack)
    return "doesn't exist yet" if age is None else f"written {facts.duration(age)} ago"


def tell_last_run(stack):
    """Prints the last run and its table. Returns the text to print instead if there was none."""
    found = facts.last_run(stack)
    if found is None:
        return "none within two periods of the schedule"
    moment, report = found
    rows = [["list", "status", *COLUMNS]]
    for entry in report["lists"]:
        rows.append([entry["list_id"] or "(unnamed)", entry["status"], *(str(entry[column]) for column in COLUMNS)])
    line("last run", f"{moment:%Y-%m-%d %H:%M} UTC, {report['status']}{' (dry run)' if report['dry_run'] else ''}")
    print()
    print_table(rows)
    if report.get("ok_lists"):
        print(f"and {report['ok_lists']} more lists that are ok")
    return None
