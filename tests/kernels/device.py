"""The CUDA driver through ctypes, beside PyTorch: loads kernels compiled as the program compiles them and
launches them on tensors' memory with one packed argument struct each."""

import ctypes
import os
import struct
from pathlib import Path

import torch

from nvrtc import Nvrtc

CUDA = ctypes.CDLL("libcuda.so.1")
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


def driver(code, what):
    if code:
        text = ctypes.c_char_p()
        CUDA.cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{what}: {text.value.decode() if text.value else code}")


class Launch:
    """A kernel with its geometry and arguments, ready to be put on the current stream any number of times."""

    def __init__(self, function, grid, block, shared, arguments, keep):
        self.function, self.shared, self.keep = function, shared, keep
        self.grid = (*grid, 1, 1)[:3] if isinstance(grid, tuple) else (grid, 1, 1)
        self.block = block
        self.buffer = ctypes.create_string_buffer(arguments, len(arguments))
        self.params = (ctypes.c_void_p * 1)(ctypes.addressof(self.buffer))
        if shared > 48 * 1024:
            driver(CUDA.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared), "cuFuncSetAttribute")

    def __call__(self):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        driver(
            CUDA.cuLaunchKernel(
                self.function, *self.grid, self.block, 1, 1, self.shared, stream, self.params, None
            ),
            "cuLaunchKernel",
        )


class Module:
    """kernels/NAME.cu for one element type. A folder named by RUNNER_CUBINS may hold what was compiled
    before."""

    nvrtc = None

    def __init__(self, name, act):
        torch.cuda.current_stream()
        torch.zeros(1, device="cuda")
        major, minor = torch.cuda.get_device_capability()
        architecture = f"sm_{major}{minor}" + ("a" if major >= 9 else "")
        ready = Path(os.environ.get("RUNNER_CUBINS", "/nonexistent")) / f"{name}.{architecture}.{act}.cubin"
        if ready.exists():
            image = ready.read_bytes()
        else:
            Module.nvrtc = Module.nvrtc or Nvrtc()
            image, _ = Module.nvrtc.compile(f"{name}.cu", architecture, f"{act}=1")
        self.module = ctypes.c_void_p()
        driver(CUDA.cuModuleLoadData(ctypes.byref(self.module), image), f"loading {name}")
        self.functions = {}

    def launch(self, kernel, grid, block, layout, *fields, shared=0):
        """`layout` in the letters of `struct`: Q pointer or 64-bit length, I 32 bits, f float. Tensors give
        their address."""
        if kernel not in self.functions:
            function = ctypes.c_void_p()
            driver(CUDA.cuModuleGetFunction(ctypes.byref(function), self.module, kernel.encode()), kernel)
            self.functions[kernel] = function
            offset, size = ctypes.c_size_t(), ctypes.c_size_t()
            places = ctypes.byref(offset), ctypes.byref(size)
            driver(CUDA.cuFuncGetParamInfo(function, ctypes.c_size_t(0), *places), kernel)
            taken = struct.calcsize("<" + layout)
            assert taken == size.value, f"{kernel} takes {size.value} bytes, not the {taken} of {layout}"
        values = [f.data_ptr() if isinstance(f, torch.Tensor) else (0 if f is None else f) for f in fields]
        packed = struct.pack("<" + layout, *values)
        assert len(packed) % 8 == 0, f"{kernel}: the argument struct is not padded to 8 bytes"
        return Launch(self.functions[kernel], grid, block, shared, packed, fields)
