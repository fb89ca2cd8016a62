"""Reads how a deployed stack is."""

import datetime
import json
import time

from novi_bridge.errors import AwsError

LEDGER_KEY = "ledger"
# The end of a run is logged this long after its start at most.
RUN_SECONDS = 900


def health(stack, attempts=1):
    """Returns True if members can be verified, and a description."""
    # An HTTP client takes half of the time in which a command starts, and most commands don't need it.
    from novi_bridge import health as api
    return api.check(stack, attempts)


def subscriptions(stack):
    """Returns the number of confirmed and of unconfirmed subscriptions of the alarm topic."""
    topic = stack.resource("Alarms")
    found = stack.aws("sns", "list-subscriptions-by-topic", "--topic-arn", topic)["Subscriptions"] if topic else []
    pending = sum(entry["SubscriptionArn"] == "PendingConfirmation" for entry in found)
    return len(found) - pending, pending


def describe_subscriptions(stack):
    """Returns True if alarms reach a person, and a description."""
    confirmed, pending = subscriptions(stack)
    if pending:
        return False, f"{pending} waits for its confirmation: open the email that AWS sent to it"
    if not confirmed:
        return False, "no one gets the alarms: novi-bridge deploy --set AlarmEmail=…"
    return True, f"{confirmed} confirmed"


def alarms(stack):
    """Returns the names of the stack's alarms that are in ALARM."""
    prefix = f"{stack.name} "
    found = stack.aws("cloudwatch", "describe-alarms", "--alarm-name-prefix", prefix, "--state-value", "ALARM")
    return [entry["AlarmName"][len(prefix):] for entry in found.get("MetricAlarms", [])]


def schedule(stack):
    """Returns True if the mirror's schedule is enabled, and a description."""
    found = stack.aws("scheduler", "get-schedule", "--name", f"{stack.name}-mirror")
    is_enabled = found["State"] == "ENABLED"
    zone = found.get("ScheduleExpressionTimezone", "UTC")
    return is_enabled, f"{found['ScheduleExpression']}, {zone}{'' if is_enabled else ', disabled'}"


def writes(stack):
    return stack.parameters.get("MirrorApply") == "true"


def period(stack):
    return int(stack.parameters.get("MirrorPeriodSeconds") or 3600)


def last_run(stack):
    """Returns the time and the report of the last run that is in the log, or None."""
    since = time.time() - 2 * period(stack) - RUN_SECONDS
    try:
        found = stack.aws("logs", "filter-log-events", "--log-group-name", f"/aws/lambda/{stack.name}-mirror",
                          "--filter-pattern", '{ $.message = "run completed" }', "--start-time", str(int(since * 1000)))
    except AwsError as error:
        if error.code == "ResourceNotFoundException":
            return None
        raise
    events = found.get("events", [])
    if not events:
        return None
    latest = max(events, key=lambda event: event["timestamp"])
    report = json.loads(json.loads(latest["message"])["report"])
    return datetime.datetime.fromtimestamp(latest["timestamp"] / 1000, datetime.timezone.utc), report


def ledger_age(stack):
    """Returns the seconds since the ledger was written, or None if it doesn't exist."""
    bucket = stack.outputs.get("LedgerBucket")
    if not bucket:
        return None
    try:
        found = stack.aws("s3api", "head-object", "--bucket", bucket, "--key", LEDGER_KEY)
    except AwsError as error:
        if error.code == "404":
            return None
        raise
    return (datetime.datetime.now(datetime.timezone.utc) - parse_time(found["LastModified"])).total_seconds()


def parse_time(text):
    """Returns the time of an object. Version 1 of the AWS CLI prints it as HTTP does, and version 2 as RFC 3339."""
    if text[:1].isdigit():
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return datetime.datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=datetime.timezone.utc)


def duration(seconds):
    """Returns a duration in its largest unit."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'' if number == 1 else 's'}"
    return "less than a minute"
