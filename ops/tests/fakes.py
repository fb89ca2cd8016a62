"""What the `aws` and `sam` of the tests do: they record how they were called, and act on a cloud in a JSON file."""

import json
import os
import re
import signal
import sys
import time

FOLDER = os.environ.get("FAKE_CLOUD", "")
STACK_ID = "arn:aws:cloudformation:us-east-1:123456789012:stack/{}/1"


class Rejected(Exception):
    """An error of AWS, as its code and message."""


def path(name):
    return os.path.join(FOLDER, name)


def load():
    with open(path("cloud.json"), encoding="utf-8") as file:
        return json.load(file)


def save(cloud):
    with open(path("cloud.json"), "w", encoding="utf-8") as file:
        json.dump(cloud, file)


def record(program, arguments, text=None):
    with open(path("calls.jsonl"), "a", encoding="utf-8") as file:
        file.write(json.dumps([program, *arguments] if text is None else [program, *arguments, {"stdin": text}]) + "\n")


def interrupt_if_asked(cloud, operation):
    """Interrupts the command that waits for this program, like Ctrl-C once AWS has done what was asked."""
    if operation in cloud["interrupts"]:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)


def option(arguments, name):
    return arguments[arguments.index(name) + 1] if name in arguments else None


def options(arguments, name):
    """Returns all values of an option."""
    values = []
    for value in arguments[arguments.index(name) + 1:]:
        if value.startswith("--"):
            break
        values.append(value)
    return values


def add_event(cloud, stack, status, resource=None, reason=""):
    cloud["events"].insert(0, {
        "EventId": str(len(cloud["events"])), "StackId": stack["StackId"],
        "LogicalResourceId": resource or stack["StackName"],
        "PhysicalResourceId": stack["StackId"] if resource is None else resource, "ResourceStatus": status,
        "ResourceStatusReason": reason,
        "ResourceType": "AWS::CloudFormation::Stack" if resource is None else "AWS::EC2::VPC"})


def stack_of(cloud, arguments, name="--stack-name"):
    wanted = option(arguments, name)
    for stack in cloud["stacks"]:
        if wanted in (stack["StackName"], stack["StackId"]):
            return stack
    raise Rejected("ValidationError", f"Stack with id {wanted} does not exist")


def pairs(values, key, value):
    return [{key: name, value: text} for name, text in values.items()]


def described(stack):
    return {**stack, "Parameters": pairs(stack["Parameters"], "ParameterKey", "ParameterValue"),
            "Outputs": pairs(stack["Outputs"], "OutputKey", "OutputValue")}


def describe_stacks(cloud, arguments):
    stacks = [stack_of(cloud, arguments)] if "--stack-name" in arguments else cloud["stacks"]
    return {"Stacks": [described(stack) for stack in stacks]}


def add_change_set(cloud, stack, parameters):
    """Adds one that fails if it has the stack's own parameters and the functions are the same."""
    number = len(cloud["sets"])
    is_empty = parameters == stack["Parameters"] and not cloud["has_new_code"]
    change_set = {"ChangeSetId": f"set{number}", "CreationTime": f"2026-01-01T00:00:{number:02}Z",
                  "stack": stack["StackName"],
                  "parameters": parameters, "Status": "FAILED" if is_empty else "CREATE_COMPLETE",
                  "StatusReason": "The submitted information didn't contain changes." if is_empty else "",
                  "Changes": [{"ResourceChange": {"Action": "Modify", "LogicalResourceId": "Mirror",
                                                  "ResourceType": "AWS::Lambda::Function", "Replacement": "False"}}]}
    cloud["sets"].append(change_set)
    return change_set


def set_of(cloud, arguments):
    wanted = option(arguments, "--change-set-name")
    for change_set in cloud["sets"]:
        if wanted in (change_set["ChangeSetId"], change_set.get("name")):
            return change_set
    raise Rejected("ChangeSetNotFound", f"ChangeSet [{wanted}] does not exist")


def list_change_sets(cloud, arguments):
    stack = stack_of(cloud, arguments)
    return {"Summaries": [entry for entry in cloud["sets"] if entry["stack"] == stack["StackName"]]}


def create_change_set(cloud, arguments):
    stack = stack_of(cloud, arguments)
    parameters = {}
    for entry in json.loads(option(arguments, "--parameters")):
        name = entry["ParameterKey"]
        if name not in stack["Parameters"]:
            raise Rejected("ValidationError", f"Parameters: [{name}] do not exist in the template")
        parameters[name] = stack["Parameters"][name] if entry.get("UsePreviousValue") else entry["ParameterValue"]
    return {"Id": add_change_set(cloud, stack, parameters)["ChangeSetId"], "StackId": stack["StackId"]}


def describe_change_set(cloud, arguments):
    return set_of(cloud, arguments)


def delete_change_set(cloud, arguments):
    cloud["sets"].remove(set_of(cloud, arguments))


def execute_change_set(cloud, arguments):
    change_set = set_of(cloud, arguments)
    stack = stack_of(cloud, arguments)
    is_new = stack["StackStatus"] == "REVIEW_IN_PROGRESS"
    kind = "CREATE" if is_new else "UPDATE"
    add_event(cloud, stack, f"{kind}_IN_PROGRESS")
    failure = cloud["failure"]
    if failure:
        add_event(cloud, stack, f"{kind}_FAILED", *failure)
        add_event(cloud, stack, f"{kind}_FAILED", "Network", "Resource creation cancelled")
        status = "ROLLBACK_COMPLETE" if is_new else "UPDATE_ROLLBACK_COMPLETE"
        if is_new:
            stack["Parameters"] = change_set["parameters"]
    else:
        add_event(cloud, stack, f"{kind}_COMPLETE", "Mirror")
        stack["Parameters"] = change_set["parameters"]
        stack["Outputs"] = cloud["outputs"]
        stack["Tags"] = change_set.get("tags", stack.get("Tags", []))
        status = f"{kind}_COMPLETE"
    stack["StackStatus"] = status
    add_event(cloud, stack, status)
    cloud["sets"].remove(change_set)


