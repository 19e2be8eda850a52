"""Every gradient of one step beside PyTorch's: relative error and cosine, tensor by tensor.

    runner config E.toml --set data.order=sequential --set optimizer.grad_clip=0 --set schedule.steps=1 --json
    > experiment.json runner run E.toml (the same settings) --name gradients python tests/pytorch/gradients.py
    experiment.json runs/gradients/checkpoints/step_00000001/state.safetensors

After one step from zero moments, `adam_m` is (1 - beta1) times the gradient. It is compared with PyTorch in
fp32, eager, without TF32. PyTorch's own bf16 autocast is compared with the same, which separates the error of
the format from ours. Exits with 1 when a tensor of ours is more than 1.5 times as far from fp32 as
autocast's, and the distance is above 1e-3.
"""

import json
import struct
import sys

import numpy as np
import torch

import compare


def saved_gradients(path, beta1):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start = file.tell()
        for name, entry in header.items():
            if name.startswith("adam_m/"):
                file.seek(start + entry["data_offsets"][0])
                data = file.read(entry["data_offsets"][1] - entry["data_offsets"][0])
                values = np.frombuffer(data, dtype="<f4").astype(np.float64).reshape(entry["shape"])
                yield name.removeprefix("adam_m/"), values / (1 - np.float64(np.float32(beta1)))


def names(layers):
    yield from ("wte.weight", "wpe.weight")
    for layer in range(layers):
        for module in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            yield from (f"h.{layer}.{module}.weight", f"h.{layer}.{module}.bias")
    yield from ("ln_f.weight", "ln_f.bias")


def gradients(e, autocast, device):
    m, b, t = e["model"], e["batch"]["micro"], e["batch"]["seq_len"]
    micro_steps = e["batch"]["tokens"] // (b * t)
    shards = compare.read_tokens(e["data"]["train"])
    starts = [(shard, i * t) for shard in shards for i in range((len(shard) - 1) // t)]
    with torch.device(device):
        model = compare.GPT2(m)
    model.initialise(e["seed"], m["layers"])
    total = 0.0
    for micro in range(micro_steps):
        rows = np.stack(
            [s[o : o + t + 1] for s, o in (starts[(micro * b + i) % len(starts)] for i in range(b))]
        )
        batch = torch.from_numpy(rows.astype(np.int64)).to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            loss = model(batch[:, :-1], batch[:, 1:]) / micro_steps
        loss.backward()
        total += loss.item()
    found = {}
    for name, tensor in zip(names(m["layers"]), model.tensors()):
        grad = tensor.grad[: m["vocab"]] if name == "wte.weight" else tensor.grad
        found[name] = grad.double().cpu().numpy()
    return total, found


def main():
    e = json.load(open(sys.argv[1]))
    e = e.get("experiment", e)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    loss, reference = gradients(e, False, device)
    loss_autocast, autocast = gradients(e, True, device)
    ours = dict(saved_gradients(sys.argv[2], e["optimizer"]["beta1"]))
    assert ours.keys() == reference.keys(), ours.keys() ^ reference.keys()
    error = lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b)
    cosine = lambda a, b: (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))
    print(
        f"PyTorch {torch.__version__} on {device}: loss {loss:.6f} in fp32, {loss_autocast:.6f} in autocast"
    )
    print(f"{'tensor':28} {'ours: error':>12} {'cosine':>10} {'autocast: error':>16} {'cosine':>10}")
    failed = 0
    for name, want in reference.items():
        a, b = error(ours[name], want), error(autocast[name], want)
        print(
            f"{name:28} {a:12.2e} {cosine(ours[name], want):10.7f} {b:16.2e} "
            f"{cosine(autocast[name], want):10.7f}"
        )
        failed += not a <= max(1.5 * b, 1e-3)
    worst = max(reference, key=lambda name: error(ours[name], reference[name]))
    print(
        f"{len(reference)} tensors, worst `{worst}` at {error(ours[worst], reference[worst]):.2e}, "
        f"{failed} failed"
    )
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
