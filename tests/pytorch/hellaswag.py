"""Compares every HellaSwag decision of `runner eval` with transformers and lm-eval's formulas.

    pip install torch transformers tiktoken safetensors numpy
    runner eval RUN --task hellaswag --data hellaswag_val.jsonl --details details.jsonl
    python tests/pytorch/hellaswag.py RUN hellaswag_val.jsonl details.jsonl [--bin FILE]

The model is `GPT2LMHeadModel` in fp32, on a GPU where there is one, with the weights of the run's newest
checkpoint. Nothing here is shared with `runner`: the texts are encoded by tiktoken, the wording and the
formulas are written out below. A decision may differ only where the two best completions are closer than
`TIE`; the script fails on any other. hellaswag_lm_eval.py compares with lm-eval itself.

With `--bin` it first writes the jsonl as llm.c's evaluation file, for `runner eval` to read.
"""

import argparse
import json
import pathlib
import re
import sys
import tomllib

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

TIE = 1e-4
BATCH = 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ["hellaswag", "hellaswag_acc", "hellaswag_acc_norm", "hellaswag_acc_bytes"]


def load_model(run):
    experiment = tomllib.loads((run / "experiment.toml").read_text())
    size = experiment["model"]
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    state = load_file(newest / "state.safetensors")
    config = GPT2Config(
        vocab_size=state["wte.weight"].shape[0],
        n_positions=state["wpe.weight"].shape[0],
        n_embd=size["channels"],
        n_layer=size["layers"],
        n_head=size["heads"],
    )
    model = GPT2LMHeadModel(config).eval()
    weights = {}
    for name, _ in model.transformer.named_parameters():
        value = state[name].float()
        # Conv1D stores (in, out).
        conv1d = re.search(r"(c_attn|c_proj|c_fc)\.weight$", name)
        weights[name] = value.t().contiguous() if conv1d else value
    model.transformer.load_state_dict(weights, strict=False)
    return model.to(DEVICE), newest.name, experiment["batch"]["seq_len"]


def encoder(run):
    """What turns a text into tokens: the run's tokenizer."""
    tokenizer = tomllib.loads((run / "experiment.toml").read_text())["data"]["tokenizer"]
    if tokenizer == "byte":
        return lambda text: list(text.encode())
    import tiktoken  # It fetches GPT-2's vocabulary, which needs the network.

    return tiktoken.get_encoding("r50k_base").encode_ordinary


def preprocess(text):
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def harness(doc, encode):
    """Contexts, continuations and choices as lm-eval words and encodes them."""
    ctx = doc["ctx"]
    if "ctx_a" in doc and "ctx_b" in doc:
        ctx = doc["ctx_a"] + " " + doc["ctx_b"].capitalize()
    query = preprocess(doc["activity_label"] + ": " + ctx)
    choices = [preprocess(ending) for ending in doc["endings"]]
    stripped = query.rstrip()
    moved = query[len(stripped) :]
    context = encode(stripped)
    continuations = [encode(stripped + moved + " " + choice)[len(context) :] for choice in choices]
    return context, continuations, choices


def plain(doc, encode):
    """llm.c's: everything as it stands, each ending encoded alone with a space before it."""
    return encode(doc["ctx"]), [encode(" " + ending) for ending in doc["endings"]]


