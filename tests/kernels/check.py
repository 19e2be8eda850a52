"""Every kernel against an fp64 or exact reference, then against itself: repeats must give the same bytes
while another stream keeps the GPU busy. Needs a GPU, PyTorch and NVRTC. Exit status 1 on any failure.

Inputs are random (never zeros), outputs are poisoned with NaN before each run, shapes are odd on purpose.
"""

import contextlib
import hashlib
import io
import sys
import time

import numpy as np
import torch

from comparison import (
    F64,
    NAN,
    as_u16,
    bytes_of,
    close,
    failures,
    poison,
    randn,
    report,
    same,
    skewed_ids,
    worst,
)
from functions import gelu64, norm_reference, philox, squared_relu64, swiglu64
from ops import F32, Ops, ceil, run


def check_embedding(ops, t):
    for batch, seq, c, vocab in [(3, 37, 384, 1000), (1, 5, 12288, 300), (2, 129, 1600, 50304)]:
        ids = skewed_ids(batch * seq, vocab)
        wte, wpe = randn(vocab, c, dtype=t), randn(seq + 3, c, dtype=t)
        out = poison(batch * seq, c, dtype=t)
        run(ops.embedding(out, as_u16(ids), wte, wpe, seq))
        same(
            f"embedding {c}",
            out,
            (wte[ids].float() + wpe[torch.arange(batch * seq, device="cuda") % seq].float()).to(t),
        )
    for batch, seq, c, vocab, kind in [
        (3, 701, 384, 50304, "skewed"),
        (1, 31, 1600, 50257, "skewed"),
        (5, 1000, 768, 50304, "hot"),
        (2, 1, 2880, 300, "hot"),
        (3, 341, 5120, 4, "skewed"),
        (128, 1024, 384, 50304, "uniform"),
    ]:
        n = batch * seq
        ids = {
            "skewed": skewed_ids(n, vocab),
            "hot": torch.full((n,), vocab - 1, device="cuda"),
            "uniform": torch.randint(vocab, (n,), device="cuda"),
        }[kind]
        for whole in [True, False]:  # whole numbers make float sums exact
            name = f"embedding_backward {batch}x{seq} {c} {kind} {'exact' if whole else ''}"
            dout = torch.randint(-8, 9, (n, c), device="cuda").to(t) if whole else randn(n, c, dtype=t)
            start = torch.randint(-8, 9, (vocab, c), device="cuda").float() if whole else randn(vocab, c)
            dwte, dwpe, dwpe_added = start.clone(), poison(seq + 7, c), randn(seq + 7, c).round()
            before = dwpe_added.clone()
            run(ops.embedding_backward(dwte, dwpe, 0, dout, as_u16(ids), batch, seq))
            ref = start.to(F64).index_add(0, ids, dout.to(F64))
            pos = torch.zeros_like(dwpe, dtype=F64)
            pos[:seq] = dout.to(F64).view(batch, seq, c).sum(0)
            run(ops.embedding_backward(start.clone(), dwpe_added, 1, dout, as_u16(ids), batch, seq))
            if whole:
                same(name + " dwte", dwte, ref.float())
                same(name + " dwpe", dwpe + 0.0, pos.float() + 0.0)
                same(name + " dwpe added", dwpe_added + 0.0, (before.to(F64) + pos).float() + 0.0)
            else:
                close(name + " dwte", dwte, ref, floor=1e-4)
                close(name + " dwpe", dwpe, pos)


