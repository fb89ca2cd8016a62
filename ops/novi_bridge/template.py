"""Reads the template's parameters, and tells if a value is valid.

The standard library has no YAML parser. This one reads only the forms that the section `Parameters` uses, and fails on
any other.
"""

import difflib
import json
import re
from typing import NamedTuple, Optional, Tuple

from novi_bridge.errors import Failure

# CloudFormation's limit.
MAX_VALUE = 4096


class Parameter(NamedTuple):
    name: str
    type: str
    # None if a value is required.
    default: Optional[str] = None
    description: str = ""
    allowed: Tuple[str, ...] = ()
    pattern: Optional[str] = None
    minimum: Optional[str] = None
    maximum: Optional[str] = None

    def error(self, value):
        """Returns why the value is invalid, or None."""
        if len(value) > MAX_VALUE:
            return f"expected at most {MAX_VALUE} characters"
        # The SAM CLI can't take a backslash at the end.
        if "\n" in value or value.endswith("\\"):
            return "expected one line that doesn't end in a backslash"
        if self.allowed and value not in self.allowed:
            return f"expected one of {', '.join(self.allowed)}" + hint(value, self.allowed)
        if self.type == "Number":
            return self.error_of_number(value)
        items = [item.strip() for item in value.split(",")] if self.type == "CommaDelimitedList" else [value]
        if self.pattern and not all(re.fullmatch(self.pattern, item) for item in items):
            return f"expected the form {self.pattern}"
        return None

    def error_of_number(self, value):
        if not re.fullmatch(r"-?\d+", value):
            return "expected a whole number"
        if self.minimum is not None and int(value) < int(self.minimum):
            return f"expected at least {self.minimum}"
        if self.maximum is not None and int(value) > int(self.maximum):
            return f"expected at most {self.maximum}"
        return None


def hint(name, names):
    """Returns a question about the name that was probably meant, or an empty text."""
    lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.7)
    return f". Did you mean {lower[close[0]]}?" if close else ""


def read(path):
    """Returns the parameters of a template, by name, in their order."""
    try:
        found = attributes_of(path.read_text(encoding="utf-8"))
        return {name: parameter(name, attributes) for name, attributes in found}
    except ValueError as error:
        raise Failure(f"reading the parameters of {path.name} failed: {error}") from None


def parameter(name, attributes):
    rest = set(attributes) - {"Type", "Default", "Description", "AllowedValues", "AllowedPattern", "MinValue",
                              "MaxValue", "ConstraintDescription"}
    if rest or "Type" not in attributes:
        raise ValueError(f"{name} has {', '.join(sorted(rest)) or 'no Type'}")
    return Parameter(name, attributes["Type"], attributes.get("Default"), attributes.get("Description", ""),
                     tuple(attributes.get("AllowedValues", ())), attributes.get("AllowedPattern"),
                     attributes.get("MinValue"), attributes.get("MaxValue"))


def attributes_of(text):
    """Yields the name and the attributes of each parameter."""
    section = re.search(r"^Parameters:\n((?:(?: .*)?\n)*)", text, re.MULTILINE)
    if not section:
        raise ValueError("it has no section Parameters")
    lines = [line for line in section[1].splitlines() if line.strip() and not line.lstrip().startswith("#")]
    while lines:
        name, value = key_and_value(lines.pop(0), 2)
        if value:
            yield name, flow(value)
            continue
        attributes = {}
        while lines and indent_of(lines[0]) > 2:
            key, value = key_and_value(lines.pop(0), 4)
            folded = []
            while lines and indent_of(lines[0]) > 4:
                folded.append(lines.pop(0).strip())
            if bool(folded) != (value == ">-"):
                raise ValueError(f"{key} of {name} goes over several lines")
            attributes[key] = " ".join(folded) if folded else flow(value)
        yield name, attributes


def indent_of(line):
    return len(line) - len(line.lstrip())


def key_and_value(line, indent):
    found = re.fullmatch(r"( *)(\w+):(?: +(.*?))? *", line)
    if not found or len(found[1]) != indent:
        raise ValueError(f"expected a name with an indent of {indent}: {line.strip()}")
    return found[2], found[3] or ""


def flow(text):
    """Returns a value that is written in one line: a text, a list, or a mapping."""
    if text[:1] not in ("[", "{"):
        value, rest = scalar(text, "")
    else:
        value, rest = collection(text)
    if rest:
        raise ValueError(f"unexpected text: {rest}")
    return value


def collection(text):
    """Reads a list or a mapping, without others inside of it but lists. Returns the rest of the text as well."""
    is_list = text[0] == "["
    end = "]" if is_list else "}"
    items, rest = [], text[1:].lstrip()
    while not rest.startswith(end):
        key = None
        if not is_list:
            found = re.match(r"(\w+): +", rest)
            if not found:
                raise ValueError(f"expected a name: {rest}")
            key, rest = found[1], rest[found.end():]
        value, rest = collection(rest) if rest.startswith("[") else scalar(rest, f",{end}")
        items.append(value if is_list else (key, value))
        rest = rest.lstrip()
        if rest.startswith(","):
            rest = rest[1:].lstrip()
        elif not rest.startswith(end):
            raise ValueError(f"expected a comma or {end}: {rest}")
    return (items if is_list else dict(items)), rest[1:].lstrip()


def scalar(text, ends):
    """Reads a text up to one of the characters in `ends`. Returns the rest as well."""
    if text.startswith('"'):
        value, end = json.JSONDecoder().raw_decode(text)
        return value, text[end:].lstrip()
    if text.startswith("'"):
        found = re.match(r"'((?:[^']|'')*)'", text)
        if not found:
            raise ValueError(f"unfinished text: {text}")
        return found[1].replace("''", "'"), text[found.end():].lstrip()
    found = re.match(f"[^{re.escape(ends)}]*" if ends else ".*", text)
    value = found[0].rstrip()
    # Each would mean something else in YAML.
    if not value or value[0] in "&*!|>%@`?{[,#\"'" or " #" in value or ": " in value or value.endswith(":") \
            or value in ("null", "~", "true", "false", "yes", "no", "on", "off"):
        raise ValueError(f"unexpected text: {value or text}")
    return value, text[found.end():]
