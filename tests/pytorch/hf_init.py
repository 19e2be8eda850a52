"""Models of transformers, as `save_pretrained` writes them, read by runner: the same logits, loss and
training.

    python tests/pytorch/hf_init.py target/release/runner

Random GPT-2s with OpenAI's vocabulary are written in every form that a folder has: fp32, bf16 and fp16, in
one file and in several, with the prefix `transformer.` and without (OpenAI's own file), with masks of
attention and a copy of the classifier beside the parameters. Ours are the logits after each prompt (`runner
sample FOLDER --logits`, on the CPU in fp32) and the mean loss on random tokens (`runner eval FOLDER`),
theirs those of `GPT2LMHeadModel` in fp32; then the same of random Llamas and a Qwen3. Compared is the norm
of the difference over the norm of theirs: at most 2e-6 for logits, 4e-6 of rotary models, 1e-7 for the
loss. Then two steps of training from folders of the same weights and from llm.c's `.bin` of them must end
in the same state.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

PROMPTS = ["", "In the beginning", " naïve façade — 漢字 🦀", "one two three " * 60]
# Of rotary models transformers takes the angles in fp32.
LOGITS, ROTARY, LOSS = 2e-6, 4e-6, 1e-7
TRAINING = """
[model]
init = "{init}"
[data]
corpus = "kjv"
[batch]
micro = 1
seq_len = 64
[schedule]
steps = 2
[eval]
every = 0
[device]
kind = "cpu"
"""


def shard(path, tokens):
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())


def llmc(path, model):
    """The weights as llm.c's version 3: each kind of tensor stacked over the layers, Conv1D's transposed."""
    config, state = model.config, model.state_dict()
    header = np.zeros(256, dtype="<i4")
    padded = -(-config.vocab_size // 128) * 128
    sizes = config.n_positions, config.vocab_size, config.n_layer, config.n_head, config.n_embd
    header[:8] = 20240326, 3, *sizes, padded
    kinds = [
        ("ln_1.weight", 0),
        ("ln_1.bias", 0),
        ("attn.c_attn.weight", 1),
        ("attn.c_attn.bias", 0),
        ("attn.c_proj.weight", 1),
        ("attn.c_proj.bias", 0),
        ("ln_2.weight", 0),
        ("ln_2.bias", 0),
        ("mlp.c_fc.weight", 1),
        ("mlp.c_fc.bias", 0),
        ("mlp.c_proj.weight", 1),
        ("mlp.c_proj.bias", 0),
    ]
    padding = torch.zeros(padded - config.vocab_size, config.n_embd)
    tensors = [torch.cat([state["transformer.wte.weight"], padding]), state["transformer.wpe.weight"]]
    for kind, flip in kinds:
        for layer in range(config.n_layer):
            tensor = state[f"transformer.h.{layer}.{kind}"]
            tensors.append(tensor.t() if flip else tensor)
    tensors += [state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]]
    with open(path, "wb") as file:
        file.write(header.tobytes())
        for tensor in tensors:
            file.write(tensor.contiguous().numpy().astype("<f4").tobytes())


def forms(root, model):
    """(name, folder, model whose logits it must give) of each form."""
    folder = os.path.join(root, "fp32")
    model.save_pretrained(folder)
    yield "fp32", folder, model
    narrow = os.path.join(root, "bf16")
    GPT2LMHeadModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(narrow)
    yield "bf16", narrow, GPT2LMHeadModel.from_pretrained(narrow, dtype=torch.float32)
    half = os.path.join(root, "fp16")
    GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float16).save_pretrained(half)
    yield "fp16", half, GPT2LMHeadModel.from_pretrained(half, dtype=torch.float32)
    sharded = os.path.join(root, "sharded")
    model.save_pretrained(sharded, max_shard_size="1MB")
    assert os.path.exists(os.path.join(sharded, "model.safetensors.index.json"))
    yield "several files", sharded, model
    bare = os.path.join(root, "bare")
    model.transformer.save_pretrained(bare)
    assert "wte.weight" in load_file(os.path.join(bare, "model.safetensors"))
    yield "without prefix", bare, model
    crowded = os.path.join(root, "crowded")
    model.save_pretrained(crowded)
    tensors = load_file(os.path.join(crowded, "model.safetensors"))
    positions = model.config.n_positions
    for layer in range(model.config.n_layer):
        mask = torch.ones(1, 1, positions, positions, dtype=torch.bool).tril()
        tensors[f"transformer.h.{layer}.attn.bias"] = mask
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4, dtype=torch.float16)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, os.path.join(crowded, "model.safetensors"), metadata={"format": "pt"})
    yield "with masks and classifier", crowded, model
    path = os.path.join(root, "model.bin")
    llmc(path, model)
    yield "llm.c's .bin", path, model
    config = dict(
        vocab_size=50257,
        hidden_size=72,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=18,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        initializer_range=0.2,
    )
    for name, other in [
        ("Llama", LlamaForCausalLM(LlamaConfig(**config, tie_word_embeddings=True))),
        ("Llama, untied", LlamaForCausalLM(LlamaConfig(**config, tie_word_embeddings=False))),
        ("Qwen3", Qwen3ForCausalLM(Qwen3Config(**config, tie_word_embeddings=False))),
        ("Llama, grouped", LlamaForCausalLM(LlamaConfig(**config | {"num_key_value_heads": 2}))),
        ("Qwen3, grouped", Qwen3ForCausalLM(Qwen3Config(**config | {"num_key_value_heads": 1}))),
    ]:
        folder = os.path.join(root, name.replace(", ", "_"))
        other.save_pretrained(folder)
        yield name, folder, other


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("runner")
    args = parser.parse_args()
    runner = os.path.abspath(args.runner)
    run = lambda *arguments: (
        subprocess.run([runner, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
    )

    torch.manual_seed(3)
    # Wide enough that attention is not flat.
    config = GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=256, initializer_range=0.2)
    model = GPT2LMHeadModel(config).eval()
    faults = []
    with tempfile.TemporaryDirectory() as root:
        tokens = torch.randint(50257, (4 * 256 + 1,))
        with open(os.path.join(root, "val.bin"), "wb") as file:
            shard(file, tokens.numpy())
        for name, path, theirs in forms(root, model):
            theirs.eval()
            limit = LOGITS if isinstance(theirs, GPT2LMHeadModel) else ROTARY
            worst = 0.0
            for prompt in PROMPTS:
                ours = json.loads(
                    run("sample", path, "--prompt", prompt, "--logits", "--set", "device.kind=cpu")
                )
                with torch.no_grad():
                    logits = theirs(torch.tensor([ours["tokens"]])).logits[0, -1].double()
                mine = torch.tensor(ours["logits"], dtype=torch.float64)
                worst = max(worst, ((logits - mine).norm() / logits.norm()).item())
            data = ["--task", "val", "--data", os.path.join(root, "val.bin"), "--set", "eval.val_tokens=1024"]
            measured = json.loads(run("eval", path, *data, "--json", "--set", "device.kind=cpu"))
            with torch.no_grad():
                logits = theirs(tokens[:-1].view(4, 256)).logits.double()
            loss = torch.nn.functional.cross_entropy(logits.view(-1, 50257), tokens[1:]).item()
            off = abs(measured["val_loss"] - loss) / loss
            print(f"{name}: relative error of logits at most {worst:.1e} (limit {limit:.0e}),")
            print(f"    of the loss {loss:.6f} {off:.1e} (limit {LOSS:.0e})")
            if not (worst <= limit and off <= LOSS):
                faults.append(name)

        roots = []
        for number, init in enumerate(["fp32", "crowded", "sharded", "model.bin"]):
            experiment = os.path.join(root, f"train{number}.toml")
            with open(experiment, "w") as file:
                file.write(TRAINING.format(init=init))
            roots.append(run("run", experiment, "--runs", os.path.join(root, "runs")).strip())
        print(f"two steps from each of four forms: state root {roots[0]}")
        if len(set(roots)) != 1:
            faults.append(f"training: {roots}")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    if faults:
        sys.exit(f"differ: {faults}")


if __name__ == "__main__":
    main()