def check_other_norms(ops, t):
    """What lacks a mean (RMSNorm), a bias, or both."""
    for rms, biased in [(False, False), (True, True), (True, False)]:
        for n, c in [(1025, 768), (515, 1600), (77, 2056), (9, 5120), (3, 8), (6, 16384)]:
            name = f"{'rmsnorm' if rms else 'layernorm'}{'' if biased else '_unbiased'} {n}x{c}"
            x, branch, dout = randn(n, c, dtype=t, shift=0.7), randn(n, c, dtype=t), randn(n, c, dtype=t)
            weight, bias = randn(c, dtype=t, shift=1), randn(c, dtype=t) * biased
            given = bias if biased else None
            for fused in [False, True]:
                out, residual, rstd = poison(n, c, dtype=t), poison(n, c, dtype=t), poison(n)
                mean = None if rms else poison(n)
                run(ops.layernorm(out, mean, rstd, x, weight, given, *([branch, residual] if fused else [])))
                stored = (x.float() + branch.float()).to(t) if fused else x
                m, r, o = norm_reference(stored, weight, bias, rms)
                close(f"{name} rstd {fused}", rstd, r)
                close(f"{name} out {fused}", out, o)
                if not rms:
                    close(f"{name} mean {fused}", mean, m)
            mean, rstd, _ = norm_reference(x, weight, bias, rms)
            h, g = (x.to(F64) - mean[:, None]) * rstd[:, None], dout.to(F64) * weight.to(F64)
            dx_ref = rstd[:, None] * (
                g - g.mean(1, keepdim=True) * (not rms) - h * (g * h).mean(1, keepdim=True)
            )
            dx, dw, db = poison(n, c, dtype=t), poison(c), poison(c) if biased else None
            mean = None if rms else mean.float()
            run(ops.layernorm_backward(dx, 0, dw, db, 0, dout, x, weight, mean, rstd.float()))
            close(name + " dx", dx, dx_ref)
            close(name + " dweight", dw, (dout.to(F64) * h).sum(0))
            if biased:
                close(name + " dbias", db, dout.to(F64).sum(0))


def check_layernorm(ops, t):
    sizes = {1: 384, 1025: 768, 515: 1600, 77: 2056, 33: 2880, 9: 5120, 7: 12288, 3: 8, 6: 16384}
    for n, c in sizes.items():
        x, branch = randn(n, c, dtype=t, shift=0.7), randn(n, c, dtype=t)
        weight, bias = randn(c, dtype=t, shift=1), randn(c, dtype=t)
        for fused in [False, True]:
            name = f"layernorm {n}x{c} {'residual' if fused else ''}"
            out, residual, mean, rstd = poison(n, c, dtype=t), poison(n, c, dtype=t), poison(n), poison(n)
            run(ops.layernorm(out, mean, rstd, x, weight, bias, *([branch, residual] if fused else [])))
            stored = (x.float() + branch.float()).to(t) if fused else x
            if fused:
                same(name, residual, stored)
            m, r, o = norm_reference(stored, weight, bias)
            close(name + " mean", mean, m)
            close(name + " rstd", rstd, r)
            close(name + " out", out, o)
    for n, c in [
        (1, 384),
        (1025, 768),
        (515, 1600),
        (2051, 1600),
        (33, 2880),
        (5, 4096),
        (9, 5120),
        (6, 12288),
        (3, 8),
        (2, 16384),
    ]:
        x, dout, before = randn(n, c, dtype=t, shift=0.7), randn(n, c, dtype=t), randn(n, c, dtype=t)
        weight, bias = randn(c, dtype=t, shift=1), randn(c, dtype=t)
        mean, rstd, _ = norm_reference(x, weight, bias)
        h, g = (x.to(F64) - mean[:, None]) * rstd[:, None], dout.to(F64) * weight.to(F64)
        dx_ref = rstd[:, None] * (g - g.mean(1, keepdim=True) - h * (g * h).mean(1, keepdim=True))
        dw_ref, db_ref = (dout.to(F64) * h).sum(0), dout.to(F64).sum(0)
        mean, rstd = mean.float(), rstd.float()
        for add in [0, 1]:
            name = f"layernorm_backward {n}x{c} {'add' if add else 'set'}"
            dx = before.clone() if add else poison(n, c, dtype=t)
            dw, db = (randn(c), randn(c)) if add else (poison(c), poison(c))
            dw0, db0 = (dw.to(F64), db.to(F64)) if add else (0, 0)
            run(ops.layernorm_backward(dx, add, dw, db, add, dout, x, weight, mean, rstd))
            close(name + " dx", dx, dx_ref + (before.to(F64) if add else 0))
            close(name + " dweight", dw, dw_ref + dw0)
            close(name + " dbias", db, db_ref + db0)
            if not add:
                aliased = dout.clone()
                run(ops.layernorm_backward(aliased, 0, dw, db, 0, aliased, x, weight, mean, rstd))
                same(name + " in place", aliased, dx)


