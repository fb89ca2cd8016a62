"""Runs the mirror once and prints its report as a table.

Exits with 0 if every list is ok or partial, otherwise with 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from stack import Stack

# A run takes at most 900 seconds.
READ_TIMEOUT_SECONDS = 930
COLUMNS = ["wanted", "roster", "subscribed", "unsubscribed", "kept", "withheld"]


def invoke(function, event, environment):
    """Invokes the function with the AWS CLI and returns its result."""
    # By default, the CLI times out after a minute and invokes the function again, and a second concurrent run doesn't
    # help. The read timeout prevents a network that silently drops idle connections from blocking the CLI forever.
    environment = {**environment, "AWS_MAX_ATTEMPTS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        result = os.path.join(folder, "result.json")
        command = ["aws", "lambda", "invoke", "--function-name", function,
                   "--cli-read-timeout", str(READ_TIMEOUT_SECONDS),
                   # On stdin, because the addresses of an explain event must not appear in the process list.
                   "--payload", "fileb:///dev/stdin", result]
        completed = subprocess.run(command, input=json.dumps(event), capture_output=True, text=True, check=False,
                                   env=environment)
        if "timeout" in completed.stderr.lower():
            sys.exit("The invocation timed out, but the run may have continued. "
                     "Its report is the `run completed` line of its log.")
        if completed.returncode:
            sys.exit(f"Invoking the mirror failed: {completed.stderr.strip()}")
        with open(result, encoding="utf-8") as file:
            return json.load(file)


def extract_report(result):
    """Returns the report. A function error carries it in its message."""
    message = result.get("errorMessage")
    if message is None:
        return result
    if result.get("errorType") == "NotStarted":
        sys.exit(f"The mirror did not run: {message}")
    if "{" not in message:
        sys.exit(f"The mirror returned no report and may have written changes: {message}")
    return json.loads(message[message.index("{"):message.rindex("}") + 1])


def print_table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) if column < 2 else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


def main():
    parser = argparse.ArgumentParser(prog="make invoke-mirror", description=__doc__.split("\n\n")[0])
    stack = Stack()
    parser.add_argument("--stack", default=stack.name, help=f"name of the stack (default: {stack.name})")
    parser.add_argument("--function", help="name of the function, if it is not the stack's")
    parser.add_argument("--dry-run", action="store_true", help="plan and report without writing anything")
    parser.add_argument("--list", dest="lists", metavar="LIST_ID", nargs="+", help="process only these lists")
    parser.add_argument("--force", metavar="LIST_ID", nargs="+", help="apply these lists' plans even if blocked")
    parser.add_argument("--explain", action="store_true",
                        help="prompt for addresses, and explain why each one is or isn't on a list; writes nothing")
    arguments = parser.parse_args()
    event = {}
    if arguments.dry_run:
        event["dry_run"] = True
    if arguments.lists:
        event["lists"] = arguments.lists
    if arguments.force:
        event["force"] = arguments.force
    if arguments.explain:
        if sys.stdin.isatty():
            print("Enter addresses, one per line, and finish with an empty line:")
        event["explain"] = list(iter(lambda: sys.stdin.readline().strip(), ""))

    report = extract_report(invoke(arguments.function or f"{arguments.stack}-mirror", event, stack.environment()))
    print(f"{report['status']}{' (dry run: nothing was written)' if report['dry_run'] else ''}, "
          f"{report['novi_calls']} calls to Novi and {report['mailman_calls']} to Mailman in {report['seconds']:.1f} s\n")
    rows = [["list", "status", *COLUMNS]]
    for entry in report["lists"]:
        rows.append([entry["list_id"] or "(unnamed)", entry["status"], *(str(entry[column]) for column in COLUMNS)])
    print_table(rows)
    for entry in report["lists"]:
        counts = {**entry["skipped"], **{f"rejected ({why})": count for why, count in entry["rejected"].items()}}
        omitted = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in counts.items() if count)
        if entry["reason"] or omitted:
            print(f"\n{entry['list_id'] or '(unnamed)'}")
            if omitted:
                print(f"  not on the list: {omitted}")
            if entry["reason"]:
                print(f"  {entry['reason']}")
    for explanation in report.get("explain", []):
        print(f"\n{explanation['address']}")
        for entry in explanation["lists"]:
            subscribed = {True: "subscribed", False: "not subscribed", None: "roster not read"}[entry["subscribed"]]
            print(f"  {entry['list_id']}: {'wanted' if entry['wanted'] else 'not wanted'}, {subscribed}"
                  + (f": {entry['why']}" if entry["why"] else ""))
    sys.exit(report["status"] not in ("ok", "partial"))


main()