def describe_stack_events(cloud, arguments):
    wanted = option(arguments, "--stack-name")
    return {"StackEvents": [event for event in cloud["events"] if wanted in (event["StackId"],
                                                                             event["StackId"].split("/")[1])]}


def delete_stack(cloud, arguments):
    stack = stack_of(cloud, arguments)
    if stack["EnableTerminationProtection"]:
        raise Rejected("ValidationError", "Stack cannot be deleted while TerminationProtection is enabled")
    cloud["stacks"].remove(stack)
    add_event(cloud, stack, "DELETE_COMPLETE")


def update_termination_protection(cloud, arguments):
    stack_of(cloud, arguments)["EnableTerminationProtection"] = "--enable-termination-protection" in arguments


def get_template_summary(cloud, arguments):
    stack = stack_of(cloud, arguments)
    return {"Parameters": [{"ParameterKey": name, **cloud["template"].get(name, {"ParameterType": "String"})}
                           for name in stack["Parameters"]]}


def describe_stack_resource(cloud, arguments):
    stack_of(cloud, arguments)
    return {"StackResourceDetail": {"PhysicalResourceId": f"physical-{option(arguments, '--logical-resource-id')}"}}


def put_function_concurrency(cloud, arguments):
    cloud["concurrency"][option(arguments, "--function-name")] = int(option(arguments,
                                                                            "--reserved-concurrent-executions"))


def delete_function_concurrency(cloud, arguments):
    cloud["concurrency"].pop(option(arguments, "--function-name"), None)


def get_function_concurrency(cloud, arguments):
    name = option(arguments, "--function-name")
    return {"ReservedConcurrentExecutions": cloud["concurrency"][name]} if name in cloud["concurrency"] else {}


def invoke(cloud, arguments):
    with open(arguments[-3] if arguments[-2] == "--output" else arguments[-1], "w", encoding="utf-8") as file:
        # The last result is that of all further invocations.
        json.dump(cloud["results"].pop(0) if len(cloud["results"]) > 1 else cloud["results"][0], file)
    return {"StatusCode": 200}


def get_parameters(cloud, arguments):
    return [name for name in options(arguments, "--names") if name in cloud["ssm"]]


def get_parameters_by_path(cloud, arguments):
    return [name for name in cloud["ssm"] if name.startswith(option(arguments, "--path") + "/")]


def delete_parameters(cloud, arguments):
    names = options(arguments, "--names")
    cloud["ssm"] = [name for name in cloud["ssm"] if name not in names]
    return {"DeletedParameters": names}


def get_role(cloud, _arguments):
    if not cloud["has_role"]:
        raise Rejected("NoSuchEntity", "The role with name AWSServiceRoleForElastiCache cannot be found.")
    return {"Role": {}}


def create_service_linked_role(cloud, _arguments):
    cloud["has_role"] = True
    return {"Role": {}}


HANDLERS = {handler.__name__.replace("_", "-"): handler for handler in [
    describe_stacks, list_change_sets, create_change_set, describe_change_set, delete_change_set, execute_change_set,
    describe_stack_events, delete_stack, update_termination_protection, get_template_summary, describe_stack_resource,
    put_function_concurrency, delete_function_concurrency, get_function_concurrency, invoke, get_parameters,
    get_parameters_by_path, delete_parameters, get_role, create_service_linked_role]}


def aws(arguments):
    text = sys.stdin.read() if "--payload" in arguments else None
    record("aws", arguments, text)
    cloud = load()
    operation = arguments[1]
    # An error can also be that of one call only: "describe-stack-events 2" is the second.
    number = cloud["counts"][operation] = cloud["counts"].get(operation, 0) + 1
    save(cloud)
    for name in (operation, f"{operation} {number}"):
        if name in cloud["errors"]:
            sys.exit(f"\n{cloud['errors'][name]}")
    if operation == "get":
        sys.exit(1)
    try:
        answer = cloud["answers"][operation] if operation in cloud["answers"] else HANDLERS[operation](cloud, arguments)
    except Rejected as rejected:
        code, message = rejected.args
        name = "".join(word.title() for word in operation.split("-"))
        sys.exit(f"\nAn error occurred ({code}) when calling the {name} operation: {message}")
    save(cloud)
    interrupt_if_asked(cloud, operation)
    if answer is not None:
        print(json.dumps(answer))


def sam(arguments):
    record("sam", arguments)
    if arguments[0] != "deploy":
        return
    cloud = load()
    name = option(arguments, "--stack-name")
    parameters = dict(re.fullmatch(r'(\w+)="(.*)"', text, re.DOTALL).groups()
                      for text in options(arguments, "--parameter-overrides"))
    try:
        stack = stack_of(cloud, arguments)
    except Rejected:
        stack = {"StackName": name, "StackId": STACK_ID.format(name), "StackStatus": "REVIEW_IN_PROGRESS",
                 "Parameters": {},
                 "Outputs": {}, "EnableTerminationProtection": False}
        cloud["stacks"].append(stack)
        add_event(cloud, stack, "REVIEW_IN_PROGRESS")
    tags = dict(re.fullmatch(r'"([^"]+)"="([^"]*)"', text).groups() for text in options(arguments, "--tags"))
    add_change_set(cloud, stack, parameters)["tags"] = pairs(tags, "Key", "Value")
    save(cloud)
    interrupt_if_asked(cloud, "sam deploy")
