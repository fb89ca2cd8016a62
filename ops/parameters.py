"""Asks for each parameter and writes it to SSM's Parameter Store, with its right type.

Nothing secret is shown, logged, or given to a program as an argument, where the
list of processes would show it.
Run it again to change one: an empty answer keeps what is there.
"""

import argparse
import contextlib
import getpass
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse

from stack import Stack

# The largest value of a standard parameter, which costs nothing.
LIMIT = 4096


class Wrong(Exception):
    """An answer that cannot be used. It quotes nothing of it."""


def url(text):
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise Wrong("it must be a URL such as https://www.example.org/api")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise Wrong("it must be a URL without user, password, ? and #")
    if parts.scheme == "http":
        print("  http:// is refused beyond loopback unless the stack has AllowPlainHttp=true")
    return [text]


def word(text):
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise Wrong("it must be printable ASCII without spaces")
    return [text]


def array(text, check):
    try:
        items = json.loads(text)
    except ValueError as error:
        raise Wrong(f"it is no JSON (character {getattr(error, 'pos', 0) + 1})") from None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Wrong("it must be a JSON array of objects")
    for number, item in enumerate(items, 1):
        check(number, item)
    return items


def api_keys(text):
    def check(number, item):
        if not isinstance(item.get("name"), str) or not isinstance(item.get("key"), str):
            raise Wrong(f"entry {number} needs a name and a key")
        if len(item["key"]) < 20:
            raise Wrong(f"the key of entry {number} is shorter than 20 characters; openssl rand -hex 24 makes one")
        if not isinstance(item.get("bypass", False), bool):
            raise Wrong(f"bypass of entry {number} must be true or false")

    if not (items := array(text, check)):
        raise Wrong("without any key nobody can ask")
    return [json.dumps(items, separators=(",", ":"))]


