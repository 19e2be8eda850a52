"""Trains the same experiment in PyTorch: same initial weights, same batches, same optimizer, same schedule.

    runner config experiments/gpt2_124m.toml --set data.order=sequential --json > experiment.json
    python tests/pytorch/compare.py experiment.json --steps 100 --precision autocast --log pytorch.log

The initial weights are those of `runner` (src/model/init.rs, src/rng.rs), computed here from their
description: Philox4x32-10 keyed by SHA-256, Box and Muller in float64. Batches are the shards' sequences in
order, so `data.order` must be `sequential`. Precisions: `autocast` keeps fp32 weights and computes in bf16;
`pure` keeps bf16 weights with no master copy; `fp32` computes in fp32. The model is compiled unless --eager.
--log writes losses in llm.c's main.log format, which `runner plot` overlays.
"""

import argparse
import glob
import hashlib
import json
import math
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MASK = 0xFFFFFFFF


def philox_normal(seed, tensor_id, count, device):
    """Normal numbers at the counters (tensor_id, 0..count), in float64."""
    key = hashlib.sha256(b"runner/rng/v1" + seed.to_bytes(8, "little") + b"init").digest()
    k0, k1 = int.from_bytes(key[:4], "little"), int.from_bytes(key[4:8], "little")
    out = torch.empty(count, dtype=torch.float64, device=device)
    for start in range(0, count, 1 << 24):
        index = torch.arange(start, min(start + (1 << 24), count), dtype=torch.int64, device=device)
        c0, c1 = index & MASK, index >> 32
        c2, c3 = torch.full_like(index, tensor_id), torch.zeros_like(index)
        a0, a1 = k0, k1
        for _ in range(10):
            p, q = c0 * 0xD2511F53, c2 * 0xCD9E8D57
            c0, c1, c2, c3 = ((q >> 32) & MASK) ^ c1 ^ a0, q & MASK, ((p >> 32) & MASK) ^ c3 ^ a1, p & MASK
            a0, a1 = (a0 + 0x9E3779B9) & MASK, (a1 + 0xBB67AE85) & MASK
        unit = lambda high, low: ((high << 21) | (low >> 11)).double() / (1 << 53)
        radius = torch.sqrt(-2.0 * torch.log(1.0 - unit(c0, c1)))
        out[start : start + index.numel()] = radius * torch.cos(2.0 * math.pi * unit(c2, c3))
    return out


class Block(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.qkv, self.proj = nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.ln_2, self.fc, self.fc_proj = nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.Linear(4 * c, c)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(self.ln_1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        att = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(att.transpose(1, 2).reshape(b, t, c))
        return x + self.fc_proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.vocab = m["vocab"]
        self.wte, self.wpe = (
            nn.Embedding(m["vocab_padded"], m["channels"]),
            nn.Embedding(m["context"], m["channels"]),
        )
        self.layers = nn.ModuleList(Block(m["channels"], m["heads"]) for _ in range(m["layers"]))
        self.ln_f = nn.LayerNorm(m["channels"])

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits = (self.ln_f(x) @ self.wte.weight.T)[..., : self.vocab]
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def tensors(self):
        """The parameters in `runner`'s order, in which each has its number."""
        tensors = [self.wte.weight, self.wpe.weight]
        for l in self.layers:
            for module in (l.ln_1, l.qkv, l.proj, l.ln_2, l.fc, l.fc_proj):
                tensors += [module.weight, module.bias]
        return tensors + [self.ln_f.weight, self.ln_f.bias]

    @torch.no_grad()
    def initialise(self, seed, layers):
        tensors = self.tensors()
        projections = {id(w) for l in self.layers for w in (l.proj.weight, l.fc_proj.weight)}
        for number, tensor in enumerate(tensors):
            if tensor.dim() == 1:
                tensor.fill_(
                    1.0
                    if any(tensor is n.weight for n in self.modules() if isinstance(n, nn.LayerNorm))
                    else 0.0
                )
                continue
            std = 0.02 / math.sqrt(2 * layers) if id(tensor) in projections else 0.02
            logical = tensor[: self.vocab] if tensor is self.wte.weight else tensor
            values = std * philox_normal(seed, number, logical.numel(), tensor.device)
            tensor.zero_()
            logical.copy_(values.float().view_as(logical))


def read_tokens(patterns):
    """All sequences' source: the shards in name order, as one list of token arrays."""
    shards = []
    for path in sorted(path for pattern in patterns for path in glob.glob(pattern)):
        header = np.fromfile(path, dtype=np.int32, count=256)
        assert header[0] == 20240520 and header[1] == 1, path
        shards.append(np.fromfile(path, dtype=np.uint16, offset=1024))
    return shards


def learning_rate(s, step):
    peak, floor = s["learning_rate"], s["learning_rate"] * s["final_fraction"]
    if step < s["warmup_steps"]:
        return peak * (step + 1) / s["warmup_steps"]
    ratio = (step - s["warmup_steps"]) / max(1, s["steps"] - s["warmup_steps"])
    assert s["kind"] == "cosine"
    return floor + 0.5 * (1 + math.cos(math.pi * ratio)) * (peak - floor)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", choices=("autocast", "pure", "fp32"), default="autocast")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--log")
    args = parser.parse_args()

    e = json.load(open(args.experiment))
    e = e.get("experiment", e)
    assert e["data"]["order"] == "sequential", "set data.order=sequential"
    m, opt = e["model"], e["optimizer"]
    b, t = e["batch"]["micro"], e["batch"]["seq_len"]
    micro_steps = e["batch"]["tokens"] // (b * t)
    shards = read_tokens(e["data"]["train"])
    starts = [(shard, i * t) for shard in shards for i in range((len(shard) - 1) // t)]

    device = "cuda"
    torch.set_float32_matmul_precision("high")
    with torch.device(device):
        model = GPT2(m)
    model.initialise(e["seed"], m["layers"])
    if args.precision == "pure":
        model.bfloat16()
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decay, "weight_decay": opt["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=0.0, betas=(opt["beta1"], opt["beta2"]), eps=opt["epsilon"], fused=True
    )
    forward = model if args.eager else torch.compile(model)

    log = open(args.log, "w", buffering=1) if args.log else None
    times = []
    for step in range(args.steps):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        total = 0.0
        for micro in range(micro_steps):
            first = (step * micro_steps + micro) * b
            rows = np.stack(
                [s[o : o + t + 1] for s, o in (starts[(first + i) % len(starts)] for i in range(b))]
            )
            batch = torch.from_numpy(rows.astype(np.int64)).pin_memory().to(device, non_blocking=True)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=args.precision == "autocast"):
                loss = forward(batch[:, :-1], batch[:, 1:])
            (loss / micro_steps).backward()
            total = total + loss.detach() / micro_steps
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), opt["grad_clip"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(e["schedule"], step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total = total.item()
        times.append(time.perf_counter() - begin)
        if log:
            log.write(f"s:{step} trl:{total:.6f} lr:{group['lr']:.6f} norm:{norm.item():.4f}\n")
        print(
            f"step {step + 1}/{args.steps} | loss {total:.6f} | norm {norm.item():.4f} | "
            f"{times[-1] * 1e3:.1f} ms",
            flush=True,
        )
    median = statistics.median(times[3:] or times)
    print(
        f"PyTorch {torch.__version__} {args.precision}{' eager' if args.eager else ' compiled'}: "
        f"{median * 1e3:.1f} ms a step, "
        f"{e['batch']['tokens'] / median:.0f} tok/s, "
        f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB at the peak"
    )


if __name__ == "__main__":
    main()
