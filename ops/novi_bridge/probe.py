"""Probes the live Novi and Mailman, and prints what differs from what this product expects. Writes nothing.

Exits with 0 if there is nothing worse than a warning, otherwise with 1. Nothing in the output is a value of a record.
"""

import textwrap

from novi_bridge.errors import Failure
from novi_bridge.invoke import invoke
from novi_bridge.terminal import WIDTH, print_table

KINDS = ["text", "boolean", "number", "list", "object", "blank", "null", "absent"]


def print_findings(findings):
    width = max(len(finding["severity"]) for finding in findings)
    indent = " " * (width + 2)
    for finding in findings:
        text = f"{finding['severity'].ljust(width)}  {finding['subject']}: {finding['found']}"
        print(textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))
        if finding["fix"]:
            print(textwrap.fill(f"{indent}Fix: {finding['fix']}", WIDTH, subsequent_indent=indent + "     ",
                                break_long_words=False, break_on_hyphens=False))


def text(value):
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def print_groups(groups):
    columns = ["status", "envelope", "total", "people", "page_size", "pages", "rows_without_id", "repeated_rows",
               "in_other_groups", "complete"]
    rows = [["group of mapping", "lists", *(column.replace("_", " ") for column in columns)]]
    for group in groups:
        rows.append([", ".join(map(str, group["mappings"])), ", ".join(group["list_ids"]),
                     *(text(group[column]) for column in columns)])
    print_table(rows)


def print_fields(title, fields):
    rows = [[title, *KINDS]]
    for name, kinds in fields.items():
        rows.append([name, *(str(kinds.get(kind, 0)) for kind in KINDS)])
    print_table(rows, left=1)


def print_lists(lists):
    columns = ["members", "pending_requests", "admin_notify_mchanges", "send_welcome_message", "subscription_policy"]
    rows = [["list", *(column.replace("_", " ") for column in columns)]]
    for entry in lists:
        rows.append([entry["list_id"], *(text(entry[column]) for column in columns)])
    print_table(rows, left=1)


def add_arguments(parser):
    parser.add_argument("--function", help="name of the function, if it is not the stack's")


def main(stack, arguments):
    result = invoke(stack, {"probe": True}, arguments.function)
    if "probe" not in result:
        raise Failure(f"the mirror returned no probe: {result.get('errorMessage', 'deploy this version of it first')}")
    novi, mailman, findings = (result["probe"][key] for key in ("novi", "mailman", "findings"))
    counts = {severity: sum(finding["severity"] == severity for finding in findings)
              for severity in ("error", "warning")}
    print(f"{result['status']}: {counts['error']} errors and {counts['warning']} warnings, {result['novi_calls']} "
          f"calls to Novi and {result['mailman_calls']} to Mailman in {result['seconds']:.1f} s\n")
    print_findings(findings)
    if novi["groups"]:
        print()
        print_groups(novi["groups"])
    records = novi["records"]
    if records["fields"]:
        print()
        print_fields(f"field ({records['read']} of {novi['people']} records)", records["fields"])
    if novi["bulk"] and novi["bulk"]["fields"]:
        print()
        print_fields(f"field in GET /members ({novi['bulk']['page_size']} records)", novi["bulk"]["fields"])
    if mailman["lists"]:
        print()
        print_lists(mailman["lists"])
    return result["status"] == "failed"