def check_gelu(ops, t):
    for n in [1, 7, 8, 4095, 100003]:
        pre, out = randn(n, dtype=t, scale=2), poison(n, dtype=t)
        run(ops.gelu(out, pre))
        close(f"gelu {n}", out, gelu64(pre)[0], rel=None if t != F32 else 2e-5)
    for n, width in [(1, 1536), (129, 3072), (1000, 6400), (300, 8), (128, 264)]:
        pre, dout, dpre, dbias = (
            randn(n, width, dtype=t, scale=2),
            randn(n, width, dtype=t),
            poison(n, width, dtype=t),
            poison(width),
        )
        run(ops.gelu_backward(dpre, dout, pre, dbias))
        close(
            f"gelu_backward {n}x{width}", dpre, dout.to(F64) * gelu64(pre)[1], rel=None if t != F32 else 2e-5
        )
        again, sums = dout.clone(), poison(width)
        run(ops.gelu_backward(again, again, pre))
        same(f"gelu_backward {n}x{width} in place, no sums", again, dpre)
        run(ops.column_sum(sums, 0, dpre))
        same(f"gelu_backward {n}x{width} sums are column_sum's", sums, dbias)


def check_activate(ops, t):
    rel = None if t != F32 else 2e-5
    for n in [1, 3, 4, 7, 8, 2047, 4095, 100003]:
        pre, dout = randn(2 * n, dtype=t, scale=3), randn(n, dtype=t)
        out, dpre = poison(n, dtype=t), poison(n, dtype=t)
        want, slope = squared_relu64(pre[:n])
        run(ops.activate("squared_relu", out, pre[:n]))
        run(ops.activate_backward("squared_relu", dpre, dout, pre[:n]))
        close(f"squared_relu {n}", out, want, rel=rel)
        close(f"squared_relu_backward {n}", dpre, dout.to(F64) * slope, rel=rel)
        again = dout.clone()
        run(ops.activate_backward("squared_relu", again, again, pre[:n]))
        same(f"squared_relu_backward {n} in place", again, dpre)
        out, dpre = poison(n, dtype=t), poison(2 * n, dtype=t)
        want, gradient = swiglu64(pre, dout)
        run(ops.activate("swiglu", out, pre))
        run(ops.activate_backward("swiglu", dpre, dout, pre))
        close(f"swiglu {n}", out, want, rel=rel)
        close(f"swiglu_backward {n}", dpre, gradient, rel=rel)
    far = torch.tensor([100.0, 1.0, -100.0, 1.0, 1e4, 1.0, -1e4, 1.0], device="cuda").to(t)
    out, dpre, dout = poison(4, dtype=t), poison(8, dtype=t), torch.ones(4, device="cuda").to(t)
    run(ops.activate("swiglu", out, far))
    run(ops.activate_backward("swiglu", dpre, dout, far))
    report("swiglu far out", bool(out.isfinite().all() and dpre.isfinite().all()), f"{out} {dpre}")


def check_reduce(ops, t):
    for n, width in [(1, 8), (127, 384), (1000, 4800), (5000, 1600), (129, 264), (4097, 2304)]:
        dout = randn(n, width, dtype=t, shift=0.1)
        out, added = poison(width), randn(width)
        before = added.to(F64)
        run(ops.column_sum(out, 0, dout))
        run(ops.column_sum(added, 1, dout))
        close(f"column_sum {n}x{width}", out, dout.to(F64).sum(0))
        close(f"column_sum {n}x{width} add", added, dout.to(F64).sum(0) + before)


