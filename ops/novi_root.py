"""Asks the root of Novi's API once, to tell whether it is one before it is written."""

import concurrent.futures
import http.client
import ipaddress
import json
import re
import socket
import ssl
import threading
import urllib.parse
import urllib.request

# The maximum time in seconds, name lookup included.
TIMEOUT = 10
# The maximum size of a body that is read.
MAX_BODY = 64 << 10
# No record has this UUID, so the API answers as it does about an unknown one.
NIL_UUID = "00000000-0000-0000-0000-000000000000"
# A record has at least one of these keys. See Record in shared/src/member.rs.
RECORD_KEYS = {"firstname", "lastname", "name", "email"}
WITHOUT_KEY = "Novi answered. It was asked without the API key"


class NoJson:
    """The content of a body that isn't JSON."""


class AnyStatus(urllib.request.HTTPErrorProcessor):
    """Returns each response as it is: an error status is an answer, too, and no redirect may receive the key."""

    def http_response(self, request, response):
        return response

    https_response = http_response


def is_private(url):
    """True if no one on the way can read what is sent: the key must not be sent otherwise."""
    if url.scheme == "https" or url.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(url.hostname).is_loopback
    except ValueError:
        return False


def fetch(root, key):
    """Returns the status, the headers and the start of the body."""
    headers = {"Accept": "application/json", "User-Agent": "novi-bridge"}
    if key:
        headers["Authorization"] = f"Basic {key}"
    request = urllib.request.Request(f"{root.rstrip('/')}/customers/{NIL_UUID}", headers=headers)
    with urllib.request.build_opener(AnyStatus).open(request, timeout=TIMEOUT) as response:
        return response.status, response.headers, response.read(MAX_BODY + 1)


def fetch_within(timeout, root, key):
    """Like `fetch`, but takes at most `timeout` in all. A socket's own timeout starts again with each byte."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(fetch(root, key))
        except Exception as error:
            future.set_exception(error)

    # A daemon, so that the script can end while the thread still waits.
    threading.Thread(target=run, daemon=True).start()
    return future.result(timeout)


def describe_failure(error):
    """Says why there is no response. Never quotes the error itself, which may contain what was sent."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "the request timed out"
    if isinstance(reason, socket.gaierror):
        return "the host name was not found"
    if isinstance(reason, ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return "the certificate isn't valid for this host, or its authority isn't trusted here"
    if isinstance(reason, ssl.SSLError):
        return "TLS failed"
    if isinstance(reason, http.client.IncompleteRead):
        return "the response was truncated"
    if isinstance(reason, (ConnectionError, http.client.RemoteDisconnected)):
        return "the connection was closed"
    if isinstance(reason, (http.client.HTTPException, ValueError)):
        return "the URL is invalid, or the response isn't HTTP"
    return "the connection failed"


def describe_redirect(root, location):
    """Says where a redirect leads, without its path and query."""
    target = urllib.parse.urlsplit(urllib.parse.urljoin(root, location or ""))
    host = target.hostname or ""
    if host == urllib.parse.urlsplit(root).hostname:
        return "a redirect to another URL of the same host"
    return f"a redirect to another host, {host}" if re.fullmatch(r"[a-z0-9.:-]{1,253}", host) else "a redirect"


def content(body):
    """Returns a body as JSON, None for an empty one, or NoJson."""
    try:
        text = body.decode("utf-8-sig").strip()
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return NoJson


def is_record_or_nothing(value):
    """True for what Novi answers with 200: a record, also below `data`, or nothing for an unknown UUID."""
    if isinstance(value, dict) and isinstance(value.get("data"), dict):
        value = value["data"]
    return value is None or value == {} or (
        isinstance(value, dict) and any(str(name).lower() in RECORD_KEYS for name in value))


def judge(root, key, status, headers, body):
    """Returns True if this response is one of Novi's API, and a description of it."""
    value = content(body) if len(body) <= MAX_BODY else NoJson
    # An error of Novi has a `Message`, and a CDN's or a proxy's, if it is in JSON, hasn't.
    has_message = isinstance(value, dict) and any(str(name).lower() == "message" for name in value)
    if 300 <= status < 400:
        where = describe_redirect(root, headers.get("Location"))
        return False, f"{where} answered with {status}. Novi's API never redirects"
    if status == 404 and value is not NoJson:
        return True, "Novi answered"
    if status == 200 and is_record_or_nothing(value):
        return True, "Novi answered"
    if status == 401 and (value is None or has_message):
        return True, "Novi answered, but rejected the API key" if key else WITHOUT_KEY
    if status == 403 and has_message:
        return True, "Novi answered, but the API key may not read customers" if key else WITHOUT_KEY
    if status == 429 and (value is None or has_message):
        return True, "Novi answered, but too many calls have been made"
    is_html = headers.get_content_type() in ("text/html", "application/xhtml+xml") or body.lstrip()[:1] == b"<"
    answered = f"{'an HTML page' if is_html else 'JSON' if value is not NoJson else 'a response that is not JSON'} "
    answered += f"answered with {status}"
    if status == 403:
        return False, f"{answered}: a CDN or a firewall may refuse this machine, or this is not the API's root"
    if status >= 500:
        return False, f"{answered}: Novi or a proxy in front of it may be down, or this is not the API's root"
    return False, f"{answered}: this is not the API's root"


def check(root, key=None, timeout=TIMEOUT):
    """Asks `root` once about a UUID that no record has, with `key` if there is one and no one on the way can read it.

    Returns True if Novi's API answered, and a description of what did. The description contains neither the key nor
    anything of the response but its status and the host that it redirects to.
    """
    try:
        if not is_private(urllib.parse.urlsplit(root)):
            key = None
        return judge(root, key, *fetch_within(timeout, root, key))
    except (TimeoutError, concurrent.futures.TimeoutError):
        return False, "nothing answered: the request timed out"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return False, f"nothing answered: {describe_failure(error)}"
