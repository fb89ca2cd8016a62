"""Sends one GET to Novi's API, within a time limit, and says why if there is no response.

Nothing here quotes an error of the library, because it may contain what was sent.
"""

import concurrent.futures
import http.client
import ipaddress
import json
import socket
import ssl
import threading
import urllib.parse
import urllib.request

# The maximum time in seconds, name lookup included.
TIMEOUT = 10


class NoResponse(Exception):
    """Raised if nothing answered. The message says why."""


class NoJson:
    """The content of a body that isn't JSON."""


class AnyStatus(urllib.request.HTTPErrorProcessor):
    """Returns each response as it is: an error status is an answer, too, and no redirect may receive the key."""

    def http_response(self, request, response):
        return response

    https_response = http_response


def is_private(root):
    """True if no one on the way can read what is sent: the key must not be sent otherwise."""
    try:
        url = urllib.parse.urlsplit(root)
        return url.scheme == "https" or url.hostname == "localhost" or ipaddress.ip_address(url.hostname).is_loopback
    except ValueError:
        return False


def fetch(url, key, max_body):
    """Returns the status, the headers and the start of the body: one byte more than the maximum if it is larger."""
    headers = {"Accept": "application/json", "User-Agent": "novi-bridge"}
    if key:
        headers["Authorization"] = f"Basic {key}"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.build_opener(AnyStatus).open(request, timeout=TIMEOUT) as response:
        return response.status, response.headers, response.read(max_body + 1)


def fetch_within(timeout, url, key, max_body):
    """Like `fetch`, but takes at most `timeout` in all. A socket's own timeout starts again with each byte."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(fetch(url, key, max_body))
        except Exception as error:
            future.set_exception(error)

    # A daemon, so that the script can end while the thread still waits.
    threading.Thread(target=run, daemon=True).start()
    return future.result(timeout)


def get(root, path, key, max_body, timeout=TIMEOUT):
    """Returns the status, the headers and the body of `root` + `path`, which is asked with `key` if there is one."""
    try:
        return fetch_within(timeout, root.rstrip("/") + path, key, max_body)
    except (TimeoutError, concurrent.futures.TimeoutError):
        raise NoResponse("the request timed out") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoResponse(describe_failure(error)) from None


def describe_failure(error):
    """Says why there is no response."""
    reason = getattr(error, "reason", error)
    # Python 3.9 has a second class for a socket's timeout.
    if isinstance(reason, (TimeoutError, socket.timeout)):
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


def content(body, max_body):
    """Returns a body as JSON, None for an empty one, or NoJson."""
    if len(body) > max_body:
        return NoJson
    try:
        text = body.decode("utf-8-sig").strip()
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return NoJson


def has_message(value):
    """True for an error of Novi, which has a `Message`. A CDN's or a proxy's, if it is in JSON, hasn't."""
    return isinstance(value, dict) and any(str(name).lower() == "message" for name in value)
