"""Compares LAMBADA, ARC-easy and PIQA of `runner eval` with lm-eval itself: every decision, and every score.

    pip install lm-eval tokenizers safetensors numpy
    python tests/pytorch/tasks_lm_eval.py target/release/runner

lm-eval's own task files word the questions, and its code encodes contexts and continuations, asks for the
log-likelihoods and makes the scores; the model that it asks is GPT-2 in numpy and float64, which cuts
contexts on the left as lm-eval's `HFLM` does. Two models are asked: tests/cases/hf_uniform with loud random
weights, a token a byte, and one with GPT-2's tokenizer and 64 tokens of context. The questions are those of
tests/fixtures and some whose last words the model itself would write, so that some words are greedy and some
are not.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from importlib.metadata import version

import datasets
import lm_eval.tasks
import numpy as np
import yaml
from hellaswag_lm_eval import CASES, Gpt2, louder
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from tokenizers import Tokenizer

FIXTURES = CASES.parent / "fixtures"
TASKS = {"lambada": "lambada/lambada_openai", "arc_easy": "arc/arc_easy", "piqa": "piqa/piqa"}
METRICS = {"lambada": ["acc", "perplexity"], "arc_easy": ["acc", "acc_norm"], "piqa": ["acc", "acc_norm"]}
EXPERIMENT = """
[model]
layers = 2
heads = 2
channels = 32
[batch]
micro = 1
seq_len = 64
[data]
corpus = "kjv"
[schedule]
steps = 1
[eval]
every = 0
"""


class Harness(TemplateLM):
    """lm-eval's handling of texts, over the model of a folder."""

    def __init__(self, folder):
        super().__init__()
        self.model = Gpt2(folder)
        self.max_length = len(self.model.w["wpe.weight"])
        self.eot = json.loads((folder / "config.json").read_text())["eos_token_id"]
        path = folder / "tokenizer.json"
        self.bpe = Tokenizer.from_file(str(path)) if path.exists() else None
        self.cut = 0

    @property
    def eot_token_id(self):
        return self.eot

    def tok_encode(self, string, add_special_tokens=None, **_):
        return self.bpe.encode(string).ids if self.bpe else list(string.encode())

    def score(self, context, continuation):
        tokens = (context + continuation)[-(self.max_length + 1) :]
        self.cut += len(tokens) < len(context) + len(continuation)
        log_probs = self.model.log_probs(tokens[:-1], last=len(continuation))
        greedy = (log_probs.argmax(-1) == continuation).all()
        return log_probs[np.arange(len(continuation)), continuation].sum(), bool(greedy)

    def _loglikelihood_tokens(self, requests, **_):
        return [self.score(context, continuation) for _, context, continuation in requests]

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError

    def generate_until(self, requests, **_):
        raise NotImplementedError


def lm_eval_results(model, name, file):
    """The scores of a task, and for each question its log-likelihoods, greedy or not, and points."""
    path = pathlib.Path(lm_eval.tasks.__file__).parent / f"{TASKS[name]}.yaml"
    task = yaml.safe_load(path.read_text())
    task |= {
        "task": "here",
        "dataset_path": "json",
        "dataset_name": None,
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
    }
    task.pop("tag", None)
    results = simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, log_samples=True)
    samples = sorted(results["samples"]["here"], key=lambda sample: sample["doc_id"])
    return [results["results"]["here"][f"{metric},none"] for metric in METRICS[name]], samples


def runner_results(runner, folder, name, file):
    with tempfile.TemporaryDirectory() as root:
        details = pathlib.Path(root) / "details.jsonl"
        arguments = ["--task", f"{name}={file}", "--details", details, "--json", "--set", "device.kind=cpu"]
        command = [runner, "eval", folder, *arguments]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        decisions = [json.loads(line) for line in details.open(encoding="utf-8")]
    scores = json.loads(output)
    return [scores[f"{name}_{metric}"] for metric in METRICS[name]], decisions


