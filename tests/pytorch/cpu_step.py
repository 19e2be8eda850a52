"""Times one optimizer step of GPT-2 124M on the CPU in PyTorch, fp32: the peer of `runner` there.

    pip install torch transformers
    OMP_NUM_THREADS=2 python tests/pytorch/cpu_step.py

The shapes are those of llm.c's train_gpt2.c: B 4, T 64, the vocabulary padded to 50304. The compiled
model is timed as well as the plain one.
"""

import statistics
import sys
import time

import torch
import transformers

B, T, STEPS = 4, 64, 8

torch.manual_seed(1337)
config = transformers.GPT2Config(vocab_size=50304, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
model = transformers.GPT2LMHeadModel(config).train()
optimizer = torch.optim.AdamW(
    model.parameters(), lr=6e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
)


def step(forward):
    tokens = torch.randint(0, 50257, (B, T + 1))
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


print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, B {B} T {T}")
print(f"eager    {median_seconds(model):.3f} s a step")
if "--compile" in sys.argv:
    print(f"compiled {median_seconds(torch.compile(model)):.3f} s a step")
