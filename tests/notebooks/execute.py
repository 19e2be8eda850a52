"""Executes each notebook on small runs that it trains first, and checks that no outputs are committed.

    python tests/notebooks/execute.py target/release/runner [--keep FOLDER]

Needs the packages of requirements.txt beside this file. The runs are the quick start, cut to seconds.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"

SHORT = [
    "schedule.steps=40",
    "schedule.learning_rate=1e-3",
    "schedule.warmup_steps=5",
    "eval.every=10",
    "eval.val_tokens=2048",
    "sample.every=0",
]


def depth(layers: int) -> list[str]:
    return [f"model.layers={layers}", f"model.channels={32 * layers}", f"model.heads={layers}"]


# Name and keys of each run that a notebook reads.
FIXTURES = {
    "quickstart": [],
    "again": [],
    "other_seed": ["seed=1338"],
    "depth_1": depth(1),
    "depth_2": depth(2),
    "depth_3": depth(3),
}


def train(runner: Path, runs: Path) -> None:
    for name, keys in FIXTURES.items():
        sets = [argument for key in SHORT + keys for argument in ("--set", key)]
        command = [runner, "run", "experiments/quickstart.toml", "--runs", runs, "--name", name, *sets]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"`{name}` did not train:\n{done.stderr}")


def unstripped(notebook: nbformat.NotebookNode) -> list[str]:
    """What a commit must not have: outputs, counters, metadata of a session."""
    faults = []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None):
            faults.append(f"cell {number} has outputs or a counter")
        if cell.metadata:
            faults.append(f"cell {number} has metadata {dict(cell.metadata)}")
    extra = set(notebook.metadata) - {"kernelspec", "language_info"}
    return faults + [f"the notebook has metadata `{key}`" for key in sorted(extra)]


def check(path: Path, runs: Path, keep: Path | None) -> list[str]:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    faults = unstripped(notebook)
    environment = dict(
        os.environ, NOTEBOOK_RUNS=str(runs), PYTHONWARNINGS="error::DeprecationWarning:__main__"
    )
    try:
        # The kernel is spoken to over files in the working directory, not TCP: nothing else can listen.
        kernel = Config({"KernelManager": {"transport": "ipc"}})
        NotebookClient(notebook, config=kernel, timeout=120, kernel_name="python3").execute(env=environment)
    except Exception as error:
        return [*faults, str(error)]
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    if not any("image/png" in output.get("data", {}) for output in outputs):
        faults.append("it drew no picture")
    faults += [f"it warned: {output.text}" for output in outputs if output.get("name") == "stderr"]
    if keep:
        nbformat.write(notebook, keep / path.name)
    return faults


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("runner", type=Path, help="the program that trains the runs")
    arguments.add_argument("--keep", type=Path, help="folder for the notebooks with their outputs")
    arguments = arguments.parse_args()
    runner = arguments.runner.resolve()
    keep = arguments.keep and arguments.keep.resolve()
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    failed = 0
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        began = time.monotonic()
        train(runner, runs)
        os.chdir(folder)
        print(f"{len(FIXTURES)} runs in {time.monotonic() - began:.1f} s")
        for path in paths:
            began = time.monotonic()
            faults = check(path, runs, keep)
            failed += bool(faults)
            print(f"{'FAILED' if faults else 'ok':6} {path.name} in {time.monotonic() - began:.1f} s")
            for fault in faults:
                print(f"  {fault}")
    print(f"{len(paths) - failed} passed, {failed} failed")
    sys.exit(1 if failed or not paths else 0)


if __name__ == "__main__":
    main()
