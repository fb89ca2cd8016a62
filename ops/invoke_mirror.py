"""Runs the mirror once and prints its report as a table.

Exits with 0 if every list is ok or partial, otherwise with 1.
"""

import argparse
import json
import sys

from mirror import Mirror, print_table

COLUMNS = ["wanted", "roster", "subscribed", "unsubscribed", "kept", "withheld"]


def extract_report(result):
    """Returns the report. A function error carries it in its message."""
    message = result.get("errorMessage")
    if message is None:
        return result
    if "{" not in message:
        sys.exit(f"The mirror returned no report and may have written changes: {message}")
    return json.loads(message[message.index("{"):message.rindex("}") + 1])


def main():
    parser = argparse.ArgumentParser(prog="make invoke-mirror", description=__doc__.split("\n\n")[0])
    mirror = Mirror(parser)
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

    report = extract_report(mirror.invoke(arguments, event))
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
