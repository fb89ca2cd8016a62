"""Reads the command line, and runs one subcommand."""

import argparse
import sys
from typing import Callable, NamedTuple, Optional

from novi_bridge import deploy, doctor, probe, remove, run, source, status, switch
from novi_bridge.errors import Failure
from novi_bridge.stack import Stack


class Command(NamedTuple):
    """A subcommand. Without `run`, it has a parser of its own."""

    help: str
    run: Optional[Callable] = None
    add_arguments: Optional[Callable] = None


COMMANDS = {
    "parameters": Command("write the secrets and mappings to SSM, make and remove API keys"),
    "deploy": Command("deploy the stack, upgrade it to this version, or change its parameters", deploy.main,
                      deploy.add_arguments),
    "status": Command("say how the stack is: version, schedule, last run, alarms, ledger", status.main),
    "doctor": Command("check everything that can be wrong, and say how to fix it", doctor.main, doctor.add_arguments),
    "probe": Command("read how the live Novi and Mailman are, and print what to fix; writes nothing", probe.main,
                     probe.add_arguments),
    "run": Command("run the mirror once and print its report", run.main, run.add_arguments),
    "stop": Command("stop a function at once, until it is started again", switch.stop, switch.add_arguments),
    "start": Command("start a function that was stopped", switch.start, switch.add_arguments),
    "remove": Command("delete the stack, and say what stays", remove.main, remove.add_arguments),
}


def make_parser():
    target = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # Without defaults, so that the subcommand's doesn't overwrite an option before it.
    target.add_argument("--stack", metavar="NAME", default=argparse.SUPPRESS,
                        help="the stack (default: the one that was deployed from this folder, or novi-bridge)")
    target.add_argument("--region", metavar="REGION", default=argparse.SUPPRESS,
                        help="the stack's AWS region (default: the one of that deployment, or AWS's default)")
    parser = argparse.ArgumentParser(prog="novi-bridge", parents=[target], allow_abbrev=False,
                                     description="Deploys and operates novi-bridge.")
    parser.add_argument("--version", action="version", version=f"novi-bridge {source.version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, parents=[target], help=command.help, allow_abbrev=False,
                                          description=f"{command.help[0].upper()}{command.help[1:]}.",
                                          add_help=command.run is not None)
        if command.add_arguments:
            command.add_arguments(subparser)
    return parser


def run_parameters(arguments):
    """Passes the arguments on, because this subcommand has a parser of its own."""
    # Here, because no other subcommand needs the HTTP client that it loads.
    from novi_bridge import parameters
    return parameters.main(arguments, Stack())


def run_command(argv):
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    command = COMMANDS[arguments.command]
    if rest and command.run:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    Stack.select(getattr(arguments, "stack", None), getattr(arguments, "region", None))
    return command.run(Stack(), arguments) if command.run else run_parameters(rest)


def main(argv=None):
    """Runs the command, and returns its exit code."""
    try:
        return int(run_command(argv) or 0)
    except Failure as failure:
        print(f"novi-bridge: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nnovi-bridge: interrupted", file=sys.stderr)
        return 130
