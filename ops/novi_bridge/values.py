"""The values of the template's parameters: those that were given with --set, and combinations that can't work."""

import re
import shlex

from novi_bridge.errors import Failure
from novi_bridge.template import hint

# The parameters that describe an existing cache, and an existing network.
EXISTING_CACHE = ["CacheId", "CacheUrl", "CacheIamUser"]
EXISTING_NETWORK = ["SubnetIds", "SecurityGroupIds"]
# Those of a network that the stack creates.
OWN_NETWORK = ["AllocationId"]
UNITS = {"minute": 60, "hour": 3600, "day": 86400}


def assignments(texts, words):
    """Returns what --set gives. `words` is several assignments in one text, quoted as in a shell."""
    try:
        texts = [*texts, *shlex.split(words)]
    except ValueError as error:
        raise Failure(f"reading SET failed: {error}. Quote it as in SET='A=b C=\"d e\"'") from None
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Failure(f"expected NAME=VALUE: {text}")
        if values.get(name, value) != value:
            raise Failure(f"{name} is given twice, with different values")
        values[name] = value
    return values


def check_names(given, parameters, what):
    """Ends the command if a name isn't one of the template's: CloudFormation's tools would ignore it."""
    for name in given:
        if name not in parameters:
            raise Failure(f"{name} is not a parameter of {what}{hint(name, parameters)}")


def check_values(given, parameters):
    for name, value in given.items():
        error = parameters[name].error(value) or form_error(name, value)
        if error:
            raise Failure(f"{name} is invalid: {error}")


def form_error(name, value):
    """Returns why a value can't work although the template takes it, or None."""
    if name == "AlarmEmail" and value and not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s.]+", value):
        return "expected an email address"
    if name == "DomainName" and value and not re.fullmatch(r"([a-z0-9*]([a-z0-9-]*[a-z0-9])?\.)+[a-z0-9-]+", value):
        return "expected a domain name such as members.example.org, in lower case"
    if name == "MirrorSchedule" and not re.fullmatch(r"(rate|cron|at)\(.+\)", value):
        return "expected an expression such as rate(1 hour) or cron(30 6 * * ? *)"
    return None


def check_combination(values):
    """Ends the command if the values can't work together, or would not do what they say."""
    def has(name):
        return bool(values.get(name))

    cache = values.get("Cache")
    for name in EXISTING_CACHE:
        if has(name) and cache != "existing":
            raise Failure(f"{name} needs Cache=existing. With Cache={cache}, it would be ignored"
                          f"{', and a new cache would be created' if cache == 'serverless' else ''}. "
                          f"Set Cache=existing, or {name}= (empty)")
    for name in EXISTING_NETWORK:
        if has(name) and not has("VpcId"):
            raise Failure(f"{name} needs VpcId. Without it, "
                          f"{'the functions have no network' if cache == 'none' else 'a new network would be created'}. "
                          f"Set VpcId, or {name}= (empty)")
    if has("VpcId") and not has("SubnetIds"):
        raise Failure("VpcId needs SubnetIds: two or three private subnets of it")
    for name in OWN_NETWORK:
        if has(name) and has("VpcId"):
            raise Failure(f"{name} is for a new network, but VpcId names an existing one. "
                          f"Set VpcId= (empty), or {name}= (empty)")
    if values.get("MonthlyBudget", "0") != "0" and not has("AlarmEmail"):
        raise Failure("MonthlyBudget needs AlarmEmail, the address that is told. Set it, or MonthlyBudget=0")
    if has("Zones") and len({zone.strip() for zone in values["Zones"].split(",")}) < 2:
        raise Failure("Zones is invalid: expected two availability zones")
    if cache == "existing":
        if not has("VpcId"):
            raise Failure("Cache=existing needs VpcId and SubnetIds: the network that has access to the cache")
        if has("CacheId") == has("CacheUrl"):
            raise Failure("Cache=existing needs either CacheId or CacheUrl")
        if has("CacheIamUser") and not has("CacheId"):
            raise Failure("CacheIamUser needs CacheId")
    if has("DomainName") != has("CertificateArn"):
        raise Failure("DomainName needs CertificateArn, the ARN of its certificate" if has("DomainName")
                      else "CertificateArn needs DomainName. Set it, or CertificateArn= (empty)")


def check_transition(live, values, is_old):
    """Ends the command if going from the live values to these leaves something behind.

    Up to the version that has the output Version, the template took the functions' network permissions away together
    with the network. Lambda then can't remove its interfaces, so that the subnets and the VPC stay for good.
    """
    if is_old and live.get("Cache", "none") != "none" and values["Cache"] == "none":
        raise Failure("the deployed version can't go to Cache=none: its template takes the network permissions away "
                      "before Lambda has left the network, and the network stays for good. First run novi-bridge "
                      f"deploy with Cache={live['Cache']}, then novi-bridge deploy --set Cache=none")


def warnings(live, values):
    """Returns what the operator should know before these values are deployed."""
    found = []
    rate = re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", values.get("MirrorSchedule", ""))
    period = values.get("MirrorPeriodSeconds")
    if rate and period and int(rate[1]) * UNITS[rate[2]] != int(period):
        found.append(f"MirrorSchedule is every {int(rate[1]) * UNITS[rate[2]]} seconds, but MirrorPeriodSeconds is "
                     f"{period}. Alarms and Novi's allowance go by MirrorPeriodSeconds. Set it to the same.")
    if creates_network(live) and not creates_network(values):
        found.append("The functions leave the stack's own network and its fixed address (output FixedAddress). If Novi "
                     "or Mailman admits only that address, they will refuse the functions.")
    return found


def creates_network(values):
    return values.get("Cache", "none") != "none" and not values.get("VpcId")