def check_classifier(ops, t):
    for n, padded, used in [
        (33, 50304, 50257),
        (5, 264, 257),
        (3, 8, 5),
        (17, 50304, 50304),
        (4, 4104, 4104),
    ]:
        x = randn(n, padded, dtype=t, scale=4)
        x[0, used - 1], x[-1, 0] = 90.0, -90.0
        targets = torch.randint(used, (n,), device="cuda")
        targets[0], targets[-1] = used - 1, 0
        scale = 1 / 512
        results = []
        for cached in [True, False]:
            logits, losses, only = x.clone(), poison(n), poison(n)
            run(ops.classifier(logits, only, as_u16(targets), used, gradient=False))
            same(f"classifier {padded} loss leaves the logits", logits, x)
            run(ops.classifier(logits, losses, as_u16(targets), used, scale, cached=cached))
            same(f"classifier {padded} loss alone", losses, only)
            results.append((logits, losses))
        logits, losses = results[0]
        same(f"classifier {padded} cached", logits, results[1][0])
        wide = x[:, :used].to(F64)
        lse = wide.logsumexp(1)
        loss_ref = lse - wide.gather(1, targets[:, None])[:, 0]
        report(
            f"classifier {padded} loss",
            (losses.to(F64) - loss_ref).abs().max() < 1e-5,
            f"{(losses.to(F64) - loss_ref).abs().max()}",
        )
        grad = (wide - lse[:, None]).exp()
        grad.scatter_add_(1, targets[:, None], torch.full((n, 1), -1.0, dtype=F64, device="cuda"))
        close(
            f"classifier {padded} gradient",
            logits[:, :used],
            grad * scale,
            rel=2**-8 * 1.01 if t != F32 else 3e-5,
            floor=1e-5,
        )
        report(f"classifier {padded} padding", bool((logits[:, used:] == 0).all()))
        bad, losses2 = x.clone(), poison(n)
        bad[1, 3] = NAN
        run(ops.classifier(bad, losses2, as_u16(targets), used, scale))
        keep = torch.arange(n, device="cuda") != 1
        report(
            f"classifier {padded} NaN", bool(losses2[1].isnan()) and torch.equal(losses2[keep], losses[keep])
        )


def check_philox():
    kat = philox(
        [0xA4093822, 0x299F31D0],
        [np.array([w], np.uint64) for w in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)],
    )
    report("philox reference", [int(w[0]) for w in kat] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1])


