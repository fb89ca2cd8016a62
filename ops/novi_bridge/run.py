"""Runs the mirror once and prints its report as a table.

Exits with 0 if every list is ok or partial, otherwise with 1.
"""

import json
import sys

from novi_bridge.errors import Failure
from novi_bridge.invoke import extract_report, invoke
from novi_bridge.terminal import confirm, print_table

COLUMNS = ["wanted", "roster", "subscribed", "unsubscribed", "kept", "withheld"]

# What `leave_reasons` says, in the operator's words.
LEAVE_REASONS = {
    "inactive": "not active in Novi, or without a status that counts",
    "opted_out": "unsubscribed from emails in Novi",
    "not_in_group": "known to Novi, but not in a group of this list",
    "unknown_address": "no record that was read has this address",
}
JOIN_REASON = "an active member of the list's groups"


def name(entry):
    return entry["list_id"] or "(unnamed)"


def is_good(report):
    return report["status"] in ("ok", "partial")


def print_report(report):
    print(f"{report['status']}{' (dry run: nothing was written)' if report['dry_run'] else ''}, "
          f"{report['novi_calls']} calls to Novi and {report['mailman_calls']} to Mailman "
          f"in {report['seconds']:.1f} s\n")
    rows = [["list", "status", *COLUMNS]]
    for entry in report["lists"]:
        rows.append([name(entry), entry["status"], *(str(entry[column]) for column in COLUMNS)])
    print_table(rows)
    if report.get("ok_lists"):
        print(f"and {report['ok_lists']} more lists that are ok")
    if report.get("lists_left_out"):
        print(f"and {report['lists_left_out']} more lists that don't fit into the report: use --list")
    for entry in report["lists"]:
        counts = {**entry["skipped"], **{f"rejected ({why})": count for why, count in entry["rejected"].items()}}
        omitted = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in counts.items() if count)
        if entry["reason"] or omitted:
            print(f"\n{name(entry)}")
            if omitted:
                print(f"  not on the list: {omitted}")
            if entry["reason"]:
                print(f"  {entry['reason']}")
    for explanation in report.get("explain", []):
        print_explanation(explanation)


def print_explanation(explanation):
    print(f"\n{explanation['address']}")
    for entry in explanation["lists"]:
        subscribed = {True: "subscribed", False: "not subscribed", None: "roster not read"}[entry["subscribed"]]
        print(f"  {entry['list_id']}: {'wanted' if entry['wanted'] else 'not wanted'}, {subscribed}"
              + (f": {entry['why']}" if entry["why"] else ""))


def print_changes(report):
    """Prints who would join and leave each list, and why."""
    for entry in report["lists"]:
        joins, leaves, left_out = entry.get("joins", []), entry.get("leaves", []), entry.get("left_out", 0)
        if not (joins or leaves or left_out):
            continue
        print(f"\n{name(entry)}: {len(joins)} would join, {len(leaves)} would leave"
              + (f", and {left_out} more are left out of this table" if left_out else ""))
        rows = [["change", "address", "why"], *(["joins", address, JOIN_REASON] for address in joins)]
        for address in leaves:
            word = entry["leave_reasons"].get(address, "")
            rows.append(["leaves", address, LEAVE_REASONS.get(word, word)])
        print_table(rows, left=3)
    if is_cut(report):
        print("\nA run shows at most 5,000 addresses. If there are several lists, show one at a time: "
              "--show --list LIST_ID.\n"
              "If one list has more changes than that, see docs/operations.md#forcing-a-list.")


def is_cut(report):
    return any(entry.get("left_out") for entry in report["lists"])


def force(stack, arguments):
    """Shows what a list's plan would change, asks, and applies exactly that. Returns the last report."""
    report = extract_report(invoke(stack, {"show": True, "lists": [arguments.force]}, arguments.function))
    print_report(report)
    print_changes(report)
    # The reason of a list names the event that forces it, unless there is nothing that a force can lift.
    entry = next((entry for entry in report["lists"] if '{"force":' in (entry["reason"] or "")), None)
    if entry is None:
        print("\nThere is nothing to force.")
        return report
    if is_cut(report):
        raise Failure("not forced, because the table isn't complete")
    limits = {"joins": len(entry["joins"]), "leaves": len(entry["leaves"]), "unknown": entry["skipped"]["unknown"]}
    print(f"\nThis allows at most {', '.join(f'{count} {key}' for key, count in limits.items())}. "
          "What exceeds that by then is judged by the ordinary limits.")
    if limits["unknown"]:
        print("Some of the addresses may belong to records that can't be read. If they may be readable in a later run, "
              "wait.")
    if not arguments.yes and not confirm("Apply exactly this?"):
        raise Failure("nothing was written")
    event = {"force": {entry["list_id"]: limits}, "lists": [entry["list_id"]]}
    report = extract_report(invoke(stack, event, arguments.function))
    print()
    print_report(report)
    return report


def add_arguments(parser):
    parser.add_argument("--function", help="name of the function, if it is not the stack's")
    parser.add_argument("--list", dest="lists", metavar="LIST_ID", nargs="+", help="process only these lists")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="plan and report without writing anything")
    mode.add_argument("--show", action="store_true",
                      help="also print who would join and leave each list, and why; writes nothing")
    mode.add_argument("--force", metavar="LIST_ID",
                      help="print what the plan of a blocked or held list would change, ask, and apply exactly that")
    mode.add_argument("--explain", action="store_true",
                      help="prompt for addresses, and explain why each one is or isn't on a list; writes nothing")
    parser.add_argument("--yes", action="store_true", help="with --force: don't ask")


def main(stack, arguments):
    if arguments.force and arguments.lists:
        raise Failure("--force processes only the list that it names; leave out --list")
    if arguments.yes and not arguments.force:
        raise Failure("--yes needs --force")

    if arguments.force:
        return not is_good(force(stack, arguments))
    event = {}
    if arguments.dry_run:
        event["dry_run"] = True
    if arguments.show:
        event["show"] = True
    if arguments.lists:
        event["lists"] = arguments.lists
    if arguments.explain:
        if sys.stdin.isatty():
            print("Enter addresses, one per line, and finish with an empty line:")
        event["explain"] = list(iter(lambda: sys.stdin.readline().strip(), ""))
    report = extract_report(invoke(stack, event, arguments.function))
    print_report(report)
    if arguments.show:
        print_changes(report)
    return not is_good(report)
