"""Asks the root of Novi's API once, to tell whether it is one before it is written."""

import re
import urllib.parse

from novi_bridge import novi_http
from novi_bridge.novi_http import TIMEOUT, NoJson, NoResponse

# The maximum size of a body that is read.
MAX_BODY = 64 << 10
# No record has this UUID, so the API answers as it does about an unknown one.
NIL_UUID = "00000000-0000-0000-0000-000000000000"
# A record has at least one of these keys. See Record in shared/src/member.rs.
RECORD_KEYS = {"firstname", "lastname", "name", "email"}
WITHOUT_KEY = "Novi answered. It was asked without the API key"


def describe_redirect(root, location):
    """Says where a redirect leads, without its path and query."""
    target = urllib.parse.urlsplit(urllib.parse.urljoin(root, location or ""))
    host = target.hostname or ""
    if host == urllib.parse.urlsplit(root).hostname:
        return "a redirect to another URL of the same host"
    return f"a redirect to another host, {host}" if re.fullmatch(r"[a-z0-9.:-]{1,253}", host) else "a redirect"


def is_record_or_nothing(value):
    """True for what Novi answers with 200: a record, also below `data`, or nothing for an unknown UUID."""
    if isinstance(value, dict) and isinstance(value.get("data"), dict):
        value = value["data"]
    return value is None or value == {} or (
        isinstance(value, dict) and any(str(name).lower() in RECORD_KEYS for name in value))


def judge(root, key, status, headers, body):
    """Returns True if this response is one of Novi's API, and a description of it."""
    value = novi_http.content(body, MAX_BODY)
    has_message = novi_http.has_message(value)
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
        key = key if novi_http.is_private(root) else None
        return judge(root, key, *novi_http.get(root, f"/customers/{NIL_UUID}", key, MAX_BODY, timeout))
    except NoResponse as error:
        return False, f"nothing answered: {error}"
    except ValueError:
        return False, "nothing answered: the URL is invalid"