def check_adamw(ops, t):
    lengths = [1, 3, 4, 5, 7, 768, 16384, 16385, 50001, 32768]
    hyper = (6e-3, 0.9, 0.95, 1e-8, 1 / (1 - 0.9**3), 1 / (1 - 0.95**3), 0.37)
    lr, b1, b2, eps, c1, c2, scale = [float(np.float32(h)) for h in hyper]
    key, step = (0x12345678, 0x9ABCDEF0), 41
    for masters in [True, False]:
        tensors, starts = [], []
        for i, length in enumerate(lengths):
            master = randn(length) if masters else None
            param = poison(length, dtype=t) if masters else randn(length, dtype=t)
            grad, m, v = randn(length), randn(length, scale=0.1), randn(length, scale=0.1).square()
            tensors.append((param, master, grad, m, v, 0.1 if i % 2 else 0.0, 7 + i))
            starts.append([(master if masters else param).clone(), m.clone(), v.clone()])
        run(ops.adamw(tensors, hyper, key, step))
        for (param, master, grad, m, v, decay, number), (p0, m0, v0) in zip(tensors, starts):
            name = f"adamw {len(param)} {'master' if masters else 'no master'}"
            g = grad.to(F64) * scale
            m_ref, v_ref = b1 * m0.to(F64) + (1 - b1) * g, b2 * v0.to(F64) + (1 - b2) * g * g
            p_ref = p0.to(F64) - lr * (
                m_ref * c1 / ((v_ref * c2).sqrt() + eps) + float(np.float32(decay)) * p0.to(F64)
            )
            close(name + " m", m, m_ref)
            close(name + " v", v, v_ref)
            if masters:
                close(name + " p", master, p_ref)
                same(name + " param is the rounded master", param, master.to(t))
            elif t == F32:
                close(name + " p", param, p_ref)
            else:
                # The float value before rounding: the same update on a master that starts from the parameter.
                twin = p0.float()
                run(
                    ops.adamw(
                        [(poison(len(param), dtype=t), twin, grad, m0.clone(), v0.clone(), decay, number)],
                        hyper,
                        key,
                        step,
                    )
                )
                bits = twin.cpu().numpy().view(np.uint32)
                groups = np.arange(ceil(len(param), 4), dtype=np.uint64)
                words = philox(
                    key, [groups, groups * 0, groups * 0 + np.uint64(step), groups * 0 + np.uint64(number)]
                )
                random = np.stack(words, 1).reshape(-1)[: len(param)].astype(np.uint32)
                expected = ((bits + (random & 0xFFFF)) >> 16).astype(np.uint16)
                got = param.view(torch.int16).cpu().numpy().view(np.uint16)
                report(name + " stochastic rounding", np.array_equal(expected, got))
    # Stochastic rounding is unbiased: many elements of the same value, no gradient, decay moves them by half
    # a unit.
    if t != F32:
        n = 1 << 20
        param = torch.full((n,), 1.0, device="cuda").to(t)
        run(
            ops.adamw(
                [
                    (
                        param,
                        None,
                        torch.zeros(n, device="cuda"),
                        torch.zeros(n, device="cuda"),
                        torch.ones(n, device="cuda"),
                        -1.0,
                        3,
                    )
                ],
                (2**-9, 0.9, 0.95, 1e-8, 1.0, 1.0, 1.0),
                key,
                step,
            )
        )
        share = (param.float() > 1).double().mean().item()
        report("adamw rounding is unbiased", abs(share - 0.25) < 0.003, f"{share}")


def check_squares(ops):
    tensors = [randn(n) for n in [1, 5, 16384, 16385, 100001, 768, 3 * 16384, 10_000_001]]
    sums = poison(len(tensors), dtype=F64)
    run(ops.sum_squares(sums, tensors))
    ref = torch.stack([x.to(F64).square().sum() for x in tensors])
    report(
        "sum_squares",
        bool(((sums - ref).abs() / ref < 2e-8 + 1e-6 * (ref < 100)).all()),
        f"{(sums - ref) / ref}",
    )
    tensors[1][2], tensors[4][77] = float("inf"), NAN
    run(ops.sum_squares(sums, tensors))
    report(
        "sum_squares of inf and NaN",
        bool(sums[1].isinf()) and bool(sums[4].isnan()) and bool(sums[[0, 2, 3, 5, 6, 7]].isfinite().all()),
    )


def check_elementwise(ops, t):
    for n in [1, 3, 4, 1000, 4097, 100003]:
        a, b = randn(n), randn(n)
        total = a.clone()
        run(ops.elementwise("add_f32", total, b))
        same(f"add_f32 {n}", total, a + b)


# ---- digest: the specification in a few lines --------------------------------------------------------------


def tagged(tag, data):
    return hashlib.sha256(hashlib.sha256(tag).digest() * 2 + data).digest()


def merkle(leaves):
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return tagged(b"runner/node/v1", merkle(leaves[:split]) + merkle(leaves[split:]))


