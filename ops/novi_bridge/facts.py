"""Reads how a deployed stack is."""

import datetime
import email.utils
import json
import time
import urllib.error
import urllib.request

from novi_bridge.errors import AwsError

HEALTH_SECONDS = 15
# After a deployment, the first responses may come from the previous version, or not at all.
HEALTH_ATTEMPTS = 3
HEALTH_PAUSE_SECONDS = 5
MAX_BODY = 64 << 10
LEDGER_KEY = "ledger"
# The end of a run is logged this long after its start at most.
RUN_SECONDS = 900


def health(stack, attempts=1):
    """Asks the API for its health. Returns True if members can be verified, and a description."""
    url = f"{stack.outputs.get('ApiUrl', '')}/health"
    answer = (False, "the stack has no output ApiUrl")
    if not url.startswith(("https://", "http://")):
        return answer
    for attempt in range(attempts):
        if attempt:
            time.sleep(HEALTH_PAUSE_SECONDS)
        answer = ask_health(url)
        if answer[0]:
            break
    return answer


def ask_health(url):
    try:
        with urllib.request.urlopen(url, timeout=HEALTH_SECONDS) as response:
            status, body = response.status, response.read(MAX_BODY)
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read(MAX_BODY)
    except (OSError, ValueError) as error:
        return False, f"{url} doesn't answer: {getattr(error, 'reason', error)}"
    try:
        report = json.loads(body)
        checks = ", ".join(f"{name} {value}" for name, value in report["checks"].items())
        return status == 200, f"{report['status']} ({checks})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return False, f"{url} answers with {status}, but not with the API's report"


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
    """Returns the seconds since the ledger was written, or None if there is none."""
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
    """Returns the time of an object, which version 1 of the AWS CLI prints as it is in HTTP, and version 2 as RFC 3339."""
    if text[:1].isdigit():
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return email.utils.parsedate_to_datetime(text)


def duration(seconds):
    """Returns a duration in its largest unit."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'' if number == 1 else 's'}"
    return "less than a minute"
