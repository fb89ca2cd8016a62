"""Reads the names and GUIDs of Novi's groups. It reads no members."""

from novi_bridge import novi_http
from novi_bridge.novi_http import NoJson, NoResponse

PAGE_SIZE = 100
MAX_PAGES = 100
# The maximum size of a page that is read.
MAX_BODY = 4 << 20


class GroupsError(Exception):
    """Raised if the groups can't be read. The message says why and what to do, and quotes nothing of the response."""


def printable(text):
    """Returns a text of Novi's as a terminal may get it: control characters could move its cursor."""
    return "".join(character if character.isprintable() else "?" for character in str(text or ""))


def fields(value):
    """Returns the fields of an object by their names in lower case. Novi's upgrades may change the case."""
    return {str(name).lower(): field for name, field in value.items()} if isinstance(value, dict) else {}


def rows_of(value):
    """Returns the rows of a page and the number of rows on all pages, if the page says that."""
    data = fields(value).get("data")
    if isinstance(data, (dict, list)):
        value = data
    rows = value if isinstance(value, list) else fields(value).get("results")
    if not isinstance(rows, list):
        raise GroupsError("the response isn't a list of groups. Check novi_api_root_url")
    total = fields(value).get("totalcount")
    return [fields(row) for row in rows], total if isinstance(total, int) else None


def page(root, key, offset):
    """Returns the rows from an offset on, and the number of rows on all pages."""
    try:
        status, _, body = novi_http.get(root, f"/groups?pageSize={PAGE_SIZE}&offset={offset}", key, MAX_BODY)
    except NoResponse as error:
        raise GroupsError(f"Novi didn't answer: {error}") from None
    value = novi_http.content(body, MAX_BODY)
    if status == 200 and value is not NoJson:
        return rows_of(value)
    if status == 401:
        raise GroupsError("Novi rejected the API key. Write the key again with: --only novi_idaa_api_key")
    if status == 403 and novi_http.has_message(value):
        raise GroupsError("the API key may not list groups. Allow it in Novi")
    if status == 403:
        raise GroupsError("a CDN or a firewall in front of Novi may refuse this machine. Try it from another network")
    if status == 404:
        raise GroupsError("Novi has no list of groups below this root. Check novi_api_root_url")
    if status == 429:
        raise GroupsError("Novi has got too many calls. Try again in a minute")
    raise GroupsError(f"Novi answered with {status}" + (", and not in JSON" if value is NoJson else ""))


def read(root, key):
    """Returns (GUID, number of members or None, name) of each group, by name."""
    if not novi_http.is_private(root):
        raise GroupsError("novi_api_root_url doesn't start with https://, so the key isn't sent. Write the root again")
    groups, offset = {}, 0
    for _ in range(MAX_PAGES):
        rows, total = page(root, key, offset)
        known = len(groups)
        for row in rows:
            guid, count = row.get("uniqueid"), row.get("totalmembercount")
            if guid:
                members = count if isinstance(count, int) else None
                groups[str(guid)] = (printable(guid), members, printable(row.get("name")))
        offset += len(rows)
        # A server that ignores the offset returns the same page forever.
        if not rows or len(groups) == known or (len(rows) < PAGE_SIZE if total is None else offset >= total):
            break
    return sorted(groups.values(), key=lambda group: group[2].casefold())