def after_tag(tag):
    """SHA-256's state after the tag's block, which hashlib does not show: one compression by hand."""
    primes = [p for p in range(2, 312) if all(p % q for q in range(2, p))]
    root = lambda p, k: integer_root(p << 32 * k, k) & 0xFFFFFFFF  # the first 32 bits of the fraction
    k = [root(p, 3) for p in primes]
    h = [root(p, 2) for p in primes[:8]]
    block = hashlib.sha256(tag).digest() * 2
    w = [int.from_bytes(block[4 * i : 4 * i + 4], "big") for i in range(16)]
    rotate = lambda x, n: (x >> n | x << 32 - n) & 0xFFFFFFFF
    for t in range(16, 64):
        s0, s1 = w[t - 15], w[t - 2]
        w.append(
            (
                w[t - 16]
                + (rotate(s0, 7) ^ rotate(s0, 18) ^ s0 >> 3)
                + w[t - 7]
                + (rotate(s1, 17) ^ rotate(s1, 19) ^ s1 >> 10)
            )
            & 0xFFFFFFFF
        )
    s = list(h)
    for t in range(64):
        a, b, c, d, e, f, g, hh = s
        t1 = hh + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + (e & f ^ ~e & g) + k[t] + w[t]
        t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + (a & b ^ a & c ^ b & c)
        s = [(t1 + t2) & 0xFFFFFFFF, a, b, c, (d + t1) & 0xFFFFFFFF, e, f, g]
    return [(x + y) & 0xFFFFFFFF for x, y in zip(h, s)]


def integer_root(x, k):
    low, high = 0, 1 << 64
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**k <= x else (low, middle)
    return low


TAGS = (after_tag(b"runner/leaf/v1"), after_tag(b"runner/node/v1"))


def check_digest(ops):
    sizes = [
        1,
        3,
        55,
        56,
        63,
        64,
        119,
        120,
        1536,
        4032,
        4087,
        4088,
        4095,
        4096,
        4097,
        12288,
        4096 * 5,
        4096 * 512,
        4096 * 513 + 17,
        4096 * 1027 - 1,
        2,
    ]
    for chosen in [sizes, sizes[:3], [4096 * 512 * 3 + 5]]:
        tensors = [torch.randint(256, (n,), device="cuda", dtype=torch.uint8) for n in chosen]
        launches, roots = ops.digest(tensors, *TAGS)
        run(launches)
        for size, tensor, root in zip(chosen, tensors, roots.cpu().numpy()):
            data = tensor.cpu().numpy().tobytes()
            expected = merkle(
                [tagged(b"runner/leaf/v1", data[i : i + 4096]) for i in range(0, len(data), 4096)]
            )
            report(f"digest {size}", root.tobytes() == expected)


# ---- repeats -----------------------------------------------------------------------------------------------


