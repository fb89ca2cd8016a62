"""Checks everything that can be wrong with a deployment, and says how to fix it. Changes nothing.

Exits with 1 if something is wrong.
"""

from typing import NamedTuple, Optional

from novi_bridge import facts, functions, preflight, run, source, values
from novi_bridge.errors import UNEXPECTED, AwsError, Failure
from novi_bridge.invoke import extract_report, invoke
from novi_bridge.terminal import say

OK, NOTE, PROBLEM = "ok", "note", "problem"


class Finding(NamedTuple):
    severity: str
    text: str
    fix: Optional[str] = None


def add_arguments(parser):
    parser.add_argument("--no-invoke", action="store_true", help="make no dry run of the mirror, which takes minutes")


def main(stack, arguments):
    stack.require()
    checks = [*CHECKS, *([] if arguments.no_invoke else [check_mirror])]
    findings = [finding for check in checks for finding in findings_of(check, stack)]
    problems = sum(finding.severity == PROBLEM for finding in findings)
    say(f"{problems or 'no'} problem{'' if problems == 1 else 's'}")
    return problems > 0


def findings_of(check, stack):
    """Runs a check, and prints what it found at once."""
    try:
        findings = list(check(stack))
    except AwsError as error:
        findings = [Finding(PROBLEM, f"{check.__doc__.rstrip('.')}: can't be checked", str(error))]
    except UNEXPECTED:
        findings = [Finding(PROBLEM, f"{check.__doc__.rstrip('.')}: can't be checked", "update the AWS CLI")]
    for severity, text, fix in findings:
        say(f"{severity.ljust(len(PROBLEM))}  {text}", hanging=len(PROBLEM) + 2)
        if fix:
            say(f"Fix: {fix}", indent=len(PROBLEM) + 2, hanging=5)
    return findings


def check_state(stack):
    """Stack state."""
    status = stack.status
    if status.endswith("_IN_PROGRESS"):
        yield Finding(NOTE, f"CloudFormation is working on the stack ({status})", "wait until it is done")
    elif status.endswith("_FAILED"):
        yield Finding(PROBLEM, f"the stack is in {status}", "novi-bridge deploy says what to do about it")
    elif status == "UPDATE_ROLLBACK_COMPLETE":
        yield Finding(NOTE, "the last deployment failed, and the stack is as it was before", "deploy again")
    else:
        yield Finding(OK, f"the stack {stack.name} in {stack.region} is in {status}")
    if not stack.describe().get("EnableTerminationProtection"):
        yield Finding(PROBLEM, "the stack isn't protected from deletion",
                      "aws cloudformation update-termination-protection --enable-termination-protection "
                      f"--stack-name {stack.name} --region {stack.region}")


def check_version(stack):
    """Version."""
    deployed, own = stack.outputs.get("Version"), source.version()
    if deployed == own:
        yield Finding(OK, f"version {own} is deployed")
    else:
        yield Finding(NOTE, f"version {deployed or 'without a number'} is deployed, and this folder has {own}",
                      "novi-bridge deploy upgrades the stack")


def check_parameters(stack):
    """SSM parameters."""
    prefix = stack.parameters.get("ParameterPrefix", "/idaa")
    missing = preflight.missing_parameters(stack, prefix)
    if missing:
        yield Finding(PROBLEM, f"required parameters are missing below {prefix}: {', '.join(missing)}",
                      "novi-bridge parameters")
    else:
        yield Finding(OK, f"all required parameters exist below {prefix}")


def check_values(stack):
    """Settings."""
    live = stack.parameters
    try:
        values.check_combination(live)
    except Failure as failure:
        yield Finding(PROBLEM, str(failure), "novi-bridge deploy --set")
    for warning in values.warnings(live, live):
        yield Finding(NOTE, warning, "novi-bridge deploy --set")


def check_functions(stack):
    """Functions."""
    for name in functions.NAMES:
        if functions.is_stopped(stack, name):
            yield Finding(PROBLEM, f"{name} is stopped", f"novi-bridge start {name}")
        else:
            yield Finding(OK, f"{name} isn't stopped")


