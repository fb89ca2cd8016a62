"""Says how the stack is."""

from novi_bridge import facts, functions, source
from novi_bridge.errors import AwsError
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
        tell(name, lambda name=name: "stopped: novi-bridge start " + name if functions.is_stopped(stack, name) else
             writing(stack) if name == "mirror" else "on")
    tell("alarms", lambda: ", ".join(facts.alarms(stack)) or "none is on")
    tell("subscription", lambda: facts.describe_subscriptions(stack)[1])
    tell("ledger", lambda: ledger(stack))
    tell_last_run(stack)


def line(name, text):
    say(f"{name.ljust(WIDTH)}{text}", hanging=WIDTH)


def tell(name, read):
    """Prints a fact. What can't be read doesn't keep the others from being told."""
    try:
        line(name, read())
    except AwsError as error:
        line(name, f"unknown: {error}")


def version(stack):
    deployed, own = stack.outputs.get("Version", "older than 0.1.0, without a version"), source.version()
    return deployed if deployed == own else f"{deployed}. This folder has {own}: novi-bridge deploy upgrades"


def writing(stack):
    if facts.writes(stack):
        return "on, and writes"
    return "on, but writes nothing: novi-bridge deploy --set MirrorApply=true"


def ledger(stack):
    age = facts.ledger_age(stack)
    return "doesn't exist yet" if age is None else f"written {facts.duration(age)} ago"


def tell_last_run(stack):
    try:
        found = facts.last_run(stack)
    except AwsError as error:
        line("last run", f"unknown: {error}")
        return
    if found is None:
        line("last run", "none within two periods of the schedule")
        return
    moment, report = found
    line("last run", f"{moment:%Y-%m-%d %H:%M} UTC, {report['status']}{' (dry run)' if report['dry_run'] else ''}")
    print()
    rows = [["list", "status", *COLUMNS]]
    for entry in report["lists"]:
        rows.append([entry["list_id"] or "(unnamed)", entry["status"], *(str(entry[column]) for column in COLUMNS)])
    print_table(rows)
    if report.get("ok_lists"):
        print(f"and {report['ok_lists']} more lists that are ok")