def repeat_cases(ops, t):
    """(name, launches, outputs, inputs to restore): restored or poisoned before each run."""
    n, c, vocab, width = 3001, 768, 50304, 3072
    batch, seq = 3001, 1
    x, dout, w, b = randn(n, c, dtype=t), randn(n, c, dtype=t), randn(c, dtype=t), randn(c, dtype=t)
    mean, rstd, _ = norm_reference(x, w, b)
    ids, f = as_u16(skewed_ids(n, 2000)), lambda *s, dtype=F32: poison(*s, dtype=dtype)
    big, pre = randn(n, width, dtype=t), randn(n, width, dtype=t)
    out, m, r, residual = f(n, c, dtype=t), f(n), f(n), f(n, c, dtype=t)
    yield "residual_layernorm", ops.layernorm(out, m, r, x, w, b, dout, residual), [out, m, r, residual], []
    dx, dw, db = randn(n, c, dtype=t), f(c), f(c)
    yield (
        "layernorm_backward",
        ops.layernorm_backward(dx, 1, dw, db, 0, dout, x, w, mean.float(), rstd.float()),
        [dw, db],
        [dx],
    )
    dwte, dwpe = randn(2000, c), f(seq + 5, c)
    yield "embedding_backward", ops.embedding_backward(dwte, dwpe, 0, dout, ids, batch, seq), [dwpe], [dwte]
    dpre, dbias = f(n, width, dtype=t), f(width)
    yield "gelu_backward", ops.gelu_backward(dpre, big, pre, dbias), [dpre, dbias], []
    for name, columns in [("squared_relu", width), ("swiglu", width // 2)]:
        out, dout, dpre = f(n, columns, dtype=t), randn(n, columns, dtype=t), f(n, width, dtype=t)
        yield name, ops.activate(name, out, pre), [out], []
        yield f"{name}_backward", ops.activate_backward(name, dpre, dout, pre), [dpre], []
    sums = f(width)
    yield "column_sum", ops.column_sum(sums, 0, big), [sums], []
    logits, losses = randn(200, vocab, dtype=t, scale=3), f(200)
    targets = as_u16(torch.randint(50257, (200,), device="cuda"))
    yield "classifier", ops.classifier(logits, losses, targets, 50257, 0.01), [losses], [logits]
    param, grad, am, av = (
        randn(1_000_003, dtype=t),
        randn(1_000_003),
        randn(1_000_003),
        randn(1_000_003).square(),
    )
    yield (
        "adamw",
        ops.adamw([(param, None, grad, am, av, 0.1, 5)], (1e-3, 0.9, 0.95, 1e-8, 1.1, 1.2, 0.5), (1, 2), 9),
        [],
        [param, am, av],
    )
    squares = f(2, dtype=F64)
    yield "sum_squares", ops.sum_squares(squares, [grad, am]), [squares], []
    launches, roots = ops.digest([grad.view(torch.uint8)], *TAGS)
    yield "digest", launches, [roots.view(torch.float32)], []


def check_repeats(ops, t, times):
    side = torch.cuda.Stream()
    noise = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
    for name, launches, outputs, inputs in repeat_cases(ops, t):
        starts = [i.clone() for i in inputs]
        bad = torch.zeros((), dtype=torch.int64, device="cuda")
        ref = None
        side.wait_stream(torch.cuda.current_stream())
        for i in range(times):
            for target, start in zip(inputs, starts):
                target.copy_(start)
            for target in outputs:
                target.fill_(NAN)
            if i and i % 2:
                with torch.cuda.stream(side):
                    noise @ noise
            run(launches)
            results = [bytes_of(o) for o in [*outputs, *inputs]]
            if ref is None:
                ref = [o.clone() for o in results]
            else:
                for a, b in zip(results, ref):
                    bad += (a != b).any()
        report(f"repeat {name}", int(bad) == 0, f"{int(bad)} of {times} differ")


def main():
    seed = int(time.time())
    torch.manual_seed(seed)
    print(f"seed {seed}")
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    check_philox()
    # The checks themselves must be able to fail.
    with contextlib.redirect_stdout(io.StringIO()):
        close("probe", torch.ones(3, device="cuda"), torch.full((3,), 1.001, dtype=F64, device="cuda"))
        same("probe", torch.ones(3), torch.zeros(3))
    assert failures == ["probe", "probe"], "the checks do not see errors"
    failures.clear()
    worst.clear()
    for act in ["ACT_BF16", "ACT_F32"]:
        ops = Ops(act)
        begin = time.time()
        for check in [
            check_embedding,
            check_layernorm,
            check_other_norms,
            check_gelu,
            check_activate,
            check_reduce,
            check_classifier,
            check_adamw,
            check_elementwise,
        ]:
            try:
                check(ops, ops.dtype)
                torch.cuda.synchronize()
            except torch.OutOfMemoryError as error:
                report(check.__name__, False, str(error))
        if act == "ACT_BF16":
            check_squares(ops)
            check_digest(ops)
        middle = time.time()
        check_repeats(ops, ops.dtype, times)
        torch.cuda.synchronize()
        print(
            f"{act}: checks {middle - begin:.1f} s, {times} repeats {time.time() - middle:.1f} s", flush=True
        )
    print("worst error over its bound: " + ", ".join(f"{k} {v:.2f}" for k, v in worst.items()))
    print(
        f"{len(failures)} failures"
        if failures
        else "all kernels agree with their references and with themselves"
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
