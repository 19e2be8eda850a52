"""Speed over widths and micro-batches beside PyTorch compiled, cell by cell, as a Markdown table.

    python tests/pytorch/sizes.py target/release/runner [--channels 384 768] [--micro 1 4 16] [--layers 6]

Each cell trains GPT-2 of so many channels, heads of 64, T 1024, the vocabulary padded to 50304, on micro-
batches of so many texts: forward, backward, clipping and AdamW. `runner bench` measures it, then PyTorch:
autocast to bf16 over fp32 weights, flash attention, fused AdamW, the whole model compiled, up to 4 texts
with CUDA graphs (`reduce-overhead`), where launches would bound it. A cell shows thousands of tokens a second
of both, and how many times as fast `runner` is. Exits with 1 where it is the slower one.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import tempfile
import time

import torch

import compare

T, VOCAB, ROWS = 1024, 50257, 50304
WARM_UP, STEPS = 3, 12

EXPERIMENT = """
[model]
layers = {layers}
heads = {heads}
channels = {channels}
[data]
corpus = "kjv"
[batch]
micro = {micro}
seq_len = {t}
tokens = {tokens}
[schedule]
steps = 100
warmup_steps = 10
[eval]
every = 0
[precision]
compute = "bf16"
[device]
kind = "cuda"
"""


def ours(runner, layers, channels, micro):
    """Tokens a second by `runner bench`."""
    text = EXPERIMENT.format(
        layers=layers, heads=channels // 64, channels=channels, micro=micro, t=T, tokens=micro * T
    )
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        command = [runner, "bench", file.name, "--steps", str(STEPS), "--json"]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return json.loads(found.stdout)["tokens_per_s"]


def theirs(layers, channels, micro):
    """Tokens a second by PyTorch; None where it lacks memory."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    shape = {"vocab": ROWS, "vocab_padded": ROWS, "channels": channels, "context": T, "layers": layers}
    with torch.device("cuda"):
        model = compare.GPT2(shape | {"heads": channels // 64})
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    compiled = torch.compile(model, mode="reduce-overhead" if micro <= 4 else "default")
    batches = [torch.randint(0, VOCAB, (micro, T + 1), device="cuda") for _ in range(4)]

    def step(number):
        tokens = batches[number % len(batches)]
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = compiled(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    try:
        times = []
        for number in range(WARM_UP + STEPS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            step(number)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return micro * T / statistics.median(times[WARM_UP:])
    except torch.cuda.OutOfMemoryError:
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("runner")
    parser.add_argument("--channels", type=int, nargs="+", default=[384, 768, 1280, 2048])
    parser.add_argument("--micro", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    runner = os.path.abspath(args.runner)

    print(f"{torch.cuda.get_device_name()}, {args.layers} layers, T {T}, PyTorch {torch.__version__}")
    print("thousands of tokens a second, `runner` and PyTorch compiled, and their ratio")
    print("| channels | " + " | ".join(f"B {micro}" for micro in args.micro) + " |")
    print("|---" * (len(args.micro) + 1) + "|", flush=True)
    behind = 0
    for channels in args.channels:
        print(f"| {channels}", end="", flush=True)
        for micro in args.micro:
            mine, other = ours(runner, args.layers, channels, micro), theirs(args.layers, channels, micro)
            if other is None:
                print(f" | {mine / 1e3:.0f}, out of memory", end="", flush=True)
                continue
            behind += mine < other
            print(f" | {mine / 1e3:.0f}, {other / 1e3:.0f}, {mine / other:.2f} ×", end="", flush=True)
        print(" |", flush=True)
    raise SystemExit(min(behind, 1))


if __name__ == "__main__":
    main()
