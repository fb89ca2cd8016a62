"""Prompts for each parameter and writes it to SSM's Parameter Store with the correct type.

Secrets are never shown or logged. They are also never passed to a program as an
argument, which would expose them in the process list.
Run it again to change a parameter: empty input keeps the current value. The
key of the ledger is generated, because no one needs to know it.
"""

import argparse
import base64
import binascii
import contextlib
import getpass
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import urllib.parse

import novi_root
from stack import Stack

# The maximum size of a standard parameter, which is free of charge.
MAX_BYTES = 4096
# The most names that SSM's GetParameters takes.
MAX_NAMES = 10

LEDGER_KEY = "ledger_key"
LEDGER_KEY_BYTES = 32
# The most keys after a rotation: the new one, and older ones that open what they sealed.
MAX_LEDGER_KEYS = 3


class InvalidValue(Exception):
    """Raised for input that can't be used. The message never quotes the input."""


def url(text):
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("https", "http") or not parts.hostname:
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
    if not text.isascii():
        raise InvalidValue("found a character that isn't ASCII, such as a typographic quotation mark or an invisible space")
    if text[0] in "\"'`" or text[-1] in "\"'`":
        raise InvalidValue("expected the key without quotation marks around it")
    return printable_ascii(text)


def uuid(text):
    if not re.fullmatch(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", text):
        raise InvalidValue("expected a hyphenated UUID")
    return [text]


def parse_json(text):
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidValue(f"invalid JSON at character {getattr(error, 'pos', 0) + 1}") from None


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
    return [json.dumps(items, separators=(",", ":")) if text.startswith("[") else text]


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
    return [json.dumps(keys, separators=(",", ":")) if len(keys) > 1 else keys[0]]


def new_ledger_key():
    return base64.b64encode(secrets.token_bytes(LEDGER_KEY_BYTES)).decode()


def rotated_ledger_key(current):
    """Returns the value with a new key in front. Older keys stay, because they sealed the present ledger."""
    try:
        keys = ledger_keys(current)
    except InvalidValue:
        raise InvalidValue("the current value is invalid, so it can't be rotated. Enter the key that sealed the ledger") from None
    return json.dumps([new_ledger_key(), *keys][:MAX_LEDGER_KEYS], separators=(",", ":"))


def json_array(text, check):
    items = parse_json(text)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InvalidValue("expected a JSON array of objects")
    for number, item in enumerate(items, 1):
        check(number, item)
    return items


def api_keys(text):
    def check(number, item):
        if not isinstance(item.get("name"), str) or not isinstance(item.get("key"), str):
            raise InvalidValue(f"entry {number} is invalid: expected a name and a key")
        if len(item["key"]) < 20:
            raise InvalidValue(f"the key of entry {number} is shorter than 20 characters. "
                               "Generate one with: openssl rand -hex 24")
        if not isinstance(item.get("bypass", False), bool):
            raise InvalidValue(f"bypass of entry {number} is invalid: expected true or false")

    if not (items := json_array(text, check)):
        raise InvalidValue("expected at least one API key")
    return [json.dumps(items, separators=(",", ":"))]


def is_list_id(value):
    """True for a list id such as members.lists.example.org, and for a posting address such as members@lists.example.org."""
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


def mappings(text):
    def check(number, item):
        if not re.fullmatch(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", str(item.get("group_guid"))):
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

    items = json_array(text, check)
    if not items:
        raise InvalidValue("expected at least one mapping, because the mirror rejects an empty array")
    # Mappings that don't fit continue in further parameters. A single mapping is never split.
    parts = [[]]
    for item in items:
        if parts[-1] and len(json.dumps(parts[-1] + [item], separators=(",", ":"))) > MAX_BYTES:
            parts.append([])
        parts[-1].append(item)
    return [json.dumps(part, separators=(",", ":")) for part in parts]


# (name, SSM type, required, description, parser). Novi's key comes before its root, which is checked with it.
PARAMETERS = [
    ("novi_idaa_api_key", "SecureString", True, "Novi's API key, as issued", novi_key),
    ("novi_api_root_url", "String", True, "Root URL of Novi's API, such as https://www.example.org/api", url),
    ("novi_probe_uuid", "SecureString", False,
     "UUID of a record that Novi always has, to tell its 404s from a wrong root or a lost permission", uuid),
    ("api_keys", "SecureString", True,
     'API keys of the callers, as JSON: [{"name":"frontend","key":"…","bypass":false}]', api_keys),
    ("jwt_secret", "SecureString", False,
     "HS256 secret of JWTs, of at least 32 bytes, or a JSON array of such secrets. Without it, no JWT is accepted",
     jwt_secret),
    ("mailman_base_url", "String", True,
     "Root URL of Mailman's REST API, such as https://lists.example.org/mailman-api", url),
    ("mailman_username", "String", True, "User name for Mailman's REST API", printable_ascii),
    ("mailman_password", "SecureString", True, "Password for Mailman's REST API", printable_ascii),
    ("novi_mailman_sync", "SecureString", True,
     'Mappings, as JSON: [{"group_guid":"…","list_id":"members.lists.example.org"}]', mappings),
    (LEDGER_KEY, "SecureString", True,
     "Key that seals the mirror's ledger. Press Enter to generate it, or to keep it. Enter rotate to put a new key in front",
     ledger_key),
    ("cache_password", "SecureString", False,
     "Password of an existing Redis. Leave it out with IAM and with Cache=serverless", printable_ascii),
]


@contextlib.contextmanager
def private_file(text):
    """Yields a path from which only child processes can read `text`, any number of times."""
    if hasattr(os, "memfd_create"):
        # Only in memory. The CLI reads the file twice, so a pipe wouldn't work.
        with open(os.memfd_create("request", 0), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            yield f"/dev/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            yield file.name


def aws(*arguments, request=None):
    """Runs the AWS CLI. `request` goes into a file, because arguments appear in the process list."""
    command = ["aws", *arguments, "--output", "json"]
    with private_file(json.dumps(request)) as path:
        if request is not None:
            command += ["--cli-input-json", f"file://{path}"]
        completed = subprocess.run(command, capture_output=True, text=True, check=False, close_fds=False,
                                   env=Stack().environment())
    if completed.returncode:
        sys.exit(f"aws {' '.join(arguments[:2])} failed: {completed.stderr.strip()}")
    return json.loads(completed.stdout or "{}")


def existing_versions(prefix):
    """Returns the version of each parameter that exists, including the further parts of a multipart parameter."""
    names = [f"{prefix}/{name}" for name, *_ in PARAMETERS]
    existing = []
    for first in range(0, len(names), MAX_NAMES):
        existing += aws("ssm", "get-parameters", "--names", *names[first:first + MAX_NAMES])["Parameters"]
    existing += aws("ssm", "get-parameters-by-path", "--path", f"{prefix}/novi_mailman_sync")["Parameters"]
    return {parameter["Name"].removeprefix(f"{prefix}/"): parameter["Version"] for parameter in existing}


def kms_key_of(name):
    """Returns the key that encrypts a parameter, so that a new value is encrypted with the same key."""
    described = aws("ssm", "describe-parameters", "--parameter-filters", f"Key=Name,Values={name}")
    return next((parameter.get("KeyId") for parameter in described["Parameters"]), None)


def current_value(name):
    """Returns a value, which must never be shown."""
    return aws("ssm", "get-parameter", "--name", name, "--with-decryption")["Parameter"]["Value"]


def read_input(prompt, is_secret):
    if not sys.stdin.isatty():
        print(prompt)
        return sys.stdin.readline().strip()
    return (getpass.getpass(prompt) if is_secret else input(prompt)).strip()


def confirm_root(root, key):
    """Says what answers at a new root of Novi's API, and asks whether to write it if that isn't Novi.

    It may be right even so, because a CDN may refuse this machine. Without a terminal it is therefore written.
    """
    print("  asking it about a UUID that doesn't exist…", flush=True)
    is_novi, answer = novi_root.check(root, key)
    print(f"  {answer}.")
    if is_novi:
        return
    if not sys.stdin.isatty():
        print("  WARNING: it is written although Novi's API didn't answer.")
    elif input("  Write it anyway? [y/N] ").strip().lower() not in ("y", "yes"):
        raise InvalidValue("not written")


def main():
    parser = argparse.ArgumentParser(prog="make parameters", description=__doc__.split("\n\n")[0])
    prefix = Stack().parameters.get("ParameterPrefix", "/idaa")
    parser.add_argument("--prefix", default=prefix, help=f"the stack's ParameterPrefix (default: {prefix})")
    parser.add_argument("--key", help="ARN of a customer managed key for the SecureStrings (the stack's KmsKeyArn)")
    parser.add_argument("--only", metavar="NAME", action="append", choices=[name for name, *_ in PARAMETERS],
                        help="prompt only for this parameter; may be given more than once")
    arguments = parser.parse_args()
    prefix = arguments.prefix.rstrip("/")
    existing = existing_versions(prefix)
    print(f"Parameters below {prefix}. Press Enter to keep the current value or to skip an optional parameter.")
    print("Enter - to delete an optional parameter, or @FILE to read the value from a file. Secrets are not echoed.\n")
    written, api_key = 0, None
    for name, kind, required, description, parse in PARAMETERS:
        if arguments.only and name not in arguments.only:
            continue
        state = f"set, version {existing[name]}" if name in existing else "required" if required else "optional"
        if name == LEDGER_KEY and name not in existing:
            state = "not set, will be generated"
        while True:
            text = read_input(f"{name} ({state})\n  {description}: ", kind == "SecureString")
            try:
                if name == LEDGER_KEY and name not in existing and text in ("", "rotate"):
                    text = new_ledger_key()
                elif name == LEDGER_KEY and text == "rotate":
                    text = rotated_ledger_key(current_value(f"{prefix}/{name}"))
                if not text:
                    if required and name not in existing:
                        raise InvalidValue("this parameter is required")
                    break
                if text == "-":
                    if required:
                        raise InvalidValue("this parameter is required and can't be deleted")
                    if name in existing:
                        aws("ssm", "delete-parameter", "--name", f"{prefix}/{name}")
                    print("  deleted")
                    break
                if text.startswith("@"):
                    try:
                        # Without the byte order mark that some editors put in front of the text.
                        with open(text[1:], encoding="utf-8-sig") as file:
                            text = file.read().strip()
                    except OSError as error:
                        raise InvalidValue(f"reading the file failed: {error.strerror}") from None
                values = parse(text)
                if any(len(value.encode()) > MAX_BYTES for value in values):
                    raise InvalidValue(f"the value exceeds the maximum of {MAX_BYTES} bytes per parameter")
                if name == "novi_idaa_api_key":
                    api_key = values[0]
                elif name == "novi_api_root_url":
                    confirm_root(values[0], api_key)
                # Write the first part last, so that a run that reads in between never sees it without the rest.
                for number, value in reversed(list(enumerate(values))):
                    path = f"{prefix}/{name}" + (f"/{number}" if number else "")
                    request = {"Name": path, "Type": kind, "Value": value, "Overwrite": True}
                    if kind == "SecureString" and (key := arguments.key or kms_key_of(f"{prefix}/{name}")):
                        request["KeyId"] = key
                    aws("ssm", "put-parameter", request=request)
                # Delete leftover parts of a longer earlier value, which would be read along with the new one.
                for old in existing:
                    number = old.removeprefix(f"{name}/")
                    if number != old and number.isdigit() and int(number) >= len(values):
                        aws("ssm", "delete-parameter", "--name", f"{prefix}/{old}")
                written += 1
                print("  written" + (f", in {len(values)} parts" if len(values) > 1 else ""))
                break
            except InvalidValue as error:
                print(f"  {error}")
                if not sys.stdin.isatty():
                    sys.exit(f"{name} was not written")
    print(f"\n{written} written. The functions read new values within ParameterTtlSeconds (five minutes), or")
    print("immediately if Novi or Mailman rejects the old ones.")


if __name__ == "__main__":
    main()
