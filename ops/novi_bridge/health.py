"""Asks the API for its health."""

import http.client
import json
import time
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 15
PAUSE_SECONDS = 5
MAX_BODY = 64 << 10


def check(stack, attempts=1):
    """Returns True if members can be verified, and a description."""
    url = f"{stack.outputs.get('ApiUrl', '')}/health"
    if not url.startswith(("https://", "http://")):
        return False, "the stack has no output ApiUrl"
    for _ in range(attempts - 1):
        is_up, description = ask(url)
        if is_up:
            return True, description
        time.sleep(PAUSE_SECONDS)
    return ask(url)


def ask(url):
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            status, body = response.status, response.read(MAX_BODY)
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read(MAX_BODY)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return False, f"{url} doesn't answer: {getattr(error, 'reason', error)}"
    try:
        report = json.loads(body)
        checks = ", ".join(f"{name} {value}" for name, value in report["checks"].items())
        return status == 200, f"{report['status']} ({checks})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return False, f"{url} answers with {status}, but not with the API's report"
