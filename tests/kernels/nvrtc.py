"""NVRTC through ctypes: compiles a kernel file as the program does. Needs libnvrtc and the standard library
alone.

The library is looked for in RUNNER_NVRTC, among the `nvidia-cuda-nvrtc` wheel's files, then by the loader.
"""

import ctypes
import glob
import os
import sys
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
ARCHITECTURES = ["sm_80", "sm_89", "sm_90a", "sm_100a"]
ACTS = ["ACT_BF16=1", "ACT_F32=1"]


def options(architecture, define):
    """The options the program compiles with, where `define` is such as `ACT_BF16=1`. They are part of the
    bits: change them there and here together."""
    return [f"--gpu-architecture={architecture}", "--std=c++17", "--fmad=false", f"-D{define}"]


def load_library():
    named = os.environ.get("RUNNER_NVRTC")
    candidates = [named] if named else []
    for folder in sys.path:
        for pattern in ["nvidia/cu1*/lib/libnvrtc.so.*", "nvidia/cuda_nvrtc/lib/libnvrtc.so.*"]:
            candidates += sorted(p for p in glob.glob(os.path.join(folder, pattern)) if ".alt." not in p)
    candidates += ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    for path in candidates:
        try:
            # libnvrtc opens its builtins by bare name: loaded first by path, they are found outside the
            # loader's folders too.
            for builtins in (
                glob.glob(os.path.join(os.path.dirname(path), "libnvrtc-builtins.so.*"))
                if "/" in path
                else []
            ):
                ctypes.CDLL(builtins)
            return ctypes.CDLL(path), path
        except OSError:
            continue
    sys.exit("libnvrtc was not found\n  hint: `pip install nvidia-cuda-nvrtc`, or set RUNNER_NVRTC")


class CompileError(Exception):
    pass


class Nvrtc:
    def __init__(self):
        self.library, self.path = load_library()
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def compile(self, name, architecture, define, extra=()):
        """Returns (cubin bytes, log) of kernels/`name`; raises CompileError with the log."""
        headers = sorted(KERNELS.glob("*.cuh"))
        sources = (ctypes.c_char_p * len(headers))(*[h.read_bytes() for h in headers])
        names = (ctypes.c_char_p * len(headers))(*[h.name.encode() for h in headers])
        program = ctypes.c_void_p()
        text = (KERNELS / name).read_bytes()
        self._check(
            self.library.nvrtcCreateProgram(
                ctypes.byref(program), text, name.encode(), len(headers), sources, names
            )
        )
        arguments = [o.encode() for o in [*options(architecture, define), *extra]]
        code = self.library.nvrtcCompileProgram(
            program, len(arguments), (ctypes.c_char_p * len(arguments))(*arguments)
        )
        log = (
            self._text(program, self.library.nvrtcGetProgramLogSize, self.library.nvrtcGetProgramLog)
            .rstrip(b"\0")
            .decode()
        )
        try:
            if code:
                raise CompileError(f"{name} for {architecture} with {define}:\n{log}")
            return self._text(program, self.library.nvrtcGetCUBINSize, self.library.nvrtcGetCUBIN), log
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program, size_of, get):
        size = ctypes.c_size_t()
        self._check(size_of(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(get(program, buffer))
        return buffer.raw

    def _check(self, code):
        if code:
            self.library.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise CompileError(self.library.nvrtcGetErrorString(code).decode())