def check_quota(stack):
    """Lambda quota."""
    if stack.parameters.get("ReserveConcurrency") == "true":
        return
    unreserved = preflight.unreserved_concurrency(stack)
    if unreserved > preflight.UNRESERVABLE and functions.is_stopped(stack, "mirror"):
        yield Finding(NOTE, "no instance is reserved for the mirror, although the Lambda quota has room for it",
                      "novi-bridge start, and only then novi-bridge deploy --set ReserveConcurrency=true")
    elif unreserved > preflight.UNRESERVABLE:
        yield Finding(NOTE, "no instance is reserved for the mirror, although the Lambda quota has room for it",
                      "novi-bridge deploy --set ReserveConcurrency=true")
    else:
        yield Finding(NOTE, f"the Lambda quota leaves {unreserved} instances, too few to reserve one for the mirror",
                      "ask AWS to raise the quota (Service Quotas, Lambda, Concurrent executions)")


def check_cache(stack):
    """ElastiCache's role."""
    if stack.parameters.get("Cache") == "serverless" and preflight.has_elasticache_role(stack) is False:
        yield Finding(PROBLEM, "ElastiCache's service-linked role is missing",
                      "aws iam create-service-linked-role --aws-service-name elasticache.amazonaws.com")


def check_schedule(stack):
    """Schedule."""
    is_enabled, text = facts.schedule(stack)
    if is_enabled:
        yield Finding(OK, f"the mirror's schedule is {text}")
    else:
        yield Finding(PROBLEM, f"the mirror's schedule is {text}",
                      "enable it in the EventBridge console. novi-bridge stop and start leave it enabled")
    if not facts.writes(stack):
        yield Finding(NOTE, "the mirror writes nothing, so each run is a dry run",
                      "novi-bridge deploy --set MirrorApply=true, once a dry run looks right")


def check_alarms(stack):
    """Alarms."""
    names = facts.alarms(stack)
    for name in names:
        yield Finding(PROBLEM, f"the alarm {name} is on", f"docs/operations.md#{name}")
    if not names:
        yield Finding(OK, "no alarm is on")
    is_subscribed, text = facts.describe_subscriptions(stack)
    yield Finding(OK if is_subscribed else PROBLEM, f"subscriptions of the alarms: {text}")


def check_ledger(stack):
    """Ledger."""
    age, period = facts.ledger_age(stack), facts.period(stack)
    if age is None:
        yield Finding(NOTE, "the ledger doesn't exist yet", "the first run that writes makes it")
    elif age > 3 * period and facts.writes(stack):
        yield Finding(PROBLEM, f"the ledger was written {facts.duration(age)} ago, but a run is due every "
                      f"{facts.duration(period)}", "docs/operations.md#mirror-missing and #ledger-unavailable")
    else:
        yield Finding(OK, f"the ledger was written {facts.duration(age)} ago")


def check_health(stack):
    """Health."""
    is_up, text = facts.health(stack)
    if is_up and text.startswith("ok "):
        yield Finding(OK, f"the API's health is {text}")
    else:
        fix = "docs/operations.md explains each word. The log of verify has the reason"
        if "DomainTarget" in stack.outputs:
            fix += f". The domain must be a CNAME or an alias of {stack.outputs['DomainTarget']}"
        yield Finding(PROBLEM, f"the API isn't healthy: {text}", fix)


def check_mirror(stack):
    """Dry run of the mirror."""
    if functions.is_stopped(stack, "mirror"):
        return
    try:
        report = extract_report(invoke(stack, {"dry_run": True}))
    except Failure as failure:
        yield Finding(PROBLEM, str(failure), "novi-bridge probe says what is wrong with Novi and Mailman")
        return
    if run.is_good(report):
        yield Finding(OK, f"a dry run of the mirror ends as {report['status']}")
    else:
        yield Finding(PROBLEM, f"a dry run of the mirror ends as {report['status']}",
                      "novi-bridge run --dry-run says which list and why, and novi-bridge probe what to correct")


CHECKS = [check_state, check_version, check_parameters, check_values, check_functions, check_quota, check_cache,
          check_schedule, check_alarms, check_ledger, check_health]
