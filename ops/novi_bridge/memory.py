"""Remembers which stacks were deployed from this folder, and nothing else: a stack's values are those that AWS has."""

import json
import os
import re

from novi_bridge import source
from novi_bridge.errors import Failure
from novi_bridge.terminal import warn

NAME = ".novi-bridge.json"
# Written by versions that kept the stack's parameters, too. Those may never have been deployed, so they aren't read.
OLD_NAME = "samconfig.local.toml"


def stacks():
    """Returns the deployed stacks, as pairs of name and region. The region is None if it wasn't saved."""
    path = source.root() / NAME
    if path.exists():
        return read(path)
    if source.is_checkout():
        return old_stacks()
    # A new release is unzipped next to the one that was deployed.
    return sorted({stack for other in source.root().parent.glob(f"*/{NAME}") for stack in read(other)})


def read(path):
    try:
        return [(entry["stack"], entry["region"]) for entry in json.loads(path.read_text(encoding="utf-8"))["stacks"]]
    except (ValueError, KeyError, TypeError, OSError):
        raise Failure(f"reading {path} failed. Delete it, and name the stack with --stack and --region") from None


def old_stacks():
    path = source.root() / OLD_NAME
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    values = [re.search(rf'^{key} *= *["\']([^"\']+)["\']', text, re.MULTILINE) for key in ("stack_name", "region")]
    name, region = (found and found[1] for found in values)
    return [(name, region)] if name else []


def remember(name, region):
    save([*(stack for stack in stacks() if stack[0] != name or stack[1] not in (region, None)), (name, region)])


def forget(name, region):
    save([stack for stack in stacks() if stack[0] != name or stack[1] not in (region, None)])


def save(entries):
    path = source.root() / NAME
    text = json.dumps({"stacks": [{"stack": name, "region": region} for name, region in entries]}, indent=2)
    # In one step, so that an interrupted command leaves a complete file.
    part = path.with_name(f"{NAME}.part")
    try:
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        # What the command is for goes on without it.
        warn(f"writing {path} failed: {error.strerror}. Name the stack with --stack and --region next time.")
