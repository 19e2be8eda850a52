"""Times one optimizer step of GPT-2 on the CPU in PyTorch, fp32: the peer of `runner` there.

    pip install torch transformers
    OMP_NUM_THREADS=2 python tests/pytorch/cpu_step.py [d6|d12|small] [--compile]

d12, the default, has the shapes of llm.c's train_gpt2.c: B 4, T 64, the vocabulary padded to 50304; d6 the
same but for its sizes; small those of `experiments/mixture.toml`. With --compile the compiled model is timed
as well as the plain one.
"""

import argparse
import statistics
import time

import torch
import transformers

# Layers, heads, channels, tokens of the tokenizer and rows of the table, B, T.
MODELS = {
    "d6": (6, 6, 384, 50257, 50304, 4, 64),
    "d12": (12, 12, 768, 50257, 50304, 4, 64),
    "small": (4, 4, 128, 257, 384, 8, 128),
}
STEPS = 8

parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
parser.add_argument("model", choices=MODELS, nargs="?", default="d12")
parser.add_argument("--compile", action="store_true")
args = parser.parse_args()
layers, heads, channels, tokens_known, rows, B, T = MODELS[args.model]

torch.manual_seed(1337)
config = transformers.GPT2Config(
    n_layer=layers,
    n_head=heads,
    n_embd=channels,
    n_positions=max(T, 128),
    vocab_size=rows,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
)
model = transformers.GPT2LMHeadModel(config).train()
optimizer = torch.optim.AdamW(
    model.parameters(), lr=6e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
)


def step(forward):
    tokens = torch.randint(0, tokens_known, (B, T + 1))
    logits = forward(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.size(-1)), tokens[:, 1:].reshape(-1))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def median_seconds(forward):
    times = []
    for i in range(STEPS):
        start = time.perf_counter()
        step(forward)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


print(f"{args.model}, torch {torch.__version__}, {torch.get_num_threads()} threads, B {B} T {T}")
print(f"eager    {median_seconds(model):.3f} s a step")
if args.compile:
    print(f"compiled {median_seconds(torch.compile(model)):.3f} s a step")
