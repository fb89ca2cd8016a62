"""Adds members to lists by writing to Mailman's SQLite database.

usage: insert_members.py DATABASE < members

Each line has a list id, a space, and an address.

Used for lists of thousands, which take minutes to fill through Mailman's API, and
for duplicate memberships, which the API creates only by accident.
"""

import sqlite3
import sys
import uuid

(database,) = sys.argv[1:]
connection = sqlite3.connect(database, timeout=30)


def next_id(table):
    return connection.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}").fetchone()[0]


def preferences():
    return connection.execute("INSERT INTO preferences DEFAULT VALUES").lastrowid


for line in sys.stdin:
    list_id, email = line.split()
    row = connection.execute("SELECT id FROM address WHERE email = ?", (email,)).fetchone()
    address = row[0] if row else connection.execute(
        "INSERT INTO address (email, display_name, verified_on, registered_on, preferences_id)"
        " VALUES (?, '', '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000', ?)",
        (email, preferences()),
    ).lastrowid
    connection.execute(
        "INSERT INTO member (_member_id, role, list_id, address_id, preferences_id, bounce_score,"
        " last_warning_sent, total_warnings_sent) VALUES (?, 1, ?, ?, ?, 0, '0001-01-01 00:00:00.000000', 0)",
        (uuid.uuid4().hex, list_id, address, preferences()),
    )
connection.commit()
