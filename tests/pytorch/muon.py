r"""Every update of Muon beside `torch.optim.Muon`: relative error of each matrix, step by step.

    runner run E.toml --set optimizer.kind=muon --set optimizer.grad_clip=0 --set checkpoint.every=1 \
        --name muon
    python tests/pytorch/muon.py runs/muon

A checkpoint has the momentum after its step, from which the step's gradient follows. PyTorch's optimizer is
given that gradient, the weights of the checkpoint before and the momentum it made itself. Its iterations are
run in fp32 (its own code, with another type) for a run in fp32, and as they are for one in bf16. Exits with 1
where an update is further from PyTorch's than rounding explains.
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
    if not narrow:
        source = inspect.getsource(_muon._zeropower_via_newtonschulz).replace("bfloat16", "float32")
        exec(source, _muon.__dict__)
    matrices = [name.removeprefix("muon_m/") for name in checkpoints[0] if name.startswith("muon_m/")]
    assert len(checkpoints) > 2 and len(matrices) % 4 == 0 and matrices, (len(checkpoints), matrices)
    beta, decay, worst, count = np.float64(np.float32(0.95)), 0.1, 0.0, 0
    for name in matrices:
        parts = 3 if name.endswith("c_attn.weight") else 1
        weight = ("master/" if narrow else "") + name
        of = lambda checkpoint, key: np.split(checkpoint[key].astype(np.float64), parts)
        for part in range(parts):
            parameter = torch.nn.Parameter(torch.zeros(of(checkpoints[0], weight)[part].shape))
            optimizer = torch.optim.Muon(
                [parameter], lr=1.0, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
            )
            before = np.zeros(parameter.shape)
            for step, checkpoint in enumerate(checkpoints):
                momentum = of(checkpoint, f"muon_m/{name}")[part]
                gradient = (momentum - beta * before) / (1 - beta)
                before = momentum
                old = of(checkpoints[step - 1], weight)[part] if step else None
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(old if step else np.zeros(parameter.shape)))
                parameter.grad = torch.from_numpy(gradient).float()
                rate = rates[step]
                optimizer.param_groups[0]["lr"] = rate
                optimizer.step()
                if not step:
                    continue
                theirs = parameter.detach().double().numpy() - old
                ours = of(checkpoint, weight)[part] - old
                error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
                worst, count = max(worst, error), count + 1
    allowed = 5e-2 if narrow else 2e-3
    kind = "bf16" if narrow else "fp32"
    print(f"PyTorch {torch.__version__}: {count} updates in {kind}, worst relative error {worst:.2e}")
    return not worst <= allowed


if __name__ == "__main__":
    sys.exit(main())
