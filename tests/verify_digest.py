#!/usr/bin/env python3
"""Recompute the digests of a checkpoint folder, a ledger.jsonl or a sweep.lock from docs/digest.md; exit 1 on
a mismatch."""

import json, struct, sys, tomllib
from hashlib import sha256
from pathlib import Path


def tagged(tag, *parts):
    once = sha256(tag.encode()).digest()
    return sha256(once + once + b"".join(parts)).digest()


def tree(leaves):
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256().digest()
    split = 1 << ((len(leaves) - 1).bit_length() - 1)  # the largest power of two below the length
    return tagged("runner/node/v1", tree(leaves[:split]), tree(leaves[split:]))


def merkle(data):
    return tree([tagged("runner/leaf/v1", data[i : i + 4096]) for i in range(0, len(data), 4096)])


def tensor(name, dtype, shape, data):
    texts = b"".join(struct.pack("<I", len(s)) + s for s in (name.encode(), dtype.encode()))
    sizes = struct.pack(f"<I{len(shape)}QQ", len(shape), *shape, len(data))
    return tagged("runner/tensor/v1", texts, sizes, merkle(data))


def state(tensors):
    return tree([digest for _, digest in sorted((name.encode(), digest) for name, digest in tensors.items())])


def check(what, computed, recorded):
    if computed != recorded:
        sys.exit(f"MISMATCH {what}: computed {computed}, recorded {recorded}")


def checkpoint(folder):
    text = (folder / "manifest.json").read_bytes()
    manifest, body = json.loads(text), text.rsplit(b'  "seal": ', 1)[0]
    check("seal of the manifest", tagged("runner/manifest/v1", body).hex(), manifest["seal"])
    record, digests = manifest["file"], {}
    parts = {"runner/checkpoint/v1": None, "runner/checkpoint/v2": 1 << 28}
    if manifest["format"] not in parts:
        sys.exit(f"MISMATCH format: {manifest['format']} is none that this script knows")
    check("name of the file", "state.safetensors", record["name"])
    with open(folder / record["name"], "rb") as file:
        head = file.read(8)
        head += file.read(struct.unpack("<Q", head)[0])
        for name, info in sorted(json.loads(head[8:]).items(), key=lambda item: item[1]["data_offsets"]):
            data = file.read(info["data_offsets"][1] - info["data_offsets"][0])
            digests[name] = tensor(name, info["dtype"], info["shape"], data)
            check(f"tensor {name}", digests[name].hex(), manifest["tensors"].get(name))
        check("length of the file", file.seek(0, 2), record["bytes"])
        size = parts[manifest["format"]] or record["bytes"]
        sums = record["sha256"] if parts[manifest["format"]] else [record["sha256"]]
        check("sums of the file", [str] * len(sums), [type(sum) for sum in sums])
        check("number of parts", -(-record["bytes"] // size), len(sums))
        file.seek(0)
        for number, expected in enumerate(sums, 1):
            check(f"SHA-256 of part {number} of the file", sha256(file.read(size)).hexdigest(), expected)
    check("names of the tensors", sorted(digests), sorted(manifest["tensors"]))
    check("state root", state(digests).hex(), manifest["state_root"])
    print(f"ok: step {manifest['step']}, state root {manifest['state_root']}")


def ledger(path):
    peaks, root = [], tree([])  # peaks: perfect subtrees, largest first, as (leaves, root)
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.startswith(b'{"note":'):
            canonical, head = line.removeprefix(b'{"entry":').rsplit(b',"head":"', 1)
            peaks.append((1, tagged("runner/step/v1", canonical)))
            while len(peaks) > 1 and peaks[-2][0] == peaks[-1][0]:
                (size, left), (_, right) = peaks[-2:]
                peaks[-2:] = [(2 * size, tagged("runner/node/v1", left, right))]
            root = peaks[-1][1]
            for _, left in peaks[-2::-1]:
                root = tagged("runner/node/v1", left, root)
            check(f"head in line {number}", root.hex() + '"}', head.decode())
    print(f"ok: {sum(size for size, _ in peaks)} entries, head {root.hex()}")


def sweep_hash(members):
    texts = lambda table: [
        text.encode() for key in sorted(table, key=str.encode) for text in (key, table[key])
    ]
    lengths = lambda table: b"".join(struct.pack("<I", len(text)) + text for text in texts(table))
    return tree([tagged("runner/sweep/v1", lengths(table)) for table in members])


def sweep(path):
    lock = tomllib.loads(path.read_text())
    check("hash of the sweep", sweep_hash(lock["member"]).hex(), lock["hash"])
    print(f"ok: {len(lock['member'])} members, hash {lock['hash']}")


def vectors():
    ramp = lambda n: bytes((31 * i + 7) % 251 for i in range(n))
    for n in (0, 1, 4095, 4096, 4097, 12288, 20480, 28772, 1048577, 3145728):
        print(f"| `merkle(ramp({n}))` | `{merkle(ramp(n)).hex()}` |")
    cases = {
        "b": ("F32", [3, 683], ramp(8196)),
        "a/é": ("BF16", [0, 4], b""),
        "train/step": ("U64", [], ramp(8)),
    }
    digests = {name: tensor(name, *case) for name, case in cases.items()}
    for name, (dtype, shape, data) in cases.items():
        print(f'| `tensor("{name}", {dtype}, {shape}, ramp({len(data)}))` | `{digests[name].hex()}` |')
    print(f"| `state` of these three | `{state(digests).hex()}` |")
    members = [
        {"number": n, "setting.seed": seed, "state_root": "ab"} for n, seed in (("1", "0"), ("2", "1"))
    ]
    print(
        "| sweep of two members, `number` 1 and 2, `setting.seed` 0 and 1, `state_root` `ab` | "
        f"`{sweep_hash(members).hex()}` |"
    )


if __name__ == "__main__":
    sys.excepthook = lambda kind, error, _: print(f"MISMATCH: {kind.__name__}: {error}", file=sys.stderr)
    path = (
        Path(sys.argv[1])
        if len(sys.argv) == 2
        else sys.exit("usage: verify_digest.py CHECKPOINT_FOLDER | LEDGER | SWEEP_LOCK | --vectors")
    )
    vectors() if path == Path("--vectors") else checkpoint(path) if path.is_dir() else sweep(
        path
    ) if path.name == "sweep.lock" else ledger(path)
