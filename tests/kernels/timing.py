"""Times every kernel at the shapes of d12 (B 64) and d48 (B 16), T 1024, bf16, beside the copy speed of the
same GPU.

Median of batches timed by CUDA events; a batch runs the operation over several sets of buffers in turn, so
that neither the L2 cache nor unwritten dirty lines flatter it. GB/s counts each tensor read or written once.
"""

import sys

import torch

from check import TAGS, as_u16, randn, skewed_ids
from ops import F32, Ops, run

ACT = torch.bfloat16


def time_us(sets, calls=12, batches=7, graphed=True):
    """A batch is one CUDA graph, so that launching from Python does not show."""
    calls = max(calls, len(sets))
    for s in sets:
        run(s)

    def replay():
        for i in range(calls):
            run(sets[i % len(sets)])

    if graphed:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replay()
        replay = graph.replay
        replay()
    times = []
    for _ in range(batches):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / calls * 1e3)
    return sorted(times)[len(times) // 2]


def fast_random(*shape, dtype=ACT):
    """Random values by repeating a random block: quick to make for gigabytes."""
    n = 1
    for s in shape:
        n *= s
    block = torch.randn(1_048_573, device="cuda").to(dtype)
    return block.repeat(n // block.numel() + 1)[:n].view(*shape)


def model_shapes(layers, c, vocab=50304, context=1024):
    yield vocab, c
    yield context, c
    for _ in range(layers):
        yield from [
            (c,),
            (c,),
            (3 * c, c),
            (3 * c,),
            (c, c),
            (c,),
            (c,),
            (c,),
            (4 * c, c),
            (4 * c,),
            (c, 4 * c),
            (c,),
        ]
    yield (c,)
    yield (c,)


rows = []


def record(shape, name, us, moved, note=""):
    rows.append((shape, name, us, moved / us / 1e3, note))


def time_rows(ops, label, batch, c, sets=3):
    n, wide = batch * 1024, 4 * c
    narrow_bytes, wide_bytes = 2 * n * c, 2 * n * wide
    x, branch, out, residual = ([fast_random(n, c) for _ in range(sets)] for _ in range(4))
    w, b, mean, rstd = randn(c, dtype=ACT), randn(c, dtype=ACT), randn(n), randn(n).abs()
    dw, db = torch.zeros(c, device="cuda"), torch.zeros(c, device="cuda")
    m2, r2 = torch.empty(n, device="cuda"), torch.empty(n, device="cuda")
    each = range(sets)
    record(
        label,
        "layernorm_forward",
        time_us([ops.layernorm(out[i], m2, r2, x[i], w, b) for i in each]),
        2 * narrow_bytes,
    )
    record(
        label,
        "residual_layernorm_forward",
        time_us([ops.layernorm(out[i], m2, r2, x[i], w, b, branch[i], residual[i]) for i in each]),
        4 * narrow_bytes,
    )
    record(
        label,
        "layernorm_backward set",
        time_us([ops.layernorm_backward(out[i], 0, dw, db, 1, branch[i], x[i], w, mean, rstd) for i in each]),
        3 * narrow_bytes,
    )
    record(
        label,
        "layernorm_backward add",
        time_us([ops.layernorm_backward(out[i], 1, dw, db, 1, branch[i], x[i], w, mean, rstd) for i in each]),
        4 * narrow_bytes,
    )
    record(label, "column_sum C", time_us([ops.column_sum(dw, 1, x[i]) for i in each]), narrow_bytes)
    vocab = 50304
    wte, wpe, dwte, dwpe = (
        randn(vocab, c, dtype=ACT),
        randn(1024, c, dtype=ACT),
        torch.zeros(vocab, c, device="cuda"),
        torch.zeros(1024, c, device="cuda"),
    )
    ids = [skewed_ids(n, vocab) for i in each]
    record(
        label,
        "embedding_forward",
        time_us([ops.embedding(out[i], as_u16(ids[i]), wte, wpe, 1024) for i in each]),
        2 * narrow_bytes,
    )
    distinct = len(ids[0].unique())
    hot = int(ids[0].bincount().max())
    record(
        label,
        "embedding_backward",
        time_us([ops.embedding_backward(dwte, dwpe, 1, x[i], as_u16(ids[i]), batch, 1024) for i in each]),
        2 * narrow_bytes + 8 * distinct * c + 8 * 1024 * c,
        f"{distinct} tokens, hottest {hot} times",
    )
    launches = ops.embedding_backward(dwte, dwpe, 1, x[0], as_u16(ids[0]), batch, 1024)
    for part, name in [
        (launches[:4], "  sort"),
        (launches[4:5], "  tokens"),
        (launches[5:6], "  crossing"),
        (launches[6:], "  positions"),
    ]:
        record(label, name, time_us([part]), 0)
    del x, branch, out, residual
    pre, dout = ([fast_random(n, wide) for _ in range(2)] for _ in range(2))
    dbias = torch.zeros(wide, device="cuda")
    record(label, "gelu_forward", time_us([ops.gelu(dout[i], pre[i]) for i in range(2)]), 2 * wide_bytes)
    record(
        label,
        "gelu_backward",
        time_us([ops.gelu_backward(dout[i], dout[i], pre[i]) for i in range(2)]),
        3 * wide_bytes,
    )
    record(
        label,
        "gelu_backward with dbias",
        time_us([ops.gelu_backward(dout[i], dout[i], pre[i], dbias, 1) for i in range(2)]),
        3 * wide_bytes,
    )
    for name, columns, passes in [("squared_relu", wide, [2, 3]), ("swiglu", wide // 2, [1.5, 2.5])]:
        out = [fast_random(n, columns) for _ in range(2)]
        times = [
            time_us([ops.activate(name, out[i], pre[i]) for i in range(2)]),
            time_us([ops.activate_backward(name, dout[i], out[i], pre[i]) for i in range(2)]),
        ]
        record(label, f"{name}_forward", times[0], passes[0] * wide_bytes)
        record(label, f"{name}_backward", times[1], passes[1] * wide_bytes)
    record(label, "column_sum 4C", time_us([ops.column_sum(dbias, 1, pre[i]) for i in range(2)]), wide_bytes)


def time_classifier(ops):
    n, padded, used = 8192, 50304, 50257
    logits, losses = fast_random(n, padded), torch.empty(n, device="cuda")
    targets = as_u16(torch.randint(used, (n,), device="cuda"))
    record(
        "8192 rows",
        "classifier_gradient",
        time_us([ops.classifier(logits, losses, targets, used, 1.0)], calls=4),
        4 * n * padded,
    )
    record(
        "8192 rows",
        "classifier_gradient uncached",
        time_us([ops.classifier(logits, losses, targets, used, 1.0, cached=False)], calls=4),
        4 * n * padded,
    )
    record(
        "8192 rows",
        "classifier_gradient_capped",
        time_us([ops.classifier(logits, losses, targets, used, 1.0, cap=30.0, z_loss=1e-4)], calls=4),
        4 * n * padded,
    )
    record(
        "8192 rows",
        "classifier_loss",
        time_us([ops.classifier(logits, losses, targets, used, gradient=False)], calls=4),
        2 * n * padded,
    )


def time_optimizer(ops):
    shapes = list(model_shapes(12, 768))
    size = lambda s: s[0] * (s[1] if len(s) > 1 else 1)
    total = sum(map(size, shapes))
    make = lambda dtype=F32: [fast_random(size(s), dtype=dtype) for s in shapes]
    param, master, grad, m, v = make(ACT), make(), make(), make(), [x.abs() for x in make()]
    hyper, key = (1e-4, 0.9, 0.95, 1e-8, 1.5, 1.2, 0.9), (1, 2)
    list_of = lambda masters: [
        (param[i], master[i] if masters else None, grad[i], m[i], v[i], 0.1, i) for i in range(len(shapes))
    ]
    record("d12", "adamw, master", time_us([ops.adamw(list_of(True), hyper, key, 3)], calls=4), total * 30)
    record(
        "d12",
        "adamw, stochastic rounding",
        time_us([ops.adamw(list_of(False), hyper, key, 3)], calls=4),
        total * 24,
    )
    sums = torch.empty(len(shapes), dtype=torch.float64, device="cuda")
    record("d12", "sum_squares", time_us([ops.sum_squares(sums, grad)], calls=4), total * 4)
    state = [t.view(torch.uint8) for group in (param, master, m, v) for t in group]
    launches, _ = ops.digest(state, *TAGS)
    moved = sum(t.numel() for t in state)
    record("d12", "digest of the state", time_us([launches], calls=2), moved)
    record("d12", "  leaves", time_us([launches[:1]], calls=2), moved)
    big = [fast_random(1 << 30, dtype=torch.float32).view(torch.uint8) for _ in range(2)]
    launches, _ = ops.digest(big, *TAGS)
    record("8 GiB", "digest", time_us([launches], calls=1, batches=5), 2 << 32)


def main():
    ops = Ops("ACT_BF16")
    a, b = (
        [fast_random(1 << 27, dtype=F32) for _ in range(2)],
        [fast_random(1 << 27, dtype=F32) for _ in range(2)],
    )
    # Not as a graph: there the copy is a memcpy node, which ran at 2,423 GB/s.
    record(
        "512 MiB", "copy", time_us([[lambda i=i: b[i].copy_(a[i])] for i in range(2)], graphed=False), 2 << 29
    )
    record("512 MiB", "add_f32", time_us([ops.elementwise("add_f32", b[i], a[i]) for i in range(2)]), 3 << 29)
    del a, b
    time_classifier(ops)
    torch.cuda.empty_cache()
    time_optimizer(ops)
    torch.cuda.empty_cache()
    time_rows(ops, "d12", 64, 768)
    torch.cuda.empty_cache()
    time_rows(ops, "d48", 16, 1600)
    print(f"{torch.cuda.get_device_name()}, medians")
    for shape, name, us, rate, note in rows:
        print(
            f"{shape:10} {name:30} {us:9.1f} us {rate:7.0f} GB/s {note}"
            if rate
            else f"{shape:10} {name:30} {us:9.1f} us"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
