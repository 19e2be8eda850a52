r"""Every update of Muon beside `torch.optim.Muon`: relative error of each matrix, step by step.

    runner run E.toml --set optimizer.kind=muon --set optimizer.grad_clip=0 --set checkpoint.every=1 \
        --name muon
    python tests/pytorch/muon.py runs/muon

A checkpoint has the momentum after its step, from which the step's gradient follows. PyTorch's optimizer is
given that gradient, the weights of the checkpoint before and the momentum it made itself, and runs its
iterations in fp32 (its own code, with another type). For a run in bf16 it makes each update a second time in
bf16, as it is: bf16 leaves much of a small singular value open, and how much shows in PyTorch's own distance
from fp32. Exits with 1 where an update in fp32 is further from PyTorch's than rounding explains, or updates
in bf16 are further from fp32 than PyTorch's in bf16, in the mean and at worst.
"""

import inspect
import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from torch.optim import _muon


def tensors(checkpoint):
    with open(checkpoint / "state.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start = file.tell()
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            data = file.read(end - begin)
            if entry["dtype"] == "F32":
                yield name, np.frombuffer(data, dtype="<f4").reshape(entry["shape"])


def main():
    run = Path(sys.argv[1])
    metrics = [json.loads(line) for line in open(run / "metrics.jsonl")]
    rates = {row["step"]: row["learning_rate"] for row in metrics if "learning_rate" in row}
    checkpoints = [dict(tensors(folder)) for folder in sorted((run / "checkpoints").glob("step_*"))]
    narrow = any(name.startswith("master/") for name in checkpoints[0])
    narrow_iterations = _muon._zeropower_via_newtonschulz
    source = inspect.getsource(narrow_iterations).replace("bfloat16", "float32")
    exec(source, _muon.__dict__)
    iterations = {"fp32": _muon._zeropower_via_newtonschulz, "bf16": narrow_iterations}
    matrices = [name.removeprefix("muon_m/") for name in checkpoints[0] if name.startswith("muon_m/")]
    assert len(checkpoints) > 2 and len(matrices) % 4 == 0 and matrices, (len(checkpoints), matrices)
    beta, decay = np.float64(np.float32(0.95)), 0.1
    distances = {"ours": [], "PyTorch's in bf16": []}
    for name in matrices:
        parts = 3 if name.endswith("c_attn.weight") else 1
        weight = ("master/" if narrow else "") + name
        of = lambda checkpoint, key: np.split(checkpoint[key].astype(np.float64), parts)
        for part in range(parts):
            shape = of(checkpoints[0], weight)[part].shape
            theirs = {}
            for kind in ["fp32", "bf16"] if narrow else ["fp32"]:
                parameter = torch.nn.Parameter(torch.zeros(shape))
                theirs[kind] = (
                    parameter,
                    torch.optim.Muon(
                        [parameter], lr=1.0, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
                    ),
                )
            before = np.zeros(shape)
            for step, checkpoint in enumerate(checkpoints):
                momentum = of(checkpoint, f"muon_m/{name}")[part]
                gradient = (momentum - beta * before) / (1 - beta)
                before = momentum
                old = of(checkpoints[step - 1], weight)[part] if step else None
                updates = {}
                for kind, (parameter, optimizer) in theirs.items():
                    with torch.no_grad():
                        parameter.copy_(torch.from_numpy(old if step else np.zeros(shape)))
                    parameter.grad = torch.from_numpy(gradient).float()
                    optimizer.param_groups[0]["lr"] = rates[step]
                    _muon._zeropower_via_newtonschulz = iterations[kind]
                    optimizer.step()
                    updates[kind] = parameter.detach().double().numpy() - (old if step else 0.0)
                if not step:
                    continue
                exact = updates["fp32"]
                found = {"ours": of(checkpoint, weight)[part] - old}
                if narrow:
                    found["PyTorch's in bf16"] = updates["bf16"]
                for who, update in found.items():
                    distances[who].append(np.linalg.norm(update - exact) / np.linalg.norm(exact))
    print(f"PyTorch {torch.__version__}: {len(distances['ours'])} updates, relative to its own in fp32")
    for who, found in distances.items():
        if found:
            print(f"{who}: mean {np.mean(found):.2e}, at worst {max(found):.2e}")
    ours, others = distances["ours"], distances["PyTorch's in bf16"]
    if narrow:
        return not (np.mean(ours) <= 1.2 * np.mean(others) and max(ours) <= 1.2 * max(others))
    return not max(ours) <= 2e-3


if __name__ == "__main__":
    sys.exit(main())
