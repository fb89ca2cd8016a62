"""Stops functions at once, and starts them again. Neither needs a deployment.

A deployment leaves a stopped function stopped, unless it changes ReserveConcurrency, which `deploy` refuses.
"""

from novi_bridge import functions
from novi_bridge.terminal import say

STOPPED = {
    "mirror": "The mirror is stopped: no run starts until novi-bridge start. A run that is under way ends by itself "
              "within 15 minutes. The alarm mirror-missing goes off when two runs are missing. A deployment leaves the "
              "mirror stopped, and can't change ReserveConcurrency until it is started.",
    "verify": "verify is stopped: every request gets an error (503), so no member gets in until novi-bridge start "
              "verify.",
}
STARTED = {
    "mirror": "The mirror is started: it runs at the next time of its schedule. Look first at what it would do: "
              "novi-bridge run --dry-run",
    "verify": "verify is started.",
}


def add_arguments(parser):
    parser.add_argument("function", nargs="?", choices=[*functions.NAMES, "all"], default="mirror",
                        help="the function (default: mirror)")


def chosen(arguments):
    return functions.NAMES if arguments.function == "all" else [arguments.function]


def stop(stack, arguments):
    # Without asking about the stack first: it has to work at once, and also while a deployment is under way.
    for name in chosen(arguments):
        functions.stop(stack, name)
        say(STOPPED[name])


def start(stack, arguments):
    stack.require()
    for name in chosen(arguments):
        if not functions.is_stopped(stack, name):
            say(f"{name} isn't stopped.")
            continue
        functions.start(stack, name)
        say(STARTED[name])
