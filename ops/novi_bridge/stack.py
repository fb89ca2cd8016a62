"""The stack that a command is about: its name, its region, and what AWS says about it."""

import os

from novi_bridge import aws, memory
from novi_bridge.errors import AwsError, Failure
from novi_bridge.template import Parameter

DEFAULT_NAME = "novi-bridge"
# A stack in one of these states has no values: it doesn't exist, or its first change set was never executed.
EMPTY = {"", "REVIEW_IN_PROGRESS", "DELETE_COMPLETE"}
# What each version's template has, and no other application's.
OWN_PARAMETERS = {"ParameterPrefix", "MirrorApply"}
OWN_OUTPUTS = {"MirrorFunction", "MirrorWrites"}


class Stack:
    """The stack of the command line, or the remembered one."""

    # What `select` was given. The module of the SSM parameters makes its stack without arguments.
    _selected = (None, None)

    @classmethod
    def select(cls, name, region):
        """Sets the stack of this command."""
        cls._selected = (name, region)

    def __init__(self):
        name, region = self._selected
        known = [stack for stack in memory.stacks()
                 if name in (None, stack[0]) and (None in (region, stack[1]) or region == stack[1])]
        if len({stack[0] for stack in known}) > 1:
            raise Failure("several stacks were deployed from this folder. Add one of: "
                          + ", ".join(sorted({f"--stack {stack[0]}" for stack in known})))
        if len(known) > 1:
            raise Failure(f"{known[0][0]} was deployed to several regions from this folder. Add one of: "
                          + ", ".join(sorted(f"--region {stack[1]}" for stack in known)))
        remembered = known[0] if known else (None, None)
        self.name = name or remembered[0] or DEFAULT_NAME
        self.region = (region or remembered[1] or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
                       or configured_region())
        self._description = None

    def options(self):
        """Returns the options that named the stack, for a hint at another command."""
        return "".join(f" {option} {value}" for option, value in zip(("--stack", "--region"), self._selected) if value)

    def environment(self):
        """Returns the environment for every program that calls AWS. It sets the stack's region."""
        return aws.environment(self.region)

    def aws(self, *arguments, timeout=aws.TIMEOUT_SECONDS):
        """Returns what the AWS CLI answers, parsed."""
        return aws.call(arguments, self.environment(), timeout)

    def describe(self, again=False):
        """Returns what CloudFormation says about the stack, or an empty dict if it doesn't exist."""
        if self._description is None or again:
            try:
                found = self.aws("cloudformation", "describe-stacks", "--stack-name", self.name)["Stacks"]
            except AwsError as error:
                if error.code != "ValidationError" or "does not exist" not in str(error):
                    raise
                found = []
            self._description = found[0] if found else {}
        return self._description

    @property
    def status(self):
        return self.describe().get("StackStatus", "")

    @property
    def is_deployed(self):
        """True if there is a stack with something in it: not one whose first change set was never executed."""
        return self.status not in EMPTY | {"ROLLBACK_COMPLETE"}

    @property
    def parameters(self):
        """The values of the template's parameters, also those of a deployment that failed. Empty before the first."""
        if self.status in EMPTY:
            return {}
        entries = self.describe().get("Parameters", [])
        return {entry["ParameterKey"]: entry.get("ParameterValue", "") for entry in entries}

    @property
    def outputs(self):
        return outputs_of(self.describe())

    def resource(self, logical_id):
        """Returns the physical id of a resource, or None if the stack doesn't have it."""
        try:
            found = self.aws("cloudformation", "describe-stack-resource", "--stack-name", self.name,
                             "--logical-resource-id", logical_id)
        except AwsError as error:
            if error.code == "ValidationError":
                return None
            raise
        return found["StackResourceDetail"].get("PhysicalResourceId")

    def others(self):
        """Returns the names of the other stacks of novi-bridge in this region."""
        found = self.aws("cloudformation", "describe-stacks")["Stacks"]
        return [entry["StackName"] for entry in found
                if entry["StackName"] != self.name and OWN_OUTPUTS <= outputs_of(entry).keys()]

    def template_parameters(self, known):
        """Returns the parameters of the deployed template. CloudFormation tells less about them than `known` does."""
        found = self.aws("cloudformation", "get-template-summary", "--stack-name", self.name)["Parameters"]
        deployed = {}
        for entry in found:
            name = entry["ParameterKey"]
            allowed = tuple(entry.get("ParameterConstraints", {}).get("AllowedValues", ()))
            parameter = known.get(name) or Parameter(name, entry["ParameterType"])
            deployed[name] = parameter._replace(type=entry["ParameterType"], allowed=allowed)
        return deployed

    def require(self):
        """Ends the command if the stack isn't deployed."""
        if not self.is_deployed:
            state = f" It is in {self.status}." if self.status else ""
            raise Failure(f"the stack {self.name} isn't deployed in {self.region}.{state} "
                          "Deploy it (novi-bridge deploy), or name another one with --stack and --region")
        self.check_own()

    def check_own(self):
        """Ends the command if the stack is one of another application."""
        names = {entry["ParameterKey"] for entry in self.describe().get("Parameters", [])}
        # Before the end of its first deployment, a stack has no outputs.
        is_complete = self.status == "CREATE_COMPLETE" or self.status.startswith("UPDATE_")
        is_own = OWN_PARAMETERS <= names and (not is_complete or "MirrorFunction" in self.outputs)
        if (names or self.status not in EMPTY) and not is_own:
            raise Failure(f"the stack {self.name} in {self.region} isn't one of novi-bridge. "
                          "Name another one with --stack")


def outputs_of(description):
    return {entry["OutputKey"]: entry.get("OutputValue", "") for entry in description.get("Outputs", [])}


def configured_region():
    """Returns the region of the profile, or None."""
    completed = aws.run(["configure", "get", "region"], aws.environment(None), timeout=30)
    return completed.stdout.strip() or None