def mappings(text):
    def check(number, item):
        if not re.fullmatch(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", str(item.get("group_guid"))):
            raise Wrong(f"group_guid of mapping {number} must be a hyphenated UUID")
        if not isinstance(item.get("list_id"), str):
            raise Wrong(f"mapping {number} needs a list_id")

    # What does not fit goes on in further parameters, mapping by mapping.
    parts = [[]]
    for item in array(text, check):
        if parts[-1] and len(json.dumps(parts[-1] + [item], separators=(",", ":"))) > LIMIT:
            parts.append([])
        parts[-1].append(item)
    return [json.dumps(part, separators=(",", ":")) for part in parts]


# name, SSM type, whether it is required, what it is, what becomes of an answer
PARAMETERS = [
    ("novi_api_root_url", "String", True, "Root of Novi's API, such as https://www.example.org/api", url),
    ("novi_idaa_api_key", "SecureString", True, "Novi's API key, as issued", word),
    ("api_keys", "SecureString", True,
     'Keys of those who may ask, as JSON: [{"name":"frontend","key":"…","bypass":false}]', api_keys),
    ("jwt_secret", "SecureString", False, "HS256 secret of JWTs; without it no JWT is accepted", word),
    ("mailman_base_url", "String", True, "Mailman's REST API, such as https://lists.example.org/mailman-api", url),
    ("mailman_username", "String", True, "Its user", word),
    ("mailman_password", "SecureString", True, "Its password", word),
    ("novi_mailman_sync", "SecureString", True,
     'Mappings, as JSON: [{"group_guid":"…","list_id":"members.lists.example.org"}]', mappings),
    ("cache_password", "SecureString", False, "Password of an existing Redis; not with IAM, and not with Cache=serverless", word),
]


@contextlib.contextmanager
def readable(text):
    """A path at which a program that we start can read this, as often as it likes, and nobody else."""
    if hasattr(os, "memfd_create"):
        # In memory alone. The CLI reads it twice, so a pipe will not do.
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
    """Runs the AWS CLI. `request` is no argument, which the list of processes would show."""
    command = ["aws", *arguments, "--output", "json"]
    with readable(json.dumps(request)) as path:
        if request is not None:
            command += ["--cli-input-json", f"file://{path}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, close_fds=False,
                              env=Stack().environment())
    if done.returncode:
        sys.exit(f"aws {' '.join(arguments[:2])} failed: {done.stderr.strip()}")
    return json.loads(done.stdout or "{}")


def versions(prefix):
    """The version of each parameter that is there, the continued ones included."""
    names = [f"{prefix}/{name}" for name, *_ in PARAMETERS]
    there = aws("ssm", "get-parameters", "--names", *names)["Parameters"]
    there += aws("ssm", "get-parameters-by-path", "--path", f"{prefix}/novi_mailman_sync")["Parameters"]
    return {parameter["Name"].removeprefix(f"{prefix}/"): parameter["Version"] for parameter in there}


def key_of(name):
    """The key that a parameter is encrypted with: another value must not lose it."""
    described = aws("ssm", "describe-parameters", "--parameter-filters", f"Key=Name,Values={name}")
    return next((parameter.get("KeyId") for parameter in described["Parameters"]), None)


def ask(prompt, is_secret):
    if not sys.stdin.isatty():
        print(prompt)
        return sys.stdin.readline().strip()
    return (getpass.getpass(prompt) if is_secret else input(prompt)).strip()


def main():
    parser = argparse.ArgumentParser(prog="make parameters", description=__doc__.split("\n\n")[0])
    prefix = Stack().parameters.get("ParameterPrefix", "/idaa")
    parser.add_argument("--prefix", default=prefix, help=f"the stack's ParameterPrefix (default {prefix})")
    parser.add_argument("--key", help="a customer key (its ARN) for the SecureStrings, the stack's KmsKeyArn")
    parser.add_argument("--only", metavar="NAME", action="append", choices=[name for name, *_ in PARAMETERS],
                        help="ask for this one alone; may be given more than once")
    given = parser.parse_args()
    prefix = given.prefix.rstrip("/")
    there = versions(prefix)
    print(f"Parameters below {prefix}. Enter keeps what is there or leaves an optional one out, - deletes an optional")
    print("one, @FILE reads a file. Secrets are not shown while you type.\n")
    changed = 0
    for name, kind, required, what, parse in PARAMETERS:
        if given.only and name not in given.only:
            continue
        state = f"set, version {there[name]}" if name in there else "required" if required else "optional"
        while True:
            answer = ask(f"{name} ({state})\n  {what}: ", kind == "SecureString")
            try:
                if not answer:
                    if required and name not in there:
                        raise Wrong("it is required")
                    break
                if answer == "-":
                    if required:
                        raise Wrong("it is required, and cannot be deleted")
                    if name in there:
                        aws("ssm", "delete-parameter", "--name", f"{prefix}/{name}")
                    print("  deleted")
                    break
                if answer.startswith("@"):
                    try:
                        with open(answer[1:], encoding="utf-8") as file:
                            answer = file.read().strip()
                    except OSError as error:
                        raise Wrong(f"the file cannot be read: {error.strerror}") from None
                values = parse(answer)
                if any(len(value.encode()) > LIMIT for value in values):
                    raise Wrong(f"it is longer than the {LIMIT} bytes of a parameter")
                # The first part last: a run that reads in between must not find a beginning without its end.
                for number, value in reversed(list(enumerate(values))):
                    place = f"{prefix}/{name}" + (f"/{number}" if number else "")
                    request = {"Name": place, "Type": kind, "Value": value, "Overwrite": True}
                    if kind == "SecureString" and (key := given.key or key_of(f"{prefix}/{name}")):
                        request["KeyId"] = key
                    aws("ssm", "put-parameter", request=request)
                # What an earlier, longer value went on in would be read with it.
                for old in there:
                    number = old.removeprefix(f"{name}/")
                    if number != old and number.isdigit() and int(number) >= len(values):
                        aws("ssm", "delete-parameter", "--name", f"{prefix}/{old}")
                changed += 1
                print("  written" + (f", in {len(values)} parts" if len(values) > 1 else ""))
                break
            except Wrong as wrong:
                print(f"  {wrong}")
                if not sys.stdin.isatty():
                    sys.exit(f"{name} was not written")
    print(f"\n{changed} written. The functions read them within ParameterTtlSeconds (five minutes), or at once where")
    print("Novi or Mailman refuses the old ones.")


main()