@torch.inference_mode()
def completion_losses(model, rows, seq_len):
    """Token losses of the completion of each (context, completion), long contexts cut on the left."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    losses = [None] * len(rows)
    for start in range(0, len(order), BATCH):
        chunk = order[start : start + BATCH]
        tokens = [(rows[i][0] + rows[i][1])[-(seq_len + 1) :] for i in chunk]
        ids = torch.zeros(len(chunk), max(map(len, tokens)) - 1, dtype=torch.long)
        for lane, row in enumerate(tokens):
            ids[lane, : len(row) - 1] = torch.tensor(row[:-1])
        hidden = model.transformer(ids.to(DEVICE)).last_hidden_state
        picked, targets, counts = [], [], []
        for lane, (i, row) in enumerate(zip(chunk, tokens)):
            n = len(rows[i][1])
            picked.append(hidden[lane, len(row) - 1 - n : len(row) - 1])
            targets += row[-n:]
            counts.append(n)
        log_probs = torch.log_softmax(model.lm_head(torch.cat(picked)).float(), dim=-1)
        loss = -log_probs[torch.arange(len(targets)), torch.tensor(targets)].double().cpu()
        for i, part in zip(chunk, loss.split(counts)):
            losses[i] = part
    return losses


def write_bin(path, docs, encode):
    """llm.c's multiple-choice file."""
    stream, longest = [], 0
    for index, doc in enumerate(docs):
        context, endings = plain(doc, encode)
        example = [65535, 0, index, int(doc["label"]), 4, len(context), *context]
        for ending in endings:
            example += [len(ending), *ending]
        example[1] = 2 * len(example)
        longest = max(longest, example[1])
        stream += example
    header = np.zeros(256, dtype="<i4")
    header[:4] = 20240522, 1, len(docs), longest
    path.write_bytes(header.tobytes() + np.array(stream, dtype="<u2").tobytes())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("tasks", type=pathlib.Path)
    parser.add_argument("details", type=pathlib.Path, nargs="?")
    parser.add_argument("--bin", type=pathlib.Path)
    args = parser.parse_args()

    encode = encoder(args.run)
    docs = [json.loads(line) for line in args.tasks.open(encoding="utf-8")]
    if args.bin:
        write_bin(args.bin, docs, encode)
        print(f"wrote {args.bin}")
    if args.details is None:
        return
    ours = [json.loads(line) for line in args.details.open()]
    assert len(ours) == len(docs), f"{len(ours)} decisions for {len(docs)} tasks"

    model, step, seq_len = load_model(args.run)
    rows, chars, utf8 = [], [], []
    for doc in docs:
        context, endings = plain(doc, encode)
        rows += [(context, ending) for ending in endings]
        context, continuations, choices = harness(doc, encode)
        rows += [(context, continuation) for continuation in continuations]
        chars.append(np.array([len(choice) for choice in choices]))
        utf8.append(np.array([len(choice.encode()) for choice in choices]))
    losses = completion_losses(model, rows, seq_len)

    right_ours, right_theirs = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    apart, largest = [], 0.0
    for i, (doc, decision) in enumerate(zip(docs, ours)):
        mine = losses[8 * i : 8 * i + 8]
        # lm-eval takes argmax of log-likelihoods; the same, and the first of equals, as argmin of losses.
        sums = np.array([loss.sum().item() for loss in mine[4:]])
        means = np.array([loss.mean().item() for loss in mine[:4]])
        theirs = [means, sums, sums / chars[i], sums / utf8[i]]
        for score, (name, values) in enumerate(zip(NAMES, theirs)):
            a, b = decision[name]["picked"], int(values.argmin())
            label = int(doc["label"])
            right_ours[score] += a == label
            right_theirs[score] += b == label
            relative = np.abs(np.array(decision[name]["values"]) - values) / values
            largest = max(largest, relative.max())
            if a != b:
                apart.append((i, name, a, b, abs(values[a] - values[b]) / values[b]))

    n = len(docs)
    print(f"{args.run.name} {step}, {n} tasks, {len(NAMES) * n} decisions")
    for name, a, b in zip(NAMES, right_ours / n, right_theirs / n):
        print(f"{name:<20} runner {a:.6f}  transformers {b:.6f}")
    print(f"largest relative difference of a score's value: {largest:.3e}")
    for i, name, a, b, gap in apart:
        print(f"task {i}: {name} picks {a}, transformers {b}; relative gap {gap:.3e}")
    print(f"{len(apart)} decisions differ")
    if any(gap > TIE for *_, gap in apart) or largest > TIE:
        sys.exit("a difference is larger than float noise")


if __name__ == "__main__":
    main()
