"""What this copy of novi-bridge deploys: the template and the functions of a release bundle, or of a checkout."""

import pathlib
import re

from novi_bridge.errors import Failure

# The folder of the command: the root of a bundle, or `ops` of a checkout.
FOLDER = pathlib.Path(__file__).resolve().parent.parent
CARGO_MANIFEST = "Cargo.toml"


def is_checkout():
    return not (FOLDER / "VERSION").exists() and (FOLDER.parent / CARGO_MANIFEST).exists()


def root():
    return FOLDER.parent if is_checkout() else FOLDER


def version():
    """Returns the version of the workspace, or of the bundle."""
    if not is_checkout():
        path = FOLDER / "VERSION"
        if not path.exists():
            raise Failure("VERSION is missing. Unzip the release again")
        return path.read_text(encoding="utf-8").strip()
    manifest = (root() / CARGO_MANIFEST).read_text(encoding="utf-8")
    found = re.search(r'^\[workspace\.package\]\n(?:(?!\[).*\n)*?version = "([^"]+)"', manifest, re.MULTILINE)
    if not found:
        raise Failure(f"reading the version failed: expected it in [workspace.package] of {CARGO_MANIFEST}")
    return found[1]


def template(architecture):
    """Returns the template to deploy. In a checkout, that is the one before `sam build`."""
    name = "template-x86_64.yaml" if architecture == "x86_64" and not is_checkout() else "template.yaml"
    path = root() / name
    if not path.exists():
        raise Failure(f"{name} is missing. Unzip the release again")
    return path
