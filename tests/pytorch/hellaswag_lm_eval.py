"""Compares the HellaSwag scores of `runner eval` with those of lm-eval itself, on tasks beyond ASCII.

    pip install lm-eval safetensors numpy
    python tests/pytorch/hellaswag_lm_eval.py target/release/runner

lm-eval words the tasks, asks for the log-likelihoods and makes the scores; the model that it asks is GPT-2 in
numpy and float64, written out below, with one token a byte. Nothing is shared with `runner` but the files:
the folders of tests/cases, a model like them whose losses differ by task, and the tasks. All scores must be
equal, and those by characters and by bytes must differ somewhere.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version

import datasets
import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks.hellaswag import utils
from safetensors.numpy import load_file, save_file

CASES = pathlib.Path(__file__).parent.parent / "cases"
WORDS = ["déjà", "the lamp", "höher als", "goes out", "сад", "水を飲む", "and then", "über", "slowly", "🙂"]


class Gpt2(LM):
    """A folder of Hugging Face's with one token a byte."""

    def __init__(self, folder):
        super().__init__()
        self.w = {
            name.removeprefix("transformer."): value.astype(np.float64)
            for name, value in load_file(folder / "model.safetensors").items()
        }
        config = json.loads((folder / "config.json").read_text())
        self.layers, self.heads = config["n_layer"], config["n_head"]

    def affine(self, x, name):
        return x @ self.w[name + ".weight"] + self.w[name + ".bias"]

    def norm(self, x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.w[name + ".weight"] + self.w[name + ".bias"]

    def log_probs(self, tokens, last=0):
        """Of the tokens that follow each of the `last` ones; 0 is all."""
        x = self.w["wte.weight"][tokens] + self.w["wpe.weight"][: len(tokens)]
        for h in (f"h.{i}" for i in range(self.layers)):
            split = lambda y: y.reshape(len(tokens), self.heads, -1).swapaxes(0, 1)
            q, k, v = map(split, np.split(self.affine(self.norm(x, h + ".ln_1"), h + ".attn.c_attn"), 3, -1))
            scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
            scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (weights / weights.sum(-1, keepdims=True)) @ v
            x = x + self.affine(mixed.swapaxes(0, 1).reshape(len(tokens), -1), h + ".attn.c_proj")
            y = self.affine(self.norm(x, h + ".ln_2"), h + ".mlp.c_fc")
            y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
            x = x + self.affine(y, h + ".mlp.c_proj")
        logits = self.norm(x[-last:], "ln_f") @ self.w["wte.weight"].T
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def loglikelihood(self, requests, **_):
        results = []
        for context, continuation in (request.args for request in requests):
            tokens = list((context + continuation).encode())
            scored = len(continuation.encode())
            log_probs = self.log_probs(tokens[:-1])[-scored:]
            results.append((log_probs[np.arange(scored), tokens[-scored:]].sum(), False))
        return results

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError

    def generate_until(self, requests, **_):
        raise NotImplementedError


def lm_eval_scores(folder, tasks):
    task = {
        "task": "hellaswag_here",
        "dataset_path": "json",
        "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"validation": str(tasks)}},
        "validation_split": "validation",
        "process_docs": utils.process_docs,
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
    }
    results = simple_evaluate(model=Gpt2(folder), tasks=[task], bootstrap_iters=0)["results"]
    return [results["hellaswag_here"][f"{name},none"] for name in ("acc", "acc_norm", "acc_bytes")]


def runner_scores(runner, folder, tasks):
    arguments = ["--task", "hellaswag", "--data", tasks, "--json", "--set", "device.kind=cpu"]
    output = subprocess.run([runner, "eval", folder, *arguments], check=True, stdout=subprocess.PIPE).stdout
    scores = json.loads(output)
    return [scores[f"hellaswag_{name}"] for name in ("acc", "acc_norm", "acc_bytes")]


def many_tasks(path):
    """200 tasks of mixed letters, with WikiHow's artefacts and contexts in two parts, as the original has."""
    rng = np.random.Generator(np.random.PCG64(5))
    text = lambda n: " ".join(rng.choice(WORDS, n))
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(200):
            end = lambda: " [title] " if rng.random() < 0.1 else "."
            endings = [text(rng.integers(1, 5)) + end() for _ in range(4)]
            task = {
                "activity_label": text(1),
                "ctx_a": text(2) + ".",
                "ctx_b": text(1),
                "endings": endings,
                "label": str(rng.integers(4)),
                "ctx": "",
            }
            task["ctx"] = f"{task['ctx_a']} {task['ctx_b']}"
            file.write(json.dumps(task, ensure_ascii=False) + "\n")


def with_two_parts(tasks, path):
    """lm-eval reads `ctx_a` and `ctx_b`; where a file has `ctx` alone, the second is empty."""
    with open(path, "w", encoding="utf-8") as file:
        for line in open(tasks, encoding="utf-8"):
            task = json.loads(line)
            context = task.pop("ctx") if "ctx_a" not in task else None
            if context is not None:
                first, _, last = context.rpartition(" ")
                task |= {"ctx_a": first, "ctx_b": last, "ctx": context}
            file.write(json.dumps(task, ensure_ascii=False) + "\n")


def louder(folder, to):
    """`hf_uniform` with random weights large enough that losses differ much between bytes."""
    shutil.copytree(folder, to)
    rng = np.random.Generator(np.random.PCG64(7))
    shapes = {name: value.shape for name, value in load_file(folder / "model.safetensors").items()}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, to / "model.safetensors", {"format": "pt"})
    return to


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("runner")
    runner = pathlib.Path(parser.parse_args().runner).absolute()
    datasets.disable_progress_bars()
    differ, apart = [], 0
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        few, many = root / "few.jsonl", root / "many.jsonl"
        with_two_parts(CASES / "hellaswag_nonascii.jsonl", few)
        many_tasks(many)
        uniform, loud = CASES / "hf_uniform", louder(CASES / "hf_uniform", root / "louder")
        # Not the uniform model on many tasks: endings of equal cost are decided by the last bit there, which
        # differs between sums of fp32 losses and of float64.
        for folder, tasks in [(uniform, few), (loud, few), (loud, many)]:
            theirs, ours = lm_eval_scores(folder, tasks), runner_scores(runner, folder, tasks)
            print(f"{folder.name}, {tasks.stem}: lm-eval {theirs}, runner {ours}")
            apart += theirs[1] != theirs[2]
            if theirs != ours:
                differ.append((folder.name, tasks.stem))
    print(f"acc, acc_norm and acc_bytes of lm-eval {version('lm_eval')}")
    if differ:
        sys.exit(f"differ: {differ}")
    if not apart:
        sys.exit("characters and bytes give the same scores everywhere: these tasks prove nothing")


if __name__ == "__main__":
    main()
