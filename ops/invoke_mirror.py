"""Runs the mirror once and shows its report as a table.

Ends with 0 where every list is ok or partial, else with 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from stack import Stack

# A run ends after 900 seconds at the latest.
LONGEST = 930
COLUMNS = ["wanted", "roster", "subscribed", "unsubscribed", "kept", "withheld"]


def invoke(function, event, environment):
    """Invokes it through the AWS CLI and gives what it returned."""
    # The CLI gives up after a minute and invokes again unless it is told not to; two runs at once help nobody. And a
    # network that forgets a silent connection must not hold it for ever.
    environment = {**environment, "AWS_MAX_ATTEMPTS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        result = os.path.join(folder, "result.json")
        command = ["aws", "lambda", "invoke", "--function-name", function, "--cli-read-timeout", str(LONGEST),
                   # An explanation's addresses are nothing for the list of processes.
                   "--payload", "fileb:///dev/stdin", result]
        done = subprocess.run(command, input=json.dumps(event), capture_output=True, text=True, check=False, env=environment)
        if "timeout" in done.stderr.lower():
            sys.exit("No answer in time: the run may have gone on. Its report is the line `reported` of its log.")
        if done.returncode:
            sys.exit(f"The mirror could not be invoked: {done.stderr.strip()}")
        with open(result, encoding="utf-8") as file:
            return json.load(file)


def report_of(returned):
    """The report, which an error holds in its message."""
    message = returned.get("errorMessage")
    if message is None:
        return returned
    if returned.get("errorType") == "NotStarted":
        sys.exit(f"The mirror did not run: {message}")
    if "{" not in message:
        sys.exit(f"The mirror gave no report, and may have written: {message}")
    return json.loads(message[message.index("{"):message.rindex("}") + 1])


def show(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) if column < 2 else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


def main():
    parser = argparse.ArgumentParser(prog="make invoke-mirror", description=__doc__.split("\n\n")[0])
    stack = Stack()
    parser.add_argument("--stack", default=stack.name, help=f"the stack (default {stack.name})")
    parser.add_argument("--function", help="the function, where it is not the stack's")
    parser.add_argument("--dry-run", action="store_true", help="plan and report, write nothing")
    parser.add_argument("--list", dest="lists", metavar="LIST_ID", nargs="+", help="only these lists")
    parser.add_argument("--force", metavar="LIST_ID", nargs="+", help="apply these lists' plans even where they are blocked")
    parser.add_argument("--explain", action="store_true",
                        help="ask for addresses, and say of each why it is on a list or not; writes nothing")
    given = parser.parse_args()
    event = {}
    if given.dry_run:
        event["dry_run"] = True
    if given.lists:
        event["lists"] = given.lists
    if given.force:
        event["force"] = given.force
    if given.explain:
        if sys.stdin.isatty():
            print("Addresses, one a line; an empty line ends:")
        event["explain"] = list(iter(lambda: sys.stdin.readline().strip(), ""))

    report = report_of(invoke(given.function or f"{given.stack}-mirror", event, stack.environment()))
    print(f"{report['status']}{' (dry run: nothing was written)' if report['dry_run'] else ''}, "
          f"{report['novi_calls']} calls to Novi and {report['mailman_calls']} to Mailman in {report['seconds']:.1f} s\n")
    rows = [["list", "status", *COLUMNS]]
    for one in report["lists"]:
        rows.append([one["list_id"] or "(not named)", one["status"], *(str(one[column]) for column in COLUMNS)])
    show(rows)
    for one in report["lists"]:
        counts = {**one["skipped"], **{f"rejected, {why}": count for why, count in one["rejected"].items()}}
        told = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items() if count)
        if one["reason"] or told:
            print(f"\n{one['list_id'] or '(not named)'}")
            if told:
                print(f"  not on it: {told}")
            if one["reason"]:
                print(f"  {one['reason']}")
    for explanation in report.get("explain", []):
        print(f"\n{explanation['address']}")
        for one in explanation["lists"]:
            is_there = {True: "subscribed", False: "not subscribed", None: "roster not read"}[one["subscribed"]]
            print(f"  {one['list_id']}: {'wanted' if one['wanted'] else 'not wanted'}, {is_there}"
                  + (f": {one['why']}" if one["why"] else ""))
    sys.exit(report["status"] not in ("ok", "partial"))


main()
