"""Prompts for each parameter and writes it to SSM's Parameter Store with the correct type.

Secrets are never shown or logged, except for an API key when it is generated. They
are also never passed to a program as an argument, which would expose them in the
process list.
Run it again to change a parameter: empty input keeps the current value. The
key of the ledger is generated, because no one needs to know it.
"""

import argparse
import os
import re
import sys

from novi_bridge import api_keys, novi_groups, novi_root
from novi_bridge import parameter_values as values
from novi_bridge.parameter_prompt import InputEnded, confirm, is_terminal, read_input
from novi_bridge.parameter_store import ParameterStore
from novi_bridge.parameter_values import MAX_BYTES, InvalidValue

NOVI_KEY = "novi_idaa_api_key"
NOVI_ROOT = "novi_api_root_url"
API_KEYS = "api_keys"
MAPPINGS = "novi_mailman_sync"
LEDGER_KEY = "ledger_key"

# The template's default of ParameterPrefix.
DEFAULT_PREFIX = "/idaa"

# (name, SSM type, required, description, parser). Novi's key comes before its root, which is checked with it.
PARAMETERS = [
    (NOVI_KEY, "SecureString", True, "Novi's API key, as issued", values.novi_key),
    (NOVI_ROOT, "String", True, "Root URL of Novi's API, such as https://www.example.org/api", values.url),
    ("novi_probe_uuid", "SecureString", False,
     "UUID of a record that Novi always has, to tell its 404s from a wrong root or a lost permission", values.uuid),
    (API_KEYS, "SecureString", True,
     'API keys of the callers: a key, or as JSON [{"name":"frontend","key":"…","bypass":false}]. --add-key makes them',
     api_keys.parse),
    ("jwt_secret", "SecureString", False,
     "HS256 secret of JWTs, of at least 32 bytes, or a JSON array of such secrets. Without it, no JWT is accepted",
     values.jwt_secret),
    ("mailman_base_url", "String", True,
     "Root URL of Mailman's REST API, such as https://lists.example.org/mailman-api", values.url),
    ("mailman_username", "String", True, "User name for Mailman's REST API", values.printable_ascii),
    ("mailman_password", "SecureString", True, "Password for Mailman's REST API", values.printable_ascii),
    (MAPPINGS, "SecureString", True,
     'Mappings, as JSON or @FILE: [{"group_guid":"…","list_id":"members.lists.example.org"}]. '
     "--list-groups shows the GUIDs",
     values.mappings),
    (LEDGER_KEY, "SecureString", True,
     "Key that seals the mirror's ledger. Press Enter to generate it, or to keep it. "
     "Enter rotate to put a new key in front",
     values.ledger_key),
    ("cache_password", "SecureString", False,
     "Password of an existing Redis. Leave it out with IAM and with Cache=serverless", values.printable_ascii),
]
NAMES = [name for name, *_ in PARAMETERS]


def confirm_root(root, key):
    """Says what answers at a new root of Novi's API, and asks whether to write it if that isn't Novi.

    It may be right even so, because a CDN may refuse this machine. Without a terminal it is therefore written.
    """
    print("  asking it about a UUID that doesn't exist…", flush=True)
    is_novi, answer = novi_root.check(root, key)
    print(f"  {answer}.")
    if is_novi:
        return
    if not is_terminal():
        print("  WARNING: it is written although Novi's API didn't answer.")
    elif not confirm("  Write it anyway?"):
        raise InvalidValue("not written")


def read_file(path):
    """Returns the text of a file that was entered as @FILE."""
    try:
        # Without the byte order mark that some editors put in front of the text.
        with open(os.path.expanduser(path), encoding="utf-8-sig") as file:
            return file.read().strip()
    except UnicodeDecodeError:
        raise InvalidValue("reading the file failed: expected text in UTF-8") from None
    except (OSError, ValueError) as error:
        raise InvalidValue(f"reading the file failed: {getattr(error, 'strerror', None) or 'invalid path'}") from None


def show_key(name, key):
    """Shows a generated key. What explains it goes to standard error, so that the key can be piped."""
    print(f"  The key of {name}, which is shown only now. Keep it as a secret of the caller:",
          file=sys.stderr, flush=True)
    print(key, flush=True)


