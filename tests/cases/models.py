#!/usr/bin/env python3
"""Writes the models of this folder and the HellaSwag tasks beside them, always the same bytes.

    pip install numpy safetensors
    python tests/cases/models.py

Each folder is a GPT-2 of Hugging Face's with 1 layer, 2 heads, 8 channels and 257 tokens (one a byte), with
the fault in its name; `hf_good` has none. tests/integration/foreign_models.rs says what each must give.
"""

import json
import pathlib
import shutil

import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
C, H, V, CONTEXT = 8, 2, 257, 64


def config(context, dtype):
    return {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "bos_token_id": 256,
        "eos_token_id": 256,
        "layer_norm_epsilon": 1e-5,
        "model_type": "gpt2",
        "n_ctx": context,
        "n_embd": C,
        "n_head": H,
        "n_inner": None,
        "n_layer": 1,
        "n_positions": context,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "vocab_size": V,
    }


def weights(context=CONTEXT):
    rng = np.random.Generator(np.random.PCG64(11))
    normal = lambda *shape: (0.02 * rng.standard_normal(shape)).astype(np.float32)
    one, zero = np.ones(C, np.float32), lambda n: np.zeros(n, np.float32)
    h = "transformer.h.0."
    # Conv1D's weights are (in, out).
    return {
        "transformer.wte.weight": normal(V, C),
        "transformer.wpe.weight": normal(context, C),
        h + "ln_1.weight": one,
        h + "ln_1.bias": zero(C),
        h + "attn.c_attn.weight": normal(C, 3 * C),
        h + "attn.c_attn.bias": zero(3 * C),
        h + "attn.c_proj.weight": normal(C, C),
        h + "attn.c_proj.bias": zero(C),
        h + "ln_2.weight": one,
        h + "ln_2.bias": zero(C),
        h + "mlp.c_fc.weight": normal(C, 4 * C),
        h + "mlp.c_fc.bias": zero(4 * C),
        h + "mlp.c_proj.weight": normal(4 * C, C),
        h + "mlp.c_proj.bias": zero(C),
        "transformer.ln_f.weight": one,
        "transformer.ln_f.bias": zero(C),
    }


def save(tensors, path):
    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)


def folder(name, tensors=None, context=CONTEXT, dtype="float32"):
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config(context, dtype), indent=1) + "\n")
    if tensors is not None:
        save(tensors, path / "model.safetensors")
    return path


folder("hf_good", weights())

w = weights()
w["transformer.h.0.mlp.c_fc.weight"][3, 5] = np.nan
folder("hf_nan", w)

w = weights()
w["transformer.h.0.attn.q_norm.weight"] = np.full(C // H, 1.5, np.float32)
folder("hf_extra", w)

folder("hf_fp16", {name: x.astype(np.float16) for name, x in weights().items()}, dtype="float16")

# Two files and an index, as `save_pretrained(max_shard_size=…)` writes them.
w = weights()
path = folder("hf_sharded")
parts = [dict(list(w.items())[:1]), dict(list(w.items())[1:])]
index = {"metadata": {"total_size": sum(x.nbytes for x in w.values())}, "weight_map": {}}
for i, part in enumerate(parts, 1):
    name = f"model-{i:05}-of-{len(parts):05}.safetensors"
    save(part, path / name)
    index["weight_map"] |= dict.fromkeys(part, name)
(path / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")

# All weights zero: every token has the probability 1/257.
folder("hf_uniform", {name: np.zeros_like(x) for name, x in weights(context=256).items()}, context=256)

# Finite numbers whose products are not: the first loss already is not finite.
w = weights()
w["transformer.ln_f.weight"] = np.full(C, 1e38, np.float32)
w["transformer.wte.weight"] = w["transformer.wte.weight"] * np.float32(1e4)
folder("hf_huge", w)

# For each task the longest ending in bytes has many letters of two bytes; another, all ASCII, is the longest
# in characters. With hf_uniform, one token a byte, an ending of b bytes and c characters costs (b + 1) ln
# 257. Divided by b the ending with the most bytes is the best, divided by c the longest ASCII ending, the
# label.
TASKS = [
    (
        "Baking bread",
        "A woman folds the dough and",
        1,
        [
            "déjà très fière, forme près d'été gâteaux légers à côté.",
            "puts it in a warm bowl under a damp cloth to rise.",
            "she goes out.",
            "it is cold.",
        ],
    ),
    (
        "Rowing",
        "Two men push the boat off the bank and",
        2,
        [
            "they sleep.",
            "the bank sings.",
            "pull hard until they reach the other side of it.",
            "rudern über größere Wellen, während Möwen schön höhnen.",
        ],
    ),
    (
        "Skiing",
        "He reaches the top of the lift and",
        0,
        [
            "turns left to follow the others down the long slope.",
            "åker över öar, älvar, åar på sjö och vår höst så här då.",
            "eats.",
            "a lamp.",
        ],
    ),
]
for activity, _, label, endings in TASKS:
    cost = lambda ending, length: (len(ending.encode()) + 1) / length
    by_bytes = min(range(4), key=lambda i: cost(endings[i], len(endings[i].encode())))
    by_chars = min(range(4), key=lambda i: cost(endings[i], len(endings[i])))
    assert by_chars == label != by_bytes, activity
(HERE / "hellaswag_nonascii.jsonl").write_text(
    "".join(
        json.dumps(
            {"ind": i, "activity_label": activity, "ctx": ctx, "label": label, "endings": endings},
            ensure_ascii=False,
        )
        + "\n"
        for i, (activity, ctx, label, endings) in enumerate(TASKS)
    ),
    encoding="utf-8",
)
