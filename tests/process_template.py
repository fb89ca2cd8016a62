"""Prints template.yaml as CloudFormation would process it, once for each set of parameters.

usage: process_template.py TEMPLATE '[{"Parameter": "value"}, …]'

A set that CloudFormation would reject gives {"Error": "reason"} instead.

SAM's own translator expands the serverless resources. Conditions, rules and
functions are then evaluated as far as possible without an AWS account: a
reference to a resource becomes its name, and an attribute "Name.Attribute".
"""

import json
import os
import re
import sys

from samcli.yamlhelper import yaml_parse
from samtranslator.translator.transform import transform

PSEUDO = {
    "AWS::AccountId": "123456789012",
    "AWS::Partition": "aws",
    "AWS::Region": "us-east-1",
    "AWS::StackName": "bridge",
    "AWS::URLSuffix": "amazonaws.com",
}
ATTRIBUTES = ("DeletionPolicy", "UpdateReplacePolicy", "DependsOn")
NO_VALUE = object()


class Rejected(Exception):
    """A parameter is unknown or invalid, or an assertion of a rule fails."""


class NoManagedPolicies:
    """Stands in for the loader of managed policies. The template uses none, so AWS isn't queried."""

    def load(self):
        return {}


def main():
    # The translator requires a region, although it makes no calls to AWS.
    os.environ["AWS_DEFAULT_REGION"] = PSEUDO["AWS::Region"]
    path, all_overrides = sys.argv[1], json.loads(sys.argv[2])
    with open(path, encoding="utf-8") as file:
        text = file.read()
    json.dump([process_or_error(yaml_parse(text), overrides) for overrides in all_overrides], sys.stdout)


def process_or_error(template, overrides):
    try:
        return process(template, overrides)
    except Rejected as error:
        return {"Error": str(error)}


def process(template, overrides):
    parameters = {}
    for name, parameter in template["Parameters"].items():
        value = overrides.pop(name, parameter.get("Default"))
        if value is None:
            raise Rejected(f"parameter {name} is missing: it has no default")
        if parameter["Type"] == "CommaDelimitedList":
            value = value.split(",")
        elif value not in parameter.get("AllowedValues", [value]):
            raise Rejected(f"parameter {name}={value} is invalid: expected one of {parameter['AllowedValues']}")
        pattern = re.compile(parameter.get("AllowedPattern", ""))
        for item in value if isinstance(value, list) else [value]:
            if pattern.pattern and not pattern.fullmatch(str(item)):
                text = ",".join(value) if isinstance(value, list) else value
                raise Rejected(f"parameter {name}={text} is invalid: expected the pattern {pattern.pattern}")
        parameters[name] = value
    if overrides:
        raise Rejected(f"unknown parameters: {', '.join(overrides)}")
    conditions, mappings, rules = template["Conditions"], template["Mappings"], template["Rules"]
    def condition(name):
        return evaluate(conditions[name])

    def reference(name):
        if name == "AWS::NoValue":
            return NO_VALUE
        if name in PSEUDO:
            return PSEUDO[name]
        return parameters.get(name, name)

    def substitute(text):
        variables = {}
        if isinstance(text, list):
            text, variables = text[0], {name: evaluate(value) for name, value in text[1].items()}

        def replace(match):
            name = match.group(1)
            if name in variables:
                return str(variables[name])
            return name if "." in name else str(reference(name))

        return re.sub(r"\$\{([^}!]+)\}", replace, text)

    functions = {
        "Ref": reference,
        "Condition": condition,
        "Fn::If": lambda value: evaluate(value[1] if condition(value[0]) else value[2]),
        # CloudFormation compares numbers as text.
        "Fn::Equals": lambda value: str(evaluate(value[0])) == str(evaluate(value[1])),
        "Fn::Contains": lambda value: evaluate(value[1]) in evaluate(value[0]),
        "Fn::EachMemberEquals": lambda value: all(item == evaluate(value[1]) for item in evaluate(value[0])),
        "Fn::Not": lambda value: not evaluate(value[0]),
        "Fn::And": lambda value: all(map(evaluate, value)),
        "Fn::Or": lambda value: any(map(evaluate, value)),
        "Fn::Join": lambda value: value[0].join(map(str, evaluate(value[1]))),
        "Fn::Split": lambda value: evaluate(value[1]).split(value[0]),
        "Fn::Select": lambda value: evaluate(value[1])[int(value[0])],
        "Fn::FindInMap": lambda value: mappings[value[0]][str(evaluate(value[1]))][value[2]],
        "Fn::GetAZs": lambda _: ["us-east-1a", "us-east-1b"],
        "Fn::GetAtt": lambda value: value if isinstance(value, str) else ".".join(value),
        "Fn::Sub": substitute,
    }

    def evaluate(value):
        if isinstance(value, dict):
            # A policy statement also has a `Condition` key, but its value isn't a condition name.
            if len(value) == 1 and (name := next(iter(value))) in functions and not (
                name == "Condition" and not isinstance(value[name], str)
            ):
                return functions[name](value[name])
            items = ((key, evaluate(item)) for key, item in value.items())
            return {key: item for key, item in items if item is not NO_VALUE}
        if isinstance(value, list):
            return [item for item in map(evaluate, value) if item is not NO_VALUE]
        return value

    for name, rule in rules.items():
        for assertion in rule["Assertions"]:
            if evaluate(rule.get("RuleCondition", True)) and not evaluate(assertion["Assert"]):
                raise Rejected(f"rule {name}: {assertion['AssertDescription']}")

    for resource in template["Resources"].values():
        # The location where `sam deploy` would have uploaded the build.
        if "CodeUri" in resource.get("Properties", {}):
            resource["Properties"]["CodeUri"] = "s3://bucket/code"
    template = transform(template, {}, NoManagedPolicies())
    resources = {}
    for name, resource in template["Resources"].items():
        if "Condition" not in resource or condition(resource["Condition"]):
            kept = {key: resource[key] for key in ATTRIBUTES if key in resource}
            resources[name] = {"Type": resource["Type"], "Properties": evaluate(resource.get("Properties", {})), **kept}
    outputs = {
        name: evaluate(output["Value"])
        for name, output in template["Outputs"].items()
        if "Condition" not in output or condition(output["Condition"])
    }
    return {"Resources": resources, "Outputs": outputs}


if __name__ == "__main__":
    main()
