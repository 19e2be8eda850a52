"""Loads what `runner export --format hf` writes in transformers: the same logits, the same tokens.

    python tests/pytorch/hf_export.py target/release/runner runs/quickstart [--dtype fp32|bf16]

Ours are the logits of the token after each prompt, from `runner sample --logits`, computed in the run's own
precision; theirs those of the architecture that the folder names in fp32, with the weights of the exported
file. The numbers compared are relative: the norm of the difference over the norm of ours. Limits: 2e-6 for
an fp32 export of a run on the CPU, 1e-2 for a bf16 export, whose weights are rounded (half a unit in the
last place is 2e-3).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "",
    "In the beginning",
    " And God said,\nLet there be light: 1,234 times!",
    "naïve façade — 漢字 🦀",
    "don't I'll  two spaces\t\ttabs\r\n\n end  ",
    """Tokens are counted in bytes by one tokenizer and in pieces of words by the other; this paragraph (which
only the latter gets into 256 tokens) has a bit of everything: hyphen-ated and CamelCase words, they've and
WE'LL and she's, numbers such as 3.14159, 1,557,686,400 and 0x7f, e-mail@example.org,
https://example.org/?q=a&b=c#d, code { return x[i] += 1; } // so,
    four spaces of indentation, a tab\there, accents déjà-vu Ångström, Ελληνικά, русский, עברית, 日本語,
emoji 👩‍🚀🏳️‍🌈, and\u00a0no-break spaces.""",
]
LIMITS = {"fp32": 2e-6, "bf16": 1e-2}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runner")
    parser.add_argument("run")
    parser.add_argument("--dtype", choices=LIMITS, default="fp32")
    args = parser.parse_args()
    run = lambda *arguments: (
        subprocess.run([args.runner, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
    )

    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.join(temporary, "model")
        run("export", args.run, "--format", "hf", "--dtype", args.dtype, "--out", folder)
        stored = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        expected = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
        assert stored.dtype == expected, f"loaded as {stored.dtype}, exported as {expected}"
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        problems = {key: list(value) for key, value in report.items() if value}
        assert not problems, problems
        tied = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        assert tied == model.config.tie_word_embeddings, f"the classifier is tied: {tied}"
        model.eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)

    worst, longest, compared = 0.0, 0, 0
    for prompt in PROMPTS:
        theirs = [tokenizer.bos_token_id] + tokenizer.encode(prompt, add_special_tokens=False)
        if len(theirs) > model.config.max_position_embeddings:
            continue
        ours = json.loads(run("sample", args.run, "--prompt", prompt, "--logits"))
        assert theirs == ours["tokens"], f"{prompt!r}: {theirs} where we have {ours['tokens']}"
        assert tokenizer.decode(theirs[1:]) == prompt, f"{tokenizer.decode(theirs[1:])!r} is not {prompt!r}"
        with torch.no_grad():
            logits = model(torch.tensor([theirs])).logits[0, -1].double()
        mine = torch.tensor(ours["logits"], dtype=torch.float64)
        assert logits.shape == mine.shape, f"{logits.shape} where we have {mine.shape}"
        longest, compared = max(longest, len(theirs)), compared + 1
        worst = max(worst, ((logits - mine).norm() / mine.norm()).item())
    print(
        f"{os.path.basename(args.run)} {type(model).__name__} {args.dtype}:"
        f" {compared} prompts of up to {longest} tokens,"
        f" {type(tokenizer).__name__}, {model.config.vocab_size} logits, relative error at most {worst:.2e}"
        f" (limit {LIMITS[args.dtype]:.0e}); transformers {transformers.__version__},"
        f" tokenizers {tokenizers.__version__}, torch {torch.__version__}"
    )
    if not worst <= LIMITS[args.dtype]:
        sys.exit("the logits differ")


if __name__ == "__main__":
    main()
