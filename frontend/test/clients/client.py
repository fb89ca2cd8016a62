"""Calls the API with the client that openapi-python-client generated. clients.test.ts runs it next to that client."""

import json
import sys
from urllib.parse import urljoin
from uuid import UUID

import httpx
from novi_bridge import Client
from novi_bridge.api.default import health, verify_member
from novi_bridge.models import GatewayMessage, Problem, Verified


def main():
    requests = json.load(sys.stdin)
    servers = httpx.get(requests["description"]).json()["servers"]

    def client_of(url, **headers):
        root = urljoin(url, servers[0]["url"])
        return Client(base_url=root, headers=headers, raise_on_unexpected_status=True)

    def verify(uuid, url=requests["description"], **headers):
        response = verify_member.sync_detailed(UUID(uuid), client=client_of(url, **headers))
        outcome = {"status": int(response.status_code)}
        match response.parsed:
            case Verified(full_name=full_name, email=email):
                outcome |= {"full_name": full_name, "email": email}
            case Problem(code=code):
                outcome["code"] = code.value
            case GatewayMessage(message=message):
                outcome["message"] = message
        return outcome

    authorized = {"x-api-key": requests["api_key"], "x-account-id": "account-1"}
    report = health.sync_detailed(client=client_of(requests["description"]))
    print(json.dumps({
        "member": verify(requests["member"], **authorized),
        "stranger": verify(requests["stranger"], **authorized),
        "without_key": verify(requests["member"]),
        "failing": verify(requests["failing"], **authorized),
        "throttled": verify(requests["member"], url=requests["throttled"], **authorized),
        "health": {"status": int(report.status_code), "message": report.parsed.status.value},
    }))


main()
