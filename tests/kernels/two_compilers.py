"""The kernels of two compilers end in one root: the arithmetic is the kernels' own.

    pip install --target 129 nvidia-cuda-nvrtc-cu12==12.9.86
    python3 tests/kernels/two_compilers.py target/release/runner 129/nvidia/cuda_nvrtc/lib 130/nvidia/cu13/lib

Needs a Hopper GPU. For each folder with a libnvrtc, `experiments/ci_cuda.toml` is trained twice and once more
with a kill, and held to the golden root; the locks must name different compilers and different machine code.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/ci_cuda_hopper.root"


def environment_of(runner, libraries, folder):
    """Trains with the compiler in `libraries`; returns what the lock says of compiler and machine code."""
    names = folder / "libraries"
    names.mkdir()
    for file in Path(libraries).glob("libnvrtc*.so*"):
        (names / file.name).symlink_to(file.resolve())
        if not file.name.startswith("libnvrtc-builtins"):
            # Whatever its version, it is found by the first name that is looked for.
            (names / "libnvrtc.so").unlink(missing_ok=True)
            (names / "libnvrtc.so").symlink_to(file.resolve())
    paths = [str(names), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, paths))}
    command = [runner, "verify", ROOT / "experiments/ci_cuda.toml", "--twice", "--expect", GOLDEN]
    subprocess.run([*command, "--keep", folder / "runs"], env=environment, check=True)
    lock = next((folder / "runs").rglob("lock.toml"))
    table = tomllib.loads(lock.read_text())["environment"]
    kernels = {key: value for key, value in table.items() if key.endswith(".code_sha256")}
    return table["cuda.nvrtc"], kernels


def main():
    runner, *folders = sys.argv[1:]
    if len(folders) < 2:
        sys.exit(__doc__)
    made = []
    for libraries in folders:
        with tempfile.TemporaryDirectory() as folder:
            made.append(environment_of(Path(runner).resolve(), libraries, Path(folder)))
    versions = [version for version, _ in made]
    assert len(set(versions)) == len(versions), f"one compiler, not several: {versions}"
    for (version, kernels), (other, others) in zip(made, made[1:]):
        differing = sum(kernels[name] != others.get(name) for name in kernels)
        assert differing, f"{version} and {other} made the same machine code: nothing was shown"
        print(
            f"NVRTC {version} and {other}: {differing} of {len(kernels)} files of "
            "machine code differ, one root"
        )


if __name__ == "__main__":
    main()
