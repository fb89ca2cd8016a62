"""The two functions of a stack. One with a reserved concurrency of 0 is stopped: Lambda starts no instance of it."""

NAMES = ["mirror", "verify"]


def function(stack, name):
    return f"{stack.name}-{name}"


def is_stopped(stack, name):
    found = stack.aws("lambda", "get-function-concurrency", "--function-name", function(stack, name))
    return found.get("ReservedConcurrentExecutions") == 0


def stop(stack, name):
    stack.aws("lambda", "put-function-concurrency", "--function-name", function(stack, name),
              "--reserved-concurrent-executions", "0")


def start(stack, name):
    """Restores the reserved concurrency that the template gives the function."""
    if name == "mirror" and stack.parameters.get("ReserveConcurrency", "true") == "true":
        stack.aws("lambda", "put-function-concurrency", "--function-name", function(stack, name),
                  "--reserved-concurrent-executions", "1")
    else:
        stack.aws("lambda", "delete-function-concurrency", "--function-name", function(stack, name))
