"""Compiles every kernel file for every architecture and both element types; fails with the compiler's log.

Needs no GPU and no CUDA toolkit: `pip install nvidia-cuda-nvrtc`. A kernel that spills registers or uses a
stack frame fails too. `--resources` prints registers and shared memory of each kernel; names select files.
"""

import re
import sys

from nvrtc import ACTS, ARCHITECTURES, KERNELS, CompileError, Nvrtc


def resources(log):
    """Yields (kernel, registers, shared bytes, stack bytes, spilled bytes) from the assembler's report."""
    for part in re.split(r"Compiling entry function ", log)[1:]:
        kernel = re.match(r"'(\w+)'", part).group(1)
        number = lambda pattern: int((re.search(pattern, part) or [0, 0])[1])
        yield (
            kernel,
            number(r"Used (\d+) registers"),
            number(r"(\d+) bytes smem"),
            number(r"(\d+) bytes stack frame"),
            number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        )


def variants(name):
    """(architecture, macro definition) of each way in which the program compiles a file."""
    bf16 = next(act for act in ACTS if "BF16" in act)
    if name in ("gemm_hopper.cu", "classifier_hopper.cu"):
        return [("sm_90a", bf16)]
    if not name.startswith("attention_") or name == "attention_any.cu":
        return [(architecture, act) for act in ACTS for architecture in ARCHITECTURES]
    # Flash attention is bf16, a cubin a head size; the Hopper files are for sm_90a alone.
    hopper = name.endswith("_hopper.cu")
    architectures, sizes = (["sm_90a"], (64, 128)) if hopper else (ARCHITECTURES, (64, 80, 96, 128))
    return [(architecture, f"HEAD_SIZE={size}") for architecture in architectures for size in sizes]


def main():
    names = [a for a in sys.argv[1:] if not a.startswith("--")] or sorted(
        p.name for p in KERNELS.glob("*.cu")
    )
    verbose = "--resources" in sys.argv
    nvrtc = Nvrtc()
    print(f"NVRTC {nvrtc.version}: {nvrtc.path}", file=sys.stderr)
    failures = 0
    for name in names:
        for architecture, what in variants(name):
            try:
                cubin, log = nvrtc.compile(name, architecture, what, ["--ptxas-options=-v"])
            except CompileError as error:
                print(error)
                failures += 1
                continue
            if "warning" in log:
                print(f"{name} for {architecture} with {what}:\n{log}")
                failures += 1
            for kernel, registers, shared, stack, spilled in resources(log):
                if verbose:
                    print(
                        f"{architecture:8} {what:24} {kernel:32} {registers:4} registers "
                        f"{shared:6} B shared {stack:4} B stack"
                    )
                if stack or spilled:
                    print(
                        f"{kernel} for {architecture} with {what}: {stack} bytes of stack, "
                        f"{spilled} bytes spilled"
                    )
                    failures += 1
        print(f"{name}: compiled", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
