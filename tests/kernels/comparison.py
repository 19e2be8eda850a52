"""Comparisons of a kernel's output with what it should be, and the tensors that checks are made of."""

import numpy as np
import torch

from ops import F32

F64 = torch.float64
NAN = float("nan")
failures = []
worst = {}


def report(name, ok, detail=""):
    if not ok:
        failures.append(name)
        print(f"FAIL {name} {detail}", flush=True)


def close(name, out, ref, rel=None, floor=1e-5):
    """|out - ref| <= rel*|ref| + floor*rms(ref), everywhere. For bf16 `rel` is half a unit in the last place,
    and a little."""
    rel = rel or (2**-8 * 1.01 if out.dtype == torch.bfloat16 else 1e-5)
    bound = rel * ref.abs() + floor * ref.square().mean().sqrt()
    error = (out.to(F64) - ref).abs()
    excess = torch.where(error == 0, 0, error / bound).nan_to_num(nan=1e9).max().item()
    key = name.split()[0] + (" bf16" if out.dtype == torch.bfloat16 else " f32")
    worst[key] = max(worst.get(key, 0), excess)
    report(name, excess <= 1, f"error is {excess:.2f} times the bound")


def bytes_of(t):
    return t.contiguous().view(torch.uint8)


def same(name, a, b):
    report(name, torch.equal(bytes_of(a), bytes_of(b)), "bytes differ")


def randn(*shape, dtype=F32, scale=1.0, shift=0.0):
    return (torch.randn(*shape, device="cuda") * scale + shift).to(dtype)


def poison(*shape, dtype=F32):
    return torch.full(shape, NAN, dtype=dtype, device="cuda")


def skewed_ids(n, vocab):
    """Token ids with a few very frequent ones, as text has."""
    ids = (torch.rand(n, device="cuda").pow(6) * vocab).long().clamp(max=vocab - 1)
    return ids


def as_u16(ids):
    return torch.from_numpy(ids.cpu().numpy().astype(np.uint16).view(np.int16)).cuda()
