"""Looks after a deployment: the API's health, a dry run, the alarms' subscription, and the protection of the stack."""

from novi_bridge import facts, functions, run
from novi_bridge.errors import Failure
from novi_bridge.invoke import extract_report, invoke
from novi_bridge.terminal import say, warn

# The first responses may come from the previous version, or not at all.
HEALTH_ATTEMPTS = 3


def check(stack, with_dry_run):
    """Returns True if something doesn't work."""
    print()
    for name, value in sorted(stack.outputs.items()):
        say(f"{name}: {value}", hanging=2)
    print()
    steps = [protect, check_subscription, check_health, *([check_mirror] if with_dry_run else [])]
    return not all([is_well(step, stack) for step in steps])


def is_well(step, stack):
    """Runs a step. One that fails keeps none of the others from running, because the stack is deployed already."""
    try:
        return step(stack)
    except Failure as failure:
        warn(f"{failure}.")
        return False


def protect(stack):
    stack.aws("cloudformation", "update-termination-protection", "--enable-termination-protection", "--stack-name",
              stack.name)
    say("The stack is protected from deletion. novi-bridge remove lifts that.")
    return True


def check_subscription(stack):
    """Says if alarms reach a person. The email that has to be confirmed arrives only now, so that isn't a failure."""
    is_subscribed, subscription = facts.describe_subscriptions(stack)
    if is_subscribed:
        say(f"Subscriptions of the alarms: {subscription}.")
    else:
        warn(f"subscriptions of the alarms: {subscription}.")
    return True


def check_health(stack):
    is_up, health = facts.health(stack, HEALTH_ATTEMPTS)
    if is_up:
        say(f"Health: {health}.")
        return True
    warn(f"the API isn't healthy: {health}. novi-bridge doctor looks for the cause.")
    if "DomainTarget" in stack.outputs:
        say(f"The domain name must be a CNAME or an alias of {stack.outputs['DomainTarget']}. "
            "A new record takes a while.")
    return False


def check_mirror(stack):
    """Makes a dry run. What it finds about lists is for the operator to judge, and isn't a failed deployment."""
    if functions.is_stopped(stack, "mirror"):
        warn("the mirror is stopped, and stays so: novi-bridge start.")
        return True
    say("A dry run of the mirror, which takes minutes if there are thousands of members:")
    run.print_report(extract_report(invoke(stack, {"dry_run": True})))
    if not facts.writes(stack):
        say("The mirror writes nothing until: novi-bridge deploy --set MirrorApply=true")
    return True
