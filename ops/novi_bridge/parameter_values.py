"""Checks the values of parameters before they are written.

A check takes the text that was entered, and returns the values to write: more than one if they need more than one
parameter. It raises InvalidValue for a text that the functions would reject.
"""

import base64
import binascii
import json
import re
import secrets
import urllib.parse

# The maximum size of a standard parameter, which is free of charge.
MAX_BYTES = 4096

LEDGER_KEY_BYTES = 32
# The most keys after a rotation: the new one, and older ones that open what they sealed.
MAX_LEDGER_KEYS = 3

UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


class InvalidValue(Exception):
    """Raised for input that can't be used. The message never quotes the input."""


def url(text):
    try:
        parts = urllib.parse.urlsplit(text)
        is_url = parts.scheme in ("https", "http") and parts.hostname and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise InvalidValue("expected a URL such as https://www.example.org/api")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidValue("expected a URL without user, password, query (?) or fragment (#)")
    if parts.scheme == "http":
        print("  the functions reject http:// beyond loopback unless the stack has AllowPlainHttp=true")
    return [text]


def printable_ascii(text):
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise InvalidValue("expected printable ASCII without spaces")
    return [text]


def novi_key(text):
    if re.match(r"basic\s", text, re.IGNORECASE):
        raise InvalidValue("expected the key without `Basic ` in front of it, because the functions add that")
    return unquoted_key(text)


def unquoted_key(text):
    if not text.isascii():
        raise InvalidValue("found a character that isn't ASCII, such as a typographic quotation mark or "
                           "an invisible space")
    if text[0] in "\"'`" or text[-1] in "\"'`":
        raise InvalidValue("expected the key without quotation marks around it")
    return printable_ascii(text)


def uuid(text):
    if not UUID.fullmatch(text):
        raise InvalidValue("expected a hyphenated UUID")
    return [text]


def parse_json(text):
    try:
        return json.loads(text)
    except RecursionError:
        raise InvalidValue("invalid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise InvalidValue(f"invalid JSON at character {getattr(error, 'pos', 0) + 1}") from None


def compact(value):
    """Returns a value in the JSON that is written, without spaces."""
    return json.dumps(value, separators=(",", ":"))


def json_array(text, check):
    items = parse_json(text)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InvalidValue("expected a JSON array of objects: [{…},{…}]")
    for number, item in enumerate(items, 1):
        check(number, item)
    return items


def secret_or_array(text, expected):
    """Returns the secrets in a text, which is one secret or a JSON array of them."""
    items = parse_json(text) if text.startswith("[") else [text]
    if not items or not all(isinstance(item, str) for item in items):
        raise InvalidValue(expected)
    return items


def jwt_secret(text):
    items = secret_or_array(text, "expected a secret, or a JSON array of secrets")
    for number, secret in enumerate(items, 1):
        printable_ascii(secret)
        if len(secret) < 32:
            raise InvalidValue(f"secret {number} is shorter than 32 bytes. Generate one with: openssl rand -base64 48")
    return [compact(items) if text.startswith("[") else text]


def ledger_keys(text):
    """Returns the keys in a value of ledger_key, newest first."""
    expected = f"expected {LEDGER_KEY_BYTES} random bytes in base64, or a JSON array of such keys"
    keys = [key.strip() for key in secret_or_array(text, expected)]
    for number, key in enumerate(keys, 1):
        try:
            decoded = base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            decoded = b""
        # The mirror rejects bits after the last byte, which only another encoding would reveal.
        if len(decoded) != LEDGER_KEY_BYTES or base64.b64encode(decoded).decode() != key:
            raise InvalidValue(f"key {number} is invalid: {expected}. rotate generates one")
    return keys


def ledger_key(text):
    keys = ledger_keys(text)
    return [compact(keys) if len(keys) > 1 else keys[0]]


def new_ledger_key():
    return base64.b64encode(secrets.token_bytes(LEDGER_KEY_BYTES)).decode()


def rotated_ledger_key(current):
    """Returns the value with a new key in front. Older keys stay, because they sealed the present ledger."""
    try:
        keys = ledger_keys(current)
    except InvalidValue:
        raise InvalidValue("the current value is invalid, so it can't be rotated. "
                           "Enter the key that sealed the ledger") from None
    return compact([new_ledger_key(), *keys][:MAX_LEDGER_KEYS])


def is_list_id(value):
    """True for a list id such as members.lists.example.org, and for a posting address such as members@example.org."""
    name, at, host = str(value).strip().lower().partition("@")
    return isinstance(value, str) and ("." in host if at else True) and bool(
        re.fullmatch(r"[a-z0-9_+-]+(\.[a-z0-9_+-]+)+", f"{name}.{host}" if at else name))


def is_address_array(value):
    return isinstance(value, list) and all(isinstance(item, str) and "@" in item for item in value)


def is_percentage(maximum):
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum


def is_flag(value):
    return isinstance(value, bool)


# The keys of a mapping that may be left out, with what they must be.
MAPPING_OPTIONS = {
    "keep": ("an array of addresses", is_address_array),
    "max_removal_percent": ("a whole number from 0 to 100", is_percentage(100)),
    "max_growth_percent": ("a whole number from 0 to 100000", is_percentage(100_000)),
    "may_be_empty": ("true or false", is_flag),
    "removals": ("true or false", is_flag),
    "resubscribe": ("true or false", is_flag),
}


def check_mapping(number, item):
    if not UUID.fullmatch(str(item.get("group_guid"))):
        raise InvalidValue(f"group_guid of mapping {number} is invalid: expected a hyphenated UUID")
    if not is_list_id(item.get("list_id")):
        raise InvalidValue(f"list_id of mapping {number} is invalid: expected a list id such as "
                           "members.lists.example.org, or the list's posting address")
    if set(item) - {"group_guid", "list_id", *MAPPING_OPTIONS}:
        raise InvalidValue(f"mapping {number} has an unknown key: expected one of group_guid, list_id, "
                           + ", ".join(MAPPING_OPTIONS))
    for key, (expected, is_valid) in MAPPING_OPTIONS.items():
        if item.get(key) is not None and not is_valid(item[key]):
            raise InvalidValue(f"{key} of mapping {number} is invalid: expected {expected}")


def mappings(text):
    items = json_array(text, check_mapping)
    if not items:
        raise InvalidValue("expected at least one mapping, because the mirror rejects an empty array")
    # Mappings that don't fit continue in further parameters. A single mapping is never split.
    parts = [[]]
    for item in items:
        if parts[-1] and len(compact(parts[-1] + [item])) > MAX_BYTES:
            parts.append([])
        parts[-1].append(item)
    return [compact(part) for part in parts]
