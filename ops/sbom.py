"""Writes what each function is built from into target/sbom, as CycloneDX: crates, versions, licences and digests.

The same commit gives the same bytes, wherever it lies.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FUNCTIONS = ["verify", "mirror"]
TARGET = "aarch64-unknown-linux-gnu"


def output(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def describe(folder):
    """Has cargo-cyclonedx describe a copy of the workspace: it writes beside each Cargo.toml."""
    files = output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.toml", "*.rs", "Cargo.lock")
    for file in filter(None, files.split("\0")):
        if (ROOT / file).exists():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, folder / file)
    # With a date of its own it would also make up a serial number.
    date = os.environ.get("SOURCE_DATE_EPOCH") or output("git", "log", "-1", "--format=%ct").strip()
    subprocess.run(
        [ROOT / "target/tools/bin/cargo-cyclonedx", "cyclonedx", "--format", "json", "--spec-version", "1.5",
         "--describe", "binaries", "--target", TARGET],
        cwd=folder, env={**os.environ, "SOURCE_DATE_EPOCH": date}, check=True)


def built():
    """What cargo builds of what, as (name, version)."""
    needs = {}
    above = []
    for line in output("cargo", "tree", "--locked", "--edges", "normal,build", "--target", TARGET, "--prefix", "depth",
                       "--format", " {p}").splitlines():
        if not line:
            continue
        depth, name, version = line.split()[:3]
        crate = (name, version.removeprefix("v"))
        above[int(depth):] = [crate]
        needs.setdefault(crate, set())
        if len(above) > 1:
            needs[above[-2]].add(crate)
    return needs


def closure(needs, root):
    found, new = set(), [root]
    while new:
        crate = new.pop()
        if crate not in found:
            found.add(crate)
            new.extend(needs[crate])
    return found


def narrow(sbom, crates):
    """Leaves these alone. cargo-cyclonedx also names crates that nothing switched on, such as a second TLS provider."""
    def identity(component):
        return component["name"], component["version"]

    named = [sbom["metadata"]["component"], *sbom["components"]]
    if missing := crates - set(map(identity, named)):
        raise SystemExit(f"make sbom: cargo builds what cargo-cyclonedx does not name: {sorted(missing)}")
    kept = {component["bom-ref"] for component in named if identity(component) in crates}
    sbom["components"] = [component for component in sbom["components"] if component["bom-ref"] in kept]
    sbom["dependencies"] = [
        {**of, "dependsOn": [ref for ref in of.get("dependsOn", []) if ref in kept]}
        for of in sbom["dependencies"] if of["ref"] in kept]


def main():
    place = ROOT / "target/sbom"
    place.mkdir(parents=True, exist_ok=True)
    needs = built()
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as name:
        folder = pathlib.Path(name)
        describe(folder)
        for function in FUNCTIONS:
            text = (folder / f"functions/{function}/{function}_bin.cdx.json").read_text()
            sbom = json.loads(text.replace(f"path+file://{folder}/", "path+file:///"))
            own = sbom["metadata"]["component"]
            narrow(sbom, closure(needs, (own["name"], own["version"])))
            file = place / f"{function}.cdx.json"
            file.write_text(json.dumps(sbom, indent=2) + "\n")
            print(f"{file.relative_to(ROOT)}: {len(sbom['components'])} crates")


if __name__ == "__main__":
    main()