def compare(name, sample, decision):
    """Whether a question's results are the same, and whether its word is greedy, or its scores fall apart."""
    theirs = [(-float(ll), greedy) for ((ll, greedy),) in sample["resps"]]
    if name == "lambada":
        ours = decision["lambada"]
        same = ours["greedy"] == theirs[0][1] and sample["acc"] == int(ours["greedy"])
        return same and close([ours["nats"]], [theirs[0][0]]), ours["greedy"]
    ours = [decision[f"{name}_{metric}"] for metric in METRICS[name]]
    points = [float(d["picked"] == decision["label"]) for d in ours]
    same = points == [sample[metric] for metric in METRICS[name]]
    best = int(np.argmin([nats for nats, _ in theirs])) == ours[0]["picked"]
    same = same and best and close(ours[0]["values"], [nats for nats, _ in theirs])
    return same, ours[0]["picked"] != ours[1]["picked"]


def close(ours, theirs):
    """fp32 against float64: another token, or a context cut elsewhere, would differ in the first digits."""
    return np.allclose(ours, theirs, rtol=2e-4, atol=0)


def with_own_words(model, file, to):
    """The questions of `file`, and contexts with the word that the model would write, and with another."""
    lines = [json.loads(line)["text"] for line in open(file, encoding="utf-8")]
    rng = np.random.Generator(np.random.PCG64(3))
    words = sorted({word for line in lines for word in line.split(" ") if word})
    for _ in range(150):
        context = " ".join(rng.choice(words, rng.integers(1, 90)))
        tokens = model.tok_encode(context)[-model.max_length :]
        word = model.bpe.decode([int(model.model.log_probs(tokens, last=1)[0].argmax())])
        if word.startswith(" ") and word.strip() and " " not in word[1:]:
            lines += [context + word, context + " " + str(rng.choice(words))]
    with open(to, "w", encoding="utf-8") as out:
        out.writelines(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
    return to


def gpt2_folder(runner, root):
    """A folder of Hugging Face's with GPT-2's tokenizer, and loud random weights."""
    (root / "tiny.toml").write_text(EXPERIMENT)
    cpu = ["--set", "device.kind=cpu", "--runs", root / "runs"]
    export = ["export", "tiny", "--format", "hf", "--out", root / "hf", "--runs", root / "runs"]
    for command in (["run", root / "tiny.toml", *cpu], export):
        subprocess.run([runner, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return louder(root / "hf", root / "gpt2")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("runner")
    runner = pathlib.Path(parser.parse_args().runner).absolute()
    datasets.disable_progress_bars()
    faults = []
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        for folder in [louder(CASES / "hf_uniform", root / "bytes"), gpt2_folder(runner, root)]:
            model = Harness(folder)
            for name in TASKS:
                file = FIXTURES / f"{name}.jsonl"
                if name == "lambada" and model.bpe:
                    file = with_own_words(model, file, root / "lambada.jsonl")
                model.cut = 0
                theirs, samples = lm_eval_results(model, name, file)
                ours, decisions = runner_results(runner, folder, name, file)
                compared = [compare(name, *pair) for pair in zip(samples, decisions, strict=True)]
                apart = sum(apart for _, apart in compared)
                what = f"{len(samples)} questions, {model.cut} rows cut, {apart} greedy or decided apart"
                print(f"{folder.name}, {name}: {what}: lm-eval {theirs}, runner {ours}")
                where = [i + 1 for i, (same, _) in enumerate(compared) if not same]
                if where or not np.allclose(ours, theirs, rtol=1e-4 if name == "lambada" else 0, atol=0):
                    faults.append(f"{folder.name}, {name}: differs, lines {where}")
                if not model.cut or (not apart and (name != "lambada" or model.bpe)):
                    faults.append(f"{folder.name}, {name}: no context was cut, or all scores agree: no proof")
    print(f"every decision of lm-eval {version('lm_eval')}")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
