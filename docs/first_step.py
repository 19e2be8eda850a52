#!/usr/bin/env python3
"""Makes the first optimizer step of a run again from docs/first_step.md, with numpy; exit 1 on a mismatch.

usage: first_step.py RUN    a run folder of one step in fp32, such as docs/first_step.toml makes
"""

import glob, json, math, struct, sys, tomllib
from hashlib import sha256
from pathlib import Path

import numpy as np

M32 = 0xFFFFFFFF


# ---- random numbers -----------------------------------------------------------------------------


def key(seed, purpose):
    return struct.unpack(
        "<2I", sha256(b"runner/rng/v1" + struct.pack("<Q", seed) + purpose.encode()).digest()[:8]
    )


def block(k, c):
    (k0, k1), (c0, c1, c2, c3) = k, c
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & M32, (a >> 32) ^ c3 ^ k1, a & M32
        k0, k1 = (k0 + 0x9E3779B9) & M32, (k1 + 0xBB67AE85) & M32
    return c0, c1, c2, c3


def normal(k, high, low):
    w = block(k, (low & M32, low >> 32, high & M32, high >> 32))
    u, v = (((w[i] << 32 | w[i + 1]) >> 11) / 2**53 for i in (0, 2))
    return math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v)


# ---- the model's tensors and the tokens of the step -----------------------------------------------


def initial_weights(model, seed):
    layers, c = model["layers"], model["channels"]
    residual = 0.02 / math.sqrt(2 * layers)
    tensors = [("wte.weight", (model["vocab"], c), 0.02), ("wpe.weight", (model["context"], c), 0.02)]
    norm = lambda name: [(name + ".weight", (c,), None), (name + ".bias", (c,), 0)]
    linear = lambda name, out, into, std: [(name + ".weight", (out, into), std), (name + ".bias", (out,), 0)]
    for h in (f"h.{l}." for l in range(layers)):
        tensors += (
            norm(h + "ln_1")
            + linear(h + "attn.c_attn", 3 * c, c, 0.02)
            + linear(h + "attn.c_proj", c, c, residual)
        )
        tensors += (
            norm(h + "ln_2")
            + linear(h + "mlp.c_fc", 4 * c, c, 0.02)
            + linear(h + "mlp.c_proj", c, 4 * c, residual)
        )
    tensors += norm("ln_f")
    k, weights = key(seed, "init"), {}
    for number, (name, shape, std) in enumerate(tensors):
        count = math.prod(shape)
        values = (
            [1.0] * count
            if std is None
            else [std * normal(k, number, i) for i in range(count)]
            if std
            else [0.0] * count
        )
        weights[name] = np.array(values).astype(np.float32).reshape(shape)
    return weights


