"""What the files of a run say of it, for the comparison with what another tracker reads."""

import json
import pathlib
import struct
import subprocess
import tomllib

# Column of the metrics by the name that trackers get.
TAGS = {
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
    "train/learning_rate": "learning_rate",
    "guard/loss_z": "loss_z",
    "guard/grad_z": "grad_z",
    "eval/val_loss": "val_loss",
    "eval/hellaswag": "hellaswag",
    "eval/hellaswag_acc_norm": "hellaswag_acc_norm",
    "speed/step_ms": "step_ms",
    "speed/tokens_per_s": "tokens_per_s",
    "speed/mfu": "mfu",
}


def export(program, runs, name, form, out):
    """Exports a run or sweep, which must succeed. Returns the paths that were printed."""
    command = [program, "export", name, "--format", form, "--out", str(out), "--runs", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def same(a, b):
    """Whether two numbers have the same bits, but that a NaN is a NaN."""
    return struct.pack("<d", a) == struct.pack("<d", b) or (a != a and b != b)


class Run:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        top = tomllib.loads((folder / "experiment.toml").read_text())
        self.sections = {key: value for key, value in top.items() if isinstance(value, dict)}
        self.seed = top["seed"]
        self.numerics_id = tomllib.loads((folder / "lock.toml").read_text())["numerics_id"]
        lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
        self.root = [line["entry"]["root"] for line in lines if line.get("entry", {}).get("root")][-1]

    def points(self, tag):
        """The steps at which something was measured, with the number as it is to the bit."""
        key, found = TAGS[tag], []
        for row in self.rows:
            bits = row.get(key + "_bits")
            value = row[key] if bits is None else struct.unpack(">d", bytes.fromhex(bits[2:]))[0]
            if value is not None:
                found.append((row["step"], value))
        return found
