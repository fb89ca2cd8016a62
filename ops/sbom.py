"""Writes a CycloneDX SBOM of each function to target/sbom: its crates with their versions, licenses and digests.

The same commit produces the same bytes, wherever the repository is checked out.
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


def run_cyclonedx(folder):
    """Runs cargo-cyclonedx on a copy of the workspace, because it writes its output next to each Cargo.toml."""
    files = output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.toml", "*.rs", "Cargo.lock")
    for file in filter(None, files.split("\0")):
        if (ROOT / file).exists():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, folder / file)
    # Without a fixed date, cargo-cyclonedx would also generate a random serial number.
    date = os.environ.get("SOURCE_DATE_EPOCH") or output("git", "log", "-1", "--format=%ct").strip()
    subprocess.run(
        [ROOT / "target/tools/bin/cargo-cyclonedx", "cyclonedx", "--format", "json", "--spec-version", "1.5",
         "--describe", "binaries", "--target", TARGET],
        cwd=folder, env={**os.environ, "SOURCE_DATE_EPOCH": date}, check=True)


def dependency_graph():
    """Returns the crates that cargo builds, each as (name, version), with their direct dependencies."""
    graph = {}
    ancestors = []
    for line in output("cargo", "tree", "--locked", "--edges", "normal,build", "--target", TARGET, "--prefix", "depth",
                       "--format", " {p}").splitlines():
        if not line:
            continue
        depth, name, version = line.split()[:3]
        crate = (name, version.removeprefix("v"))
        ancestors[int(depth):] = [crate]
        graph.setdefault(crate, set())
        if len(ancestors) > 1:
            graph[ancestors[-2]].add(crate)
    return graph


def closure(graph, root):
    visited, pending = set(), [root]
    while pending:
        crate = pending.pop()
        if crate not in visited:
            visited.add(crate)
            pending.extend(graph[crate])
    return visited


def retain(sbom, crates):
    """Removes all other crates from an SBOM.

    cargo-cyclonedx also lists crates that no feature enables, such as a second TLS provider.
    """
    def identity(component):
        return component["name"], component["version"]

    components = [sbom["metadata"]["component"], *sbom["components"]]
    if missing := crates - set(map(identity, components)):
        raise SystemExit(f"make sbom: cargo builds crates that cargo-cyclonedx does not list: {sorted(missing)}")
    refs = {component["bom-ref"] for component in components if identity(component) in crates}
    sbom["components"] = [component for component in sbom["components"] if component["bom-ref"] in refs]
    sbom["dependencies"] = [
        {**entry, "dependsOn": [ref for ref in entry.get("dependsOn", []) if ref in refs]}
        for entry in sbom["dependencies"] if entry["ref"] in refs]


def main():
    destination = ROOT / "target/sbom"
    destination.mkdir(parents=True, exist_ok=True)
    graph = dependency_graph()
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as path:
        folder = pathlib.Path(path)
        run_cyclonedx(folder)
        for function in FUNCTIONS:
            text = (folder / f"functions/{function}/{function}_bin.cdx.json").read_text()
            sbom = json.loads(text.replace(f"path+file://{folder}/", "path+file:///"))
            root = sbom["metadata"]["component"]
            retain(sbom, closure(graph, (root["name"], root["version"])))
            file = destination / f"{function}.cdx.json"
            file.write_text(json.dumps(sbom, indent=2) + "\n")
            print(f"{file.relative_to(ROOT)}: {len(sbom['components'])} crates")


if __name__ == "__main__":
    main()