def first_sequences(config):
    seq_len, shards = config["batch"]["seq_len"], []
    paths = {path for pattern in config["data"]["train"] for path in glob.glob(pattern)}
    for path in sorted(paths, key=lambda path: Path(path).name):
        header = np.fromfile(path, "<i4", 256)
        assert header[0] == 20240520 and header[1] == 1, path
        shards.append(np.fromfile(path, "<u2", offset=1024)[: header[2]].astype(np.int64))
    sequences = [
        shard[t : t + seq_len + 1]
        for shard in shards
        for t in range(0, (len(shard) - 1) // seq_len * seq_len, seq_len)
    ]
    half = max(1, ((len(sequences) - 1).bit_length() + 1) // 2)
    k = key(config["seed"], "data order")

    def place(p):
        epoch, x = divmod(p, len(sequences))
        epoch = (epoch & 0xFFFFFFFF, epoch >> 32)
        if config["data"]["order"] == "sequential":
            return x
        while True:
            left, right = x >> half, x & ((1 << half) - 1)
            for r in range(8):
                left, right = right, left ^ (block(k, (right, r, *epoch))[0] & ((1 << half) - 1))
            x = left << half | right
            if x < len(sequences):
                return x

    first = config["data"]["offset"]
    chosen = np.stack([sequences[place(first + j)] for j in range(config["batch"]["tokens"] // seq_len)])
    return chosen[:, :-1], chosen[:, 1:]


# ---- forward and backward, in doubles -------------------------------------------------------------


def layernorm(x, w, b):
    centred = x - x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    hat = centred * rstd

    def backward(d):
        axes = tuple(range(d.ndim - 1))
        dhat = d * w
        dx = rstd * (dhat - dhat.mean(-1, keepdims=True) - hat * (dhat * hat).mean(-1, keepdims=True))
        return dx, (d * hat).sum(axes), d.sum(axes)

    return hat * w + b, backward


def linear(x, w, b):
    def backward(d):
        flat = d.reshape(-1, d.shape[-1])
        return d @ w, flat.T @ x.reshape(-1, x.shape[-1]), flat.sum(0)

    return x @ w.T + b, backward


def gelu(x):
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + t), lambda d: d * slope


def attention(qkv, heads):
    b, t, c3 = qkv.shape
    q, k, v = qkv.reshape(b, t, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    scale = 1 / math.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones((t, t), bool)), q @ k.swapaxes(-1, -2) * scale, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)

    def backward(d):
        d = d.reshape(b, t, heads, -1).transpose(0, 2, 1, 3)
        dp = d @ v.swapaxes(-1, -2)
        ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
        return (
            np.stack([ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ d])
            .transpose(1, 3, 0, 2, 4)
            .reshape(b, t, c3)
        )

    return (p @ v).transpose(0, 2, 1, 3).reshape(b, t, -1), backward


def loss_and_gradients(weights, model, inputs, targets):
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    grads, tape = {}, []

    def layer(function, name, x):
        out, backward = function(x, w[name + ".weight"], w[name + ".bias"])

        def run(d):
            d, grads[name + ".weight"], grads[name + ".bias"] = backward(d)
            return d

        return out, run

    x = w["wte.weight"][inputs] + w["wpe.weight"][: inputs.shape[1]]
    for h in (f"h.{l}." for l in range(model["layers"])):
        for norm, first, middle, last in (
            ("ln_1", "attn.c_attn", lambda x: attention(x, model["heads"]), "attn.c_proj"),
            ("ln_2", "mlp.c_fc", gelu, "mlp.c_proj"),
        ):
            y, back_norm = layer(layernorm, h + norm, x)
            y, back_first = layer(linear, h + first, y)
            y, back_middle = middle(y)
            y, back_last = layer(linear, h + last, y)
            x = x + y
            tape.append((back_norm, back_first, back_middle, back_last))
    y, back_norm = layer(layernorm, "ln_f", x)
    logits = y @ w["wte.weight"].T
    shifted = logits - logits.max(-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    loss = -np.take_along_axis(logp, targets[..., None], -1).mean()

    d = np.exp(logp)
    np.put_along_axis(d, targets[..., None], np.take_along_axis(d, targets[..., None], -1) - 1, -1)
    d /= targets.size
    grads["wte.weight"] = d.reshape(-1, d.shape[-1]).T @ y.reshape(-1, y.shape[-1])
    dx = back_norm(d @ w["wte.weight"])
    for back_norm, back_first, back_middle, back_last in reversed(tape):
        dx = dx + back_norm(back_first(back_middle(back_last(dx))))
    np.add.at(grads["wte.weight"], inputs, dx)
    grads["wpe.weight"] = np.zeros_like(w["wpe.weight"])
    grads["wpe.weight"][: inputs.shape[1]] = dx.sum(0)
    return loss, grads


# ---- the comparison -------------------------------------------------------------------------------


def saved(folder):
    raw = (folder / "state.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    tensors = {}
    for name, info in json.loads(raw[8 : 8 + size]).items():
        if info["dtype"] == "F32":
            begin, end = (8 + size + at for at in info["data_offsets"])
            tensors[name] = np.frombuffer(raw[begin:end], "<f4").reshape(info["shape"])
    return tensors


def main(run):
    config = tomllib.loads((run / "experiment.toml").read_text())
    model, opt, rate = config["model"], config["optimizer"], config["schedule"]["learning_rate"]
    for is_so, what in [
        (config["precision"]["compute"] == "fp32", 'precision.compute = "fp32"'),
        (config["schedule"]["steps"] == 1, "schedule.steps = 1"),
        (config["schedule"]["warmup_steps"] == 0, "schedule.warmup_steps = 0: the first step at the peak"),
        (config["schedule"]["kind"] != "range", "a schedule that begins at its peak, not range"),
        (opt["kind"] == "adamw", 'optimizer.kind = "adamw"'),
        ("train" in config["data"], "data.train: shards, of one source"),
        ("init" not in model, "weights that are drawn, not model.init"),
    ]:
        if not is_so:
            sys.exit(f"{run / 'experiment.toml'}: this script computes the first step with {what}")
    weights = initial_weights(model, config["seed"])
    inputs, targets = first_sequences(config)
    loss, grads = loss_and_gradients(weights, model, inputs, targets)
    norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
    clip = min(1.0, opt["grad_clip"] / norm) if opt["grad_clip"] > 0 else 1.0
    entry = json.loads((run / "ledger.jsonl").read_text().splitlines()[0])["entry"]
    state = saved(run / "checkpoints" / "step_00000001")
    worst = {}

    def compare(what, name, ours, theirs, limit):
        scale = np.sqrt(np.mean(np.square(theirs, dtype=np.float64))) or 1.0
        error = float(np.max(np.abs(np.asarray(ours, np.float64) - theirs)) / scale)
        error = math.inf if math.isnan(error) else error  # `max` would pass over it
        worst[what] = max(worst.get(what, (-1.0, "", 0.0)), (error, name, limit))

    compare("loss", "the first entry", loss, entry["loss"], 1e-6)
    compare("gradient norm", "the first entry", norm, entry["grad_norm"], 1e-5)
    for name, before in weights.items():
        g = grads[name] * clip
        m, v = (1 - opt["beta1"]) * g, (1 - opt["beta2"]) * g * g
        decay = opt["weight_decay"] if before.ndim == 2 else 0.0
        step = m / (1 - opt["beta1"]) / (np.sqrt(v / (1 - opt["beta2"])) + opt["epsilon"]) + decay * before
        after = state[name]
        if rate < 1e-20:  # too small to move any weight but those that are 0
            compare(
                "initial weights, bits",
                name,
                before.tobytes() != np.where(np.abs(after) < 1e-20, np.float32(0), after).tobytes(),
                0,
                0,
            )
        else:
            # Where a gradient is nearly zero its sign, and so the whole step, is rounding: look at the
            # others.
            clear = np.abs(g) > 1e-3 * np.sqrt(np.mean(g * g))
            compare("new weights", name, (before - rate * step)[clear], after[clear], 1e-5)
        compare("first moments", name, m, state["adam_m/" + name], 1e-4)
        compare("second moments", name, v, state["adam_v/" + name], 1e-4)
    for what, (error, name, limit) in worst.items():
        print(
            f"{'ok      ' if error <= limit else 'MISMATCH'} {what}: at most {error:.0e} of the rms apart, "
            f"in {name} (limit {limit:.0e})"
        )
    sys.exit(any(not error <= limit for error, _, limit in worst.values()))


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) == 2 else sys.exit(__doc__)
