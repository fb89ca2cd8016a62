"""Asks for the values of parameters, with the template's descriptions, before anything is built."""

from novi_bridge.terminal import ask, say
from novi_bridge.values import EXISTING_CACHE, EXISTING_NETWORK, OWN_NETWORK, form_error

PRICES = [
    ("serverless, in a new network", "58 to 61 USD: NAT gateway 33, its address 4, cache 6, metrics and alarms 15"),
    ("serverless, in an existing network", "22 to 24 USD: cache 6, metrics and alarms 15"),
    ("existing", "16 to 18 USD: metrics and alarms 15"),
    ("none", "16 to 18 USD: metrics and alarms 15 (no locks, no shared limits)"),
]
CLEAR = "-"


def ask_five(parameters, values):
    """Asks what has to be decided by the operator. Returns the values."""
    answers = dict(values)

    def ask_for(name):
        answers[name] = ask_parameter(parameters[name], answers[name])

    say("1. The cache. What the stack costs a month in us-east-1 (docs/operations/costs.md has the calculation):")
    for choice, price in PRICES:
        say(f"{choice}: {price}", indent=5, hanging=2)
    ask_for("Cache")
    if answers["Cache"] != "existing":
        answers.update({name: "" for name in EXISTING_CACHE})
    else:
        ask_for("CacheId")
        if answers["CacheId"]:
            answers["CacheUrl"] = ""
        else:
            ask_for("CacheUrl")
            answers["CacheIamUser"] = ""
    print("\n2. The network.")
    if answers["Cache"] == "none":
        say("None: without a cache, the functions need no network.", indent=3)
        answers.update({name: "" for name in ("VpcId", *EXISTING_NETWORK)})
    else:
        ask_for("VpcId")
        if answers["VpcId"]:
            ask_for("SubnetIds")
            answers.update({name: "" for name in OWN_NETWORK if name in answers})
        else:
            answers.update({name: "" for name in EXISTING_NETWORK})
    print("\n3. Alarms.")
    ask_for("AlarmEmail")
    print("\n4. Web pages.")
    ask_for("CorsAllowOrigins")
    print("\n5. The domain, if the API should have one of its own.")
    ask_for("DomainName")
    if answers["DomainName"]:
        ask_for("CertificateArn")
    else:
        answers["CertificateArn"] = ""
    return answers


def ask_all(parameters, values):
    """Asks for every parameter. Returns the values."""
    say("What the stack costs a month in us-east-1, by its Cache (docs/operations/costs.md has the calculation):")
    for choice, price in PRICES:
        say(f"{choice}: {price}", indent=2, hanging=2)
    return {name: ask_parameter(parameter, values[name]) for name, parameter in parameters.items()}


def ask_parameter(parameter, value):
    """Asks until the answer is valid. Enter keeps the value."""
    say(f"{parameter.name}: {parameter.description}.", indent=3, hanging=2)
    choices = f" ({', '.join(parameter.allowed)})" if parameter.allowed else ""
    can_be_empty = parameter.default == ""
    keys = f"Enter keeps {value}" if value else "Enter for none"
    if value and can_be_empty:
        keys += f", {CLEAR} makes it empty"
    while True:
        answer = ask(f"   {parameter.name}{choices} [{keys}]: ") or value
        if answer == CLEAR and can_be_empty:
            answer = ""
        error = parameter.error(answer) or form_error(parameter.name, answer)
        if not error:
            return answer
        say(f"That is invalid: {error}.", indent=3)