class Prompts:
    """Prompts for parameters, one after the other, and writes those that changed."""

    def __init__(self, store, names, kms_key):
        self._store = store
        self._kms_key = kms_key
        self._existing = store.versions(names)
        self._novi_key = None
        self._generated_key = None
        self.written = 0

    def ask(self, name, kind, required, description, parse):
        """Prompts until the input can be used. Without a terminal, ends the command at the first that can't."""
        if name in self._existing:
            state = f"set, version {self._existing[name]}"
        elif name == LEDGER_KEY:
            state = "not set, will be generated"
        else:
            state = "required" if required else "optional"
        while True:
            text = read_input(f"{name} ({state})\n  {description}: ", kind == "SecureString")
            try:
                return self._enter(name, kind, required, parse, text)
            except InvalidValue as error:
                print(f"  {error}")
                if not is_terminal():
                    sys.exit(f"{name} was not written")

    def _enter(self, name, kind, required, parse, text):
        text = self._generate(name, text)
        if not text:
            if required and name not in self._existing:
                hint = ". --add-key frontend generates a key" if name == API_KEYS else ""
                raise InvalidValue(f"this parameter is required{hint}")
        elif text == "-":
            if required:
                raise InvalidValue("this parameter is required and can't be deleted")
            if name in self._existing:
                self._store.delete(name)
            print("  deleted")
        else:
            self._write(name, kind, parse, read_file(text[1:]) if text.startswith("@") else text)

    def _generate(self, name, text):
        """Returns a generated value if the input asks for one, otherwise the input."""
        is_set = name in self._existing
        if name == LEDGER_KEY and not is_set and text in ("", "rotate"):
            return values.new_ledger_key()
        if name == LEDGER_KEY and text == "rotate":
            return values.rotated_ledger_key(self._store.value(name))
        if name == API_KEYS and not is_set and not text and is_terminal():
            if confirm(f"  Generate a key named {api_keys.FIRST_NAME}, and show it once?", default=True):
                self._generated_key = api_keys.generate()
                return api_keys.added(None, api_keys.FIRST_NAME, self._generated_key)
        return text

    def _write(self, name, kind, parse, text):
        if not text:
            raise InvalidValue("the file is empty")
        if name == API_KEYS and not text.startswith(("[", "{")):
            text = self._key_as_array(text)
        parts = parse(text)
        check_size(parts)
        if name == NOVI_KEY:
            self._novi_key = parts[0]
        if name in self._existing and self._store.is_unchanged(name, kind, parts, self._kms_key):
            print("  unchanged")
            return
        if name == NOVI_ROOT:
            confirm_root(parts[0], self._novi_key)
        self._store.write(name, kind, parts, self._kms_key, self._existing)
        self.written += 1
        print("  written" + (f", in {len(parts)} parts" if len(parts) > 1 else ""))
        if name == API_KEYS and self._generated_key:
            show_key(api_keys.FIRST_NAME, self._generated_key)

    def _key_as_array(self, text):
        current = self._store.value(API_KEYS) if API_KEYS in self._existing else None
        array = api_keys.replaced(current, text)
        print(f"  one key, so it becomes that of the caller {api_keys.FIRST_NAME}, without bypass. "
              "Enter JSON, or use --add-key, for more")
        return array


def check_size(parts):
    if any(len(part.encode()) > MAX_BYTES for part in parts):
        raise InvalidValue(f"the value exceeds the maximum of {MAX_BYTES} bytes per parameter")


def write_keys(store, current, value, kms_key):
    check_size([value])
    store.write(API_KEYS, "SecureString", [value], kms_key, [] if current is None else [API_KEYS])


def add_key(store, name, kms_key):
    key, current = api_keys.generate(), store.value(API_KEYS)
    write_keys(store, current, api_keys.added(current, name, key), kms_key)
    show_key(name, key)
    print(f"It was added to {store.place(API_KEYS)}. The API accepts it within ParameterTtlSeconds (five minutes).",
          file=sys.stderr)


