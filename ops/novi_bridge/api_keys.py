"""The API keys of the callers, which are entries of one parameter: checks, adds and removes them."""

import re
import secrets

from novi_bridge.parameter_values import InvalidValue, compact, json_array, parse_json, unquoted_key

# The name of the key that is made first.
FIRST_NAME = "frontend"
# The name of a key that no caller has. It replaces the last key, because the functions reject an array without a key
# and go on with the keys that they read before.
CLOSED = "(closed)"
MIN_LENGTH = 20
FIELDS = {"name", "key", "bypass"}


def check_entry(number, item):
    if not isinstance(item.get("name"), str) or not isinstance(item.get("key"), str):
        raise InvalidValue(f"entry {number} is invalid: expected a name and a key")
    if not item["name"].strip():
        raise InvalidValue(f"the name of entry {number} is blank")
    if set(item) - FIELDS:
        raise InvalidValue(f"entry {number} has an unknown key: expected only name, key and bypass")
    if len(item["key"].strip()) < MIN_LENGTH:
        raise InvalidValue(f"the key of entry {number} is shorter than {MIN_LENGTH} characters. "
                           "Generate one with: openssl rand -hex 24")
    if not isinstance(item.get("bypass", False), bool):
        raise InvalidValue(f"bypass of entry {number} is invalid: expected true or false")


def parse(text):
    """Returns the value to write for an array, or for one key as it was pasted."""
    if not text.startswith(("[", "{")):
        return [compact([entry(FIRST_NAME, pasted_key(text))])]
    items = json_array(text, check_entry)
    if not items:
        raise InvalidValue("expected at least one API key")
    if len({item["key"].strip() for item in items}) < len(items):
        raise InvalidValue("expected a different key in each entry")
    return [compact(items)]


def pasted_key(text):
    unquoted_key(text)
    if len(text) < MIN_LENGTH:
        raise InvalidValue(f"expected a key of at least {MIN_LENGTH} characters, or a JSON array of keys. "
                           "Press Enter to generate one, or use: openssl rand -hex 24")
    return text


def entry(name, key):
    return {"name": name, "key": key, "bypass": False}


def generate():
    return secrets.token_hex(24)


def entries(current):
    """Returns the entries of the present value. There are none if the parameter isn't set."""
    if current is None:
        return []
    items = parse_json(current)
    if not isinstance(items, list) or not all(isinstance(item, dict) and "name" in item for item in items):
        raise InvalidValue("the current value of api_keys is invalid. Write all keys again with: --only api_keys")
    return items


def names(items):
    return [str(item["name"]) for item in items if item["name"] != CLOSED]


def added(current, name, key):
    """Returns the value with one more key."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InvalidValue("expected a name of letters, digits, dots, hyphens and underscores, such as frontend")
    items = entries(current)
    if name in names(items):
        raise InvalidValue(f"there already is a key named {name}. To replace it without an interruption, add one named "
                           f"{name}-2, let the caller use it, and then remove {name}")
    return compact([item for item in items if item["name"] != CLOSED] + [entry(name, key)])


def removed(current, name):
    """Returns the value without the keys of this name, and true if none is left for any caller."""
    items = entries(current)
    if name not in names(items):
        known = ", ".join(names(items)) or "none"
        raise InvalidValue(f"there is no key of this name. The names are: {known}")
    left = [item for item in items if item["name"] != name]
    return compact(left or [entry(CLOSED, generate())]), not names(left)


def replaced(current, key):
    """Returns the value with one pasted key. Refuses to take the keys of other callers away."""
    others = [name for name in names(entries(current)) if name != FIRST_NAME]
    if others:
        raise InvalidValue(f"this single key would remove those of {', '.join(others)}. "
                           "Use --add-key NAME, or enter all keys as a JSON array")
    return compact([entry(FIRST_NAME, pasted_key(key))])
