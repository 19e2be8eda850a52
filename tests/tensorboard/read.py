"""Reads a run's event file with TensorBoard's own reader and compares it with metrics.jsonl.

    pip install tensorboard
    python tests/tensorboard/read.py runs/quickstart

Every number that a row has must be a point of its tag, at its step, once, in float32; and nothing else may be
there.
"""

import json
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
    "train/learning_rate": "learning_rate",
    "eval/val_loss": "val_loss",
    "eval/hellaswag": "hellaswag",
    "eval/hellaswag_acc_norm": "hellaswag_acc_norm",
    "guard/loss_z": "loss_z",
    "guard/grad_z": "grad_z",
    "speed/step_ms": "step_ms",
    "speed/tokens_per_s": "tokens_per_s",
    "speed/mfu": "mfu",
}


def float32(value):
    return struct.pack("<f", value).hex()


def number(row, key):
    """The number of a row in float32, as bytes: a NaN is equal to itself. JSON has no NaN, its bits do."""
    bits = row.get(key + "_bits")
    value = row[key] if bits is None else struct.unpack(">d", bytes.fromhex(bits[2:]))[0]
    return None if value is None else "nan" if value != value else float32(value)


def main():
    run = pathlib.Path(sys.argv[1])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    found = set(events.Tags()["scalars"])
    assert found <= set(TAGS), found - set(TAGS)
    points = 0
    for tag, key in TAGS.items():
        expected = [(row["step"], number(row, key)) for row in rows if number(row, key) is not None]
        scalars = events.Scalars(tag) if tag in found else []
        got = [
            (point.step, "nan" if point.value != point.value else float32(point.value)) for point in scalars
        ]
        assert got == expected, (
            f"{tag}: {len(got)} points, {len(expected)} expected; {got[:3]} {expected[:3]}"
        )
        points += len(got)
    assert points > 0, "no point at all"
    print(f"{run.name}: {len(rows)} rows, {len(found)} tags, {points} points")


main()
