"""What a release is made of, in the words of others: for `release/make.sh` and CI. Needs cargo alone.

    describe.py crates TARGET                     the crates in the program, as CycloneDX 1.6
    describe.py provenance TARGET FOLDER PACK     how the files of FOLDER were built, as SLSA provenance v1
    describe.py binstall TARGET FOLDER            fails unless `cargo binstall` would find the program
    describe.py policy                            fails unless every crate keeps to deny.toml

No output has a clock: it is a function of sources and toolchain.
"""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"


# With which a release is built.
FEATURES = ["--features", "object-storage"]


def said(*command):
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def in_program(target):
    """The crates that the program is built from, tests apart: [(package, SHA-256 of its archive, what it
    uses)], and the id of the first."""
    text = said("cargo", "metadata", "--format-version=1", "--locked", *FEATURES, "--filter-platform", target)
    metadata = json.loads(text)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    sums = {(crate["name"], crate["version"]): crate.get("checksum") for crate in locked}
    uses = lambda crate: sorted(
        dep["pkg"] for dep in nodes[crate]["deps"] if any(kind["kind"] != "dev" for kind in dep["dep_kinds"])
    )
    first = metadata["resolve"]["root"]
    found, left = {}, [first]
    while left:
        crate = left.pop()
        if crate not in found:
            package = packages[crate]
            found[crate] = (package, sums[package["name"], package["version"]], uses(crate))
            left += found[crate][2]
    return first, found


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def crates(target):
    first, found = in_program(target)
    components = []
    for crate, (package, checksum, _) in sorted(found.items()):
        component = {
            "type": "application" if crate == first else "library",
            "bom-ref": purl(package),
            "name": package["name"],
            "version": package["version"],
            "purl": purl(package),
            "licenses": [{"expression": package["license"].replace("/", " OR ")}],
        }
        if checksum:
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        components.append((crate == first, component))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": next(component for own, component in components if own)},
        "components": [component for own, component in components if not own],
        "dependencies": [
            {"ref": purl(package), "dependsOn": [purl(found[other][0]) for other in uses]}
            for _, (package, _, uses) in sorted(found.items())
        ],
    }


def provenance(target, folder, pack):
    _, found = in_program(target)
    resource = lambda path: {"name": path.name, "digest": {"sha256": sha256(path)}}
    wheels = re.findall(r"^(\S+)==(\S+) .*\n((?:    --hash=\S+.*\n)+)", wheel_pins(), re.M)
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [resource(path) for path in sorted(Path(folder).glob("runner-*"))],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:runner:release:v1",
                "externalParameters": {"script": "release/make.sh", "target": target},
                "internalParameters": {
                    "rustc": said("rustc", "--version"),
                    "dirty": bool(said("git", "status", "--porcelain")),
                },
                "resolvedDependencies": [
                    {"uri": "git:HEAD", "digest": {"gitCommit": said("git", "rev-parse", "HEAD")}},
                    {"name": "kernels.pack", "digest": {"sha256": sha256(Path(pack))}},
                    *(
                        {"uri": f"pkg:pypi/{name}@{version}", "digest": {"sha256": digest}}
                        for name, version, hashes in wheels
                        for digest in re.findall(r"sha256:(\w+)", hashes)[:1]
                    ),
                    *(
                        {"uri": purl(package), "digest": {"sha256": checksum}}
                        for _, (package, checksum, _) in sorted(found.items())
                        if checksum
                    ),
                ],
            },
            "runDetails": {"builder": {"id": "urn:runner:local"}},
        },
    }


def wheel_pins():
    return "".join((ROOT / "release" / name).read_text() for name in ["requirements.txt", "tools.txt"])


def binstall(target, folder):
    """`cargo binstall` reads where archive and program are from Cargo.toml; both must be there."""
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    rules = package["metadata"]["binstall"]
    fill = lambda text: re.sub(
        r"\{ (\w+) \}",
        lambda word: {"version": package["version"], "target": target, "bin": "runner", "repo": "REPO"}[
            word[1]
        ],
        text,
    )
    archive = fill(rules["pkg-url"]).rsplit("/", 1)[1]
    with tarfile.open(Path(folder) / archive) as tar:
        if not tar.getmember(fill(rules["bin-dir"])).mode & 0o111:
            sys.exit(f"{archive}: {fill(rules['bin-dir'])} cannot be executed")


def policy():
    """The part of deny.toml that needs no network: licences and where crates come from."""
    allowed = set(tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]["allow"])
    text = said("cargo", "metadata", "--format-version=1", "--locked")
    bad = []
    for package in json.loads(text)["packages"]:
        licence = (package["license"] or "none").replace("/", " OR ")
        terms = re.sub(r"[()]", " ", licence)
        # Of each part that must be kept to, one alternative is enough.
        parts = [part.split(" OR ") for part in terms.split(" AND ")]
        if not all(any(one.strip() in allowed for one in part) for part in parts):
            bad.append(f"{package['name']} {package['version']}: the licence {licence} is not in deny.toml")
        if package["source"] not in (None, CRATES_IO):
            bad.append(f"{package['name']} {package['version']} comes from {package['source']}")
    print("\n".join(bad) or "every crate keeps to deny.toml")
    sys.exit(bool(bad))


def main():
    match sys.argv[1:]:
        case ["crates", target]:
            print(json.dumps(crates(target), indent=2))
        case ["provenance", target, folder, pack]:
            print(json.dumps(provenance(target, folder, pack), indent=2))
        case ["binstall", target, folder]:
            binstall(target, folder)
        case ["policy"]:
            policy()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
