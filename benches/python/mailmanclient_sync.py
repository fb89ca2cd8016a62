"""Syncs a list to a file of addresses with mailmanclient.

A peer for `make bench`, written the way one would use Mailman's own client.

usage: mailmanclient_sync.py API USER PASSWORD LIST_ID FILE
"""

import sys

from mailmanclient import Client

api, user, password, list_id, file = sys.argv[1:]
members = Client(api, user, password).get_list(list_id)
roster = {member.email for member in members.members}
with open(file) as lines:
    wanted = {line.strip() for line in lines}
for address in sorted(wanted - roster):
    members.subscribe(
        address, pre_verified=True, pre_confirmed=True, pre_approved=True, send_welcome_message=False
    )
for address in sorted(roster - wanted):
    members.unsubscribe(address)
