"""Checks what a deployment needs of the account, before anything is built."""

import re

from novi_bridge import functions, zones
from novi_bridge.aws import batches
from novi_bridge.errors import AwsError, Failure
from novi_bridge.terminal import confirm, say, warn
from novi_bridge.values import creates_network

# The names of the cache and its user derive from the stack's name.
MAX_STACK_NAME = 32
# AWS requires this many instances to stay unreserved, and the mirror reserves one.
UNRESERVABLE = 100
ELASTICACHE_ROLE = "AWSServiceRoleForElastiCache"


def check_name(name):
    """Ends the command if the names that derive from the stack's can't be used."""
    if len(name) > MAX_STACK_NAME or not re.fullmatch(r"[a-z]([a-z0-9]|-(?=[a-z0-9]))*", name):
        raise Failure(f"the stack name {name} is invalid: expected at most {MAX_STACK_NAME} lower-case letters, digits "
                      "and single hyphens, beginning with a letter, because the cache's name derives from it. "
                      "Add --stack, such as --stack novi-bridge")


def check_region(region):
    if not region:
        raise Failure("no AWS region is set. Add --region, such as --region us-east-1")
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", region):
        raise Failure(f"the region {region} is invalid: expected a code such as us-east-1")


def ssm_parameters():
    """Returns the names of all SSM parameters, and of the required ones."""
    # Here, because most commands don't need the HTTP client that it loads.
    from novi_bridge.parameters import PARAMETERS
    return [entry[0] for entry in PARAMETERS], [entry[0] for entry in PARAMETERS if entry[2]]


def existing_parameters(stack, prefix, names):
    """Returns the names that exist below the prefix. Values aren't decrypted, and only names are kept."""
    found = []
    for batch in batches(names):
        paths = [f"{prefix}/{name}" for name in batch]
        found += stack.aws("ssm", "get-parameters", "--names", *paths, "--query", "Parameters[].Name")
    return [name[len(prefix) + 1:] for name in found]


def missing_parameters(stack, prefix):
    required = ssm_parameters()[1]
    existing = existing_parameters(stack, prefix, required)
    return [name for name in required if name not in existing]


def check_parameters(stack, prefix):
    missing = missing_parameters(stack, prefix)
    if missing:
        # What `novi-bridge parameters` uses by itself.
        usual = stack.parameters.get("ParameterPrefix", "/idaa")
        raise Failure(f"SSM parameters are missing below {prefix} in {stack.region}: {', '.join(missing)}. Write them "
                      f"first: novi-bridge parameters{stack.options()}"
                      f"{'' if prefix == usual else f' --prefix {prefix}'}")


def unreserved_concurrency(stack):
    """Returns how many instances of the account's Lambda quota aren't reserved."""
    return stack.aws("lambda", "get-account-settings")["AccountLimit"]["UnreservedConcurrentExecutions"]


def unless_denied(check, *arguments):
    """Runs a check. An identity that may not read what it needs may be allowed to deploy anyway."""
    try:
        check(*arguments)
    except AwsError as error:
        if not error.is_denied:
            raise
        warn(f"a check was left out. {error}.")


def check_quota(stack, live, values, given):
    """Turns ReserveConcurrency off if the Lambda quota is too small for it, unless the operator asks for it."""
    if values["ReserveConcurrency"] != "true" or live.get("ReserveConcurrency") == "true":
        return
    unreserved = unreserved_concurrency(stack)
    if unreserved > UNRESERVABLE:
        return
    cause = (f"this account's Lambda quota leaves {unreserved} instances, too few to reserve one for the mirror, "
             f"because AWS keeps {UNRESERVABLE} unreserved")
    if "ReserveConcurrency" in given:
        raise Failure(f"ReserveConcurrency=true is not possible: {cause}. Ask AWS to raise the quota first")
    warn(f"{cause}. ReserveConcurrency is set to false. Ask AWS to raise the quota.")
    values["ReserveConcurrency"] = "false"


def check_stopped(stack, live, values):
    """Ends the command if the deployment would start a mirror that the operator has stopped."""
    if values["ReserveConcurrency"] != live.get("ReserveConcurrency") and functions.is_stopped(stack, "mirror"):
        raise Failure("the mirror is stopped, and changing ReserveConcurrency would start it. First: novi-bridge start"
                      f"{stack.options()}")


def check_zones(stack, live, values):
    """Sets Zones if the region's first two zones don't have what a network and cache of the stack's own need."""
    if not creates_network(values) or creates_network(live) or values["Zones"]:
        return
    suggested = zones.suggest(stack.region, zones.list_zones(stack))
    if suggested:
        values["Zones"] = ",".join(suggested)
        say(f"Zones is set to {values['Zones']}, because not both of the region's first two zones are known to have "
            "ElastiCache Serverless and Lambda.")


def has_elasticache_role(stack):
    """Returns None if that can't be read."""
    try:
        stack.aws("iam", "get-role", "--role-name", ELASTICACHE_ROLE)
        return True
    except AwsError as error:
        return False if error.code == "NoSuchEntity" else None


def check_elasticache_role(stack, values, is_confirmed):
    """Creates the role with which ElastiCache creates interfaces. An account that never had a cache lacks it."""
    if values["Cache"] != "serverless" or has_elasticache_role(stack) is not False:
        return
    command = ["iam", "create-service-linked-role", "--aws-service-name", "elasticache.amazonaws.com"]
    say(f"The account lacks ElastiCache's service-linked role, {ELASTICACHE_ROLE}. A cache needs it, and it costs "
        "nothing.")
    if not is_confirmed and not confirm("Create it?"):
        raise Failure(f"a cache needs ElastiCache's role. Run: aws {' '.join(command)}")
    stack.aws(*command)