def remove_key(store, name, kms_key):
    current = store.value(API_KEYS)
    value, was_last = api_keys.removed(current, name)
    if was_last:
        print(f"{name} is the last key. Without it, the API rejects every caller.")
        if not is_terminal():
            raise InvalidValue("not removed: confirm it at a terminal, or add another key first, with --add-key")
        if not confirm("Remove it anyway?"):
            raise InvalidValue("not removed")
    write_keys(store, current, value, kms_key)
    print(f"The key of {name} was removed from {store.place(API_KEYS)}. "
          "The API rejects it within ParameterTtlSeconds (five minutes).")


def list_groups(store):
    root, key = ((store.value(name) or "").strip() for name in (NOVI_ROOT, NOVI_KEY))
    if not root or not key:
        missing = NOVI_ROOT if key else NOVI_KEY
        raise InvalidValue(f"{store.place(missing)} isn't set. Write it first, with --only {missing}")
    groups = novi_groups.read(root, key)
    print(f"{'group_guid':36}  {'members':>7}  name")
    for guid, members, name in groups:
        print(f"{guid:36}  {'-' if members is None else members:>7}  {name}")
    print(f"\n{len(groups)} groups that this API key may see.")


def prefix_argument(text):
    prefix = text.rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9_.-]+)+", prefix):
        raise argparse.ArgumentTypeError("expected a path such as /idaa")
    return prefix


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="novi-bridge parameters", description=__doc__.split("\n\n", maxsplit=1)[0],
                                     epilog="--stack and --region name another stack, as for every command.",
                                     allow_abbrev=False)
    parser.add_argument("--prefix", metavar="PATH", type=prefix_argument,
                        help=f"path of the parameters (default: the stack's ParameterPrefix, or {DEFAULT_PREFIX})")
    parser.add_argument("--key", metavar="KMS_ARN",
                        help="ARN of a customer managed key for the SecureStrings (default: the key that encrypts a "
                             "parameter already, or the stack's KmsKeyArn)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--only", metavar="NAME", action="append", choices=NAMES,
                      help="prompt only for this parameter; may be given more than once: " + ", ".join(NAMES))
    what.add_argument("--add-key", metavar="NAME",
                      help="generate an API key for a caller, such as frontend, and show it once")
    what.add_argument("--remove-key", metavar="NAME", help="remove the API key of a caller")
    what.add_argument("--list-groups", action="store_true", help="show the name and the GUID of each group in Novi")
    return parser.parse_args(argv)


def prompt(store, arguments):
    chosen = [parameter for parameter in PARAMETERS if not arguments.only or parameter[0] in arguments.only]
    prompts = Prompts(store, [name for name, *_ in chosen], arguments.key)
    print(f"Parameters below {store.place()}. Press Enter to keep the current value or to skip an optional parameter.")
    print("Enter - to delete an optional parameter, or @FILE to read the value from a file. Secrets are not echoed.\n")
    try:
        for parameter in chosen:
            prompts.ask(*parameter)
    except InputEnded:
        sys.exit(f"\nThe input ended. {prompts.written} written.")
    except KeyboardInterrupt:
        print(f"\n{prompts.written} written.")
        raise
    print(f"\n{prompts.written} written. The functions read new values within ParameterTtlSeconds (five minutes), or")
    print("immediately if Novi or Mailman rejects the old ones.")


def main(argv, stack):
    """Runs the command. The stack says in which region and below which prefix the parameters are."""
    arguments = parse_arguments(argv)
    stack.check_own()
    settings = stack.parameters
    prefix = arguments.prefix or settings.get("ParameterPrefix", DEFAULT_PREFIX).rstrip("/")
    store = ParameterStore(prefix, stack.environment(), settings.get("KmsKeyArn"))
    try:
        if arguments.add_key is not None:
            add_key(store, arguments.add_key, arguments.key)
        elif arguments.remove_key is not None:
            remove_key(store, arguments.remove_key, arguments.key)
        elif arguments.list_groups:
            list_groups(store)
        else:
            prompt(store, arguments)
    except (InvalidValue, novi_groups.GroupsError) as error:
        sys.exit(str(error))
    except InputEnded:
        sys.exit("\nThe input ended. Nothing was written.")
