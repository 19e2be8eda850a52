"""Checks and times kernels/attention*.cu on a GPU, beside PyTorch.

    python3 attention.py --kernels ../../kernels check repeat time
    python3 attention.py --kernels ../../kernels --cubins DIR compile     (no GPU: fills the cubin cache)

check   out, lse and dqkv against float64 on fresh random inputs, outputs poisoned with NaN, for all head
        sizes and for lengths that are no multiple of a tile; PyTorch's flash attention stands beside as the
        yardstick.
repeat  the same bytes again and again, also while another stream occupies a changing number of
        multiprocessors.
time    median of CUDA-event times at the shapes of the shipped experiments.

The kernels are compiled by NVRTC as the program compiles them: to a cubin, no include path, our own headers
by name.
"""

import argparse
import ctypes
import hashlib
import math
import pathlib
import sys

from cuda.bindings import nvrtc

HEAD_SIZES = (64, 80, 96, 128)
HOPPER_HEAD_SIZES = (64, 128)


# ---- compiling ---------------------------------------------------------------------------------------


def compile_cubin(folder, file, arch, defines, cache):
    """The cubin of one source file, from the cache when the same text and options were compiled before."""
    source = (folder / file).read_bytes()
    headers = sorted(folder.glob("*.cuh"))
    options = [f"--gpu-architecture={arch}", "--std=c++17", "--fmad=false"] + [
        f"-D{k}={v}" for k, v in sorted(defines.items())
    ]
    key = hashlib.sha256(
        b"\0".join([source] + [h.read_bytes() for h in headers] + [o.encode() for o in options])
    ).hexdigest()
    cached = cache / f"{key}.cubin" if cache else None
    if cached and cached.exists():
        return cached.read_bytes()
    err, program = nvrtc.nvrtcCreateProgram(
        source,
        file.encode(),
        len(headers),
        [h.read_bytes() for h in headers],
        [h.name.encode() for h in headers],
    )
    (err,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    if err:
        size = nvrtc.nvrtcGetProgramLogSize(program)[1]
        log = b" " * size
        nvrtc.nvrtcGetProgramLog(program, log)
        raise SystemExit(f"{file} {options}:\n{log.decode()}")
    size = nvrtc.nvrtcGetCUBINSize(program)[1]
    cubin = b" " * size
    nvrtc.nvrtcGetCUBIN(program, cubin)
    if cached:
        cache.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(cubin)
    return cubin


# ---- launching ---------------------------------------------------------------------------------------


class ForwardArgs(ctypes.Structure):
    _fields_ = [
        ("out", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("qkv", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("tokens", "heads", "kv_heads", "slices")),
    ]


class BackwardArgs(ctypes.Structure):
    _fields_ = [
        ("dqkv", ctypes.c_void_p),
        ("delta", ctypes.c_void_p),
        ("dout", ctypes.c_void_p),
        ("qkv", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("tokens", "heads", "kv_heads", "slices")),
    ]


def ok(result):
    if int(result[0]) != 0:
        raise RuntimeError(f"CUDA driver: {result[0]}")
    return result[1] if len(result) == 2 else result[1:]


def get_function(cubin, name, shared_bytes):
    from cuda.bindings import driver

    module = ok(driver.cuModuleLoadData(cubin))
    function = ok(driver.cuModuleGetFunction(module, name.encode()))
    ok(
        driver.cuFuncSetAttribute(
            function,
            driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            shared_bytes,
        )
    )
    return function


def launch(function, grid, block, shared_bytes, args):
    from cuda.bindings import driver
    import torch

    _, size = ok(driver.cuFuncGetParamInfo(function, 0))
    assert ctypes.sizeof(args) == size, f"the kernel takes {size} bytes, not {type(args).__name__}"
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(args))
    ok(
        driver.cuLaunchKernel(
            function,
            *grid,
            block,
            1,
            1,
            shared_bytes,
            torch.cuda.current_stream().cuda_stream,
            ctypes.addressof(pointers),
            0,
        )
    )


class Portable:
    """attention_forward.cu and attention_backward.cu: mma.sync, sm_80 and later."""

    def __init__(self, compile, head_size):
        hs, row = head_size, 2 * head_size + 16
        self.hs, self.forward_rows, query_keys = hs, 128 if hs == 64 else 64, 64 if hs <= 80 else 32
        forward, backward = (
            compile(f"attention_{way}.cu", {"HEAD_SIZE": hs}) for way in ("forward", "backward")
        )
        if forward is None:
            return
        self.forward_shared = (self.forward_rows + 4 * 64) * row
        self.query_shared = (2 * 64 + 4 * query_keys) * row
        self.key_shared = (2 * 64 + 4 * 32) * row + 16 * 32
        self.forward_kernel = get_function(forward, "attention_forward", self.forward_shared)
        self.query_kernel = get_function(backward, "attention_backward_query", self.query_shared)
        self.key_kernel = get_function(backward, "attention_backward_key", self.key_shared)

    def forward(self, out, lse, qkv):
        batch, tokens, _, heads, _ = qkv.shape
        of = qkv.data_ptr()
        args = ForwardArgs(out.data_ptr(), lse.data_ptr(), of, of, tokens, heads, heads, 3 * heads)
        launch(
            self.forward_kernel,
            (-(-tokens // self.forward_rows), batch * heads, 1),
            128,
            self.forward_shared,
            args,
        )

    def backward(self, dqkv, delta, dout, qkv, out, lse, only=None):
        batch, tokens, _, heads, _ = qkv.shape
        args = BackwardArgs(
            dqkv.data_ptr(),
            delta.data_ptr(),
            dout.data_ptr(),
            qkv.data_ptr(),
            qkv.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
            tokens,
            heads,
            heads,
            3 * heads,
        )
        if only != "key":
            launch(self.query_kernel, (-(-tokens // 64), batch * heads, 1), 128, self.query_shared, args)
        if only != "query":
            launch(self.key_kernel, (-(-tokens // 64), batch * heads, 1), 128, self.key_shared, args)

    def scratch(self, batch, tokens, heads):
        import torch

        return poisoned((batch, heads, tokens), torch.float32)


class HopperForwardArgs(ctypes.Structure):
    _fields_ = [
        ("qkv", ctypes.c_uint64 * 16),
        ("values", ctypes.c_uint64 * 16),
        ("out", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("tokens", "heads", "kv_heads", "unused")),
        ("pad", ctypes.c_uint64 * 4),
    ]


class HopperBackwardArgs(ctypes.Structure):
    _fields_ = [
        ("qkv_map", ctypes.c_uint64 * 16),
        ("values_map", ctypes.c_uint64 * 16),
        ("dout_map", ctypes.c_uint64 * 16),
        ("dqkv", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("dout", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("tokens", "heads", "kv_heads", "unused")),
        ("pad", ctypes.c_uint64 * 1),
    ]


def tensor_map(tensor, slices):
    """The tensor map of a (B, T, slices * heads, HS) bf16 tensor: boxes of 64 tokens by 64 columns of a
    head."""
    from cuda.bindings import driver

    batch, tokens, hs = tensor.shape[0], tensor.shape[1], tensor.shape[-1]
    u64, u32 = driver.cuuint64_t, driver.cuuint32_t
    row = slices * hs * 2
    made = ok(
        driver.cuTensorMapEncodeTiled(
            driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            4,
            tensor.data_ptr(),
            [u64(hs), u64(slices), u64(tokens), u64(batch)],
            [u64(hs * 2), u64(row), u64(row * tokens)],
            [u32(64), u32(1), u32(64), u32(1)],
            [u32(1)] * 4,
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )
    return (ctypes.c_uint64 * 16).from_buffer_copy(ctypes.string_at(made.getPtr(), 128))


class Hopper:
    """attention_forward_hopper.cu and attention_backward_hopper.cu: wgmma and TMA, sm_90a, head sizes 64 and
    128."""

    def __init__(self, compile, head_size):
        hs = head_size
        self.hs, self.groups = hs, 2 if hs == 64 else 3
        query_stages, key_stages = (4, 3) if hs == 64 else (3, 2)
        f, b = (compile(f"attention_{way}_hopper.cu", {"HEAD_SIZE": hs}) for way in ("forward", "backward"))
        if f is None:
            return
        self.f_shared = 2 * hs * (64 * self.groups + 8 * 64) + 104
        self.q_shared = 2 * hs * (2 * 64 * self.groups + 2 * query_stages * 64) + 8 * (1 + 2 * query_stages)
        self.k_shared = (
            2 * hs * (2 * 64 + 2 * key_stages * 64) + 8 * key_stages * 64 + 8 * (1 + 2 * key_stages)
        )
        self.forward_kernel = get_function(f, "attention_forward", self.f_shared)
        self.query_kernel = get_function(b, "attention_backward_query", self.q_shared)
        self.key_kernel = get_function(b, "attention_backward_key", self.k_shared)
        self.maps = {}

    def map(self, tensor, slices):
        key = (tensor.data_ptr(), tensor.shape)
        if key not in self.maps:
            self.maps[key] = tensor_map(tensor, slices)
        return self.maps[key]

    def forward(self, out, lse, qkv):
        batch, tokens, _, heads, _ = qkv.shape
        of = self.map(qkv, 3 * heads)
        args = HopperForwardArgs(of, of, out.data_ptr(), lse.data_ptr(), tokens, heads, heads)
        launch(
            self.forward_kernel,
            (-(-tokens // (64 * self.groups)), batch * heads, 1),
            128 * self.groups,
            self.f_shared,
            args,
        )

    def backward(self, dqkv, delta, dout, qkv, out, lse, only=None):
        batch, tokens, _, heads, _ = qkv.shape
        args = HopperBackwardArgs(
            self.map(qkv, 3 * heads),
            self.map(qkv, 3 * heads),
            self.map(dout, heads),
            dqkv.data_ptr(),
            delta.data_ptr(),
            dout.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
            tokens,
            heads,
            heads,
        )
        if only != "key":
            launch(
                self.query_kernel,
                (-(-tokens // (64 * self.groups)), batch * heads, 1),
                128 * self.groups,
                self.q_shared,
                args,
            )
        if only != "query":
            launch(self.key_kernel, (-(-tokens // 64), batch * heads, 1), 128, self.k_shared, args)

    def scratch(self, batch, tokens, heads):
        import torch

        return poisoned((batch, heads, 2, -(-tokens // 64) * 64), torch.float32)


# ---- measuring ---------------------------------------------------------------------------------------


def poisoned(shape, dtype):
    import torch

    return torch.full(shape, math.nan, dtype=dtype, device="cuda")


def buffers(kernel, batch, tokens, heads):
    import torch

    hs = kernel.hs
    return dict(
        out=poisoned((batch, tokens, heads, hs), torch.bfloat16),
        lse=poisoned((batch, heads, tokens), torch.float32),
        dqkv=poisoned((batch, tokens, 3, heads, hs), torch.bfloat16),
        scratch=kernel.scratch(batch, tokens, heads),
    )


def inputs(batch, tokens, heads, hs, seed):
    import torch

    g = torch.Generator(device="cuda").manual_seed(seed)
    qkv = torch.randn((batch, tokens, 3, heads, hs), generator=g, device="cuda", dtype=torch.float32).to(
        torch.bfloat16
    )
    dout = torch.randn((batch, tokens, heads, hs), generator=g, device="cuda", dtype=torch.float32).to(
        torch.bfloat16
    )
    return qkv, dout


def run(kernel, qkv, dout):
    batch, tokens, _, heads, _ = qkv.shape
    b = buffers(kernel, batch, tokens, heads)
    kernel.forward(b["out"], b["lse"], qkv)
    kernel.backward(b["dqkv"], b["scratch"], dout, qkv, b["out"], b["lse"])
    return b["out"], b["lse"], b["dqkv"]


def reference(qkv, dout):
    """out, lse, dqkv in float64, from the bf16 inputs."""
    import torch

    q, k, v = (qkv[:, :, i].double().transpose(1, 2) for i in range(3))
    d = dout.double().transpose(1, 2)
    scale = 1.0 / math.sqrt(q.shape[-1])
    mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device="cuda").triu(1)
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(mask, -math.inf)
    lse = s.logsumexp(-1)
    p = (s - lse[..., None]).exp()
    out = p @ v
    dp = d @ v.transpose(-1, -2)
    ds = p * (dp - (d * out).sum(-1, keepdim=True)) * scale
    dqkv = torch.stack(
        [
            (ds @ k).transpose(1, 2),
            (ds.transpose(-1, -2) @ q).transpose(1, 2),
            (p.transpose(-1, -2) @ d).transpose(1, 2),
        ],
        dim=2,
    )
    return out.transpose(1, 2), lse, dqkv


def torch_attention(backend, qkv, dout):
    """PyTorch's attention as two closures: forward, and backward to (dq, dk, dv)."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (qkv[:, :, i].transpose(1, 2).detach().requires_grad_() for i in range(3))
    which = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[backend]

    def forward():
        with sdpa_kernel([which]):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def backward(out):
        return torch.autograd.grad(out, (q, k, v), dout.transpose(1, 2), retain_graph=True)

    return forward, backward


def error(x, ref):
    e = ((x.double() - ref).norm() / ref.norm()).item()
    return e if math.isfinite(e) else math.inf


def median_ms(f, repeats=40, warm=8):
    import torch

    for _ in range(warm):
        f()
    pairs = []
    for _ in range(repeats):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        f()
        b.record()
        pairs.append((a, b))
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in pairs)[repeats // 2]


# ---- the three verbs -----------------------------------------------------------------------------------

CHECK_SHAPES = [
    (2, 1024, 3),
    (1, 2048, 2),
    (2, 64, 3),
    (1, 1, 2),
    (3, 17, 1),
    (1, 127, 2),
    (2, 129, 2),
    (1, 1000, 3),
    (1, 333, 2),
    (1, 4096, 1),
]


def check(kernels):
    """Every output against float64; fails when an error is over 1.25 times that of PyTorch's flash
    attention."""
    failed = []
    for name, kernel in kernels.items():
        worst = {}
        for seed, (batch, tokens, heads) in enumerate(CHECK_SHAPES):
            qkv, dout = inputs(batch, tokens, heads, kernel.hs, 1000 + seed)
            out, lse, dqkv = run(kernel, qkv, dout)
            ref_out, ref_lse, ref_dqkv = reference(qkv, dout)
            forward, backward = torch_attention("flash", qkv, dout)
            flash_out = forward()
            flash_grads = backward(flash_out)
            rows = [("out", error(out, ref_out), error(flash_out.transpose(1, 2), ref_out))]
            for i, what in enumerate(("dq", "dk", "dv")):
                if tokens == 1 and what != "dv":  # exactly zero: compare absolutely
                    rows.append((what, dqkv[:, :, i].double().abs().max().item(), 0.01))
                else:
                    rows.append(
                        (
                            what,
                            error(dqkv[:, :, i], ref_dqkv[:, :, i]),
                            error(flash_grads[i].transpose(1, 2), ref_dqkv[:, :, i]),
                        )
                    )
            lse_error = (lse.double() - ref_lse).abs().max().item()
            if not lse_error < 2e-5:
                failed.append(f"{name} B{batch} T{tokens} H{heads} lse: {lse_error:.3e}")
            for what, ours, theirs in rows:
                if not ours <= 1.25 * theirs + 1e-6:
                    failed.append(
                        f"{name} B{batch} T{tokens} H{heads} {what}: {ours:.3e}, flash {theirs:.3e}"
                    )
                if ours / max(theirs, 1e-9) > worst.get(what, (0, 0, 0))[0] and tokens > 1:
                    worst[what] = (ours / theirs, ours, theirs)
            worst["lse"] = (0, max(lse_error, worst.get("lse", (0, 0, 0))[1]), 0)
        print(f"check {name}: " + "  ".join(f"{w} {o:.2e} (flash {t:.2e})" for w, (_, o, t) in worst.items()))
    return failed


def repeat(kernels, times):
    """Byte equality of `times` runs, the second half under load on another stream."""
    import torch

    failed = []
    for name, kernel in kernels.items():
        for batch, tokens, heads in ((4, 1024, 25), (3, 777, 7)):
            qkv, dout = inputs(batch, tokens, heads, kernel.hs, 7)
            first = [x.clone() for x in run(kernel, qkv, dout)]
            noise, busy = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda")
            differing = torch.zeros((), dtype=torch.int64, device="cuda")
            torch.cuda.synchronize()
            for i in range(times):
                if i >= times // 2:
                    with torch.cuda.stream(noise):
                        rows = 128 * (1 + i * 7 % 31)
                        busy[:rows, :1024] @ busy[:1024, : 64 * (1 + i * 5 % 13)]
                for a, b in zip(first, run(kernel, qkv, dout)):
                    kind = torch.int16 if a.dtype == torch.bfloat16 else torch.int32
                    differing += (a.view(kind) != b.view(kind)).sum()
            count = differing.item()
            print(f"repeat {name} B{batch} T{tokens} H{heads}: {times} runs, {count} differing elements")
            if count:
                failed.append(f"{name} B{batch} T{tokens} H{heads}: {count} differing elements")
    return failed


def time(kernels, shapes, peers):
    """Medians; the floor is the causal half of 4 (forward) and 10 (backward) T^2 HS FLOPs a head at 989
    TFLOP/s."""
    import torch

    table = []
    for batch, tokens, heads, hs in shapes:
        qkv, dout = inputs(batch, tokens, heads, hs, 3)
        flops = batch * heads * tokens * tokens * hs * 2
        where = f"B{batch} H{heads} T{tokens} HS{hs}"
        table.append((where, "floor", flops / 989e9, 2.5 * flops / 989e9, ""))
        for peer in peers:
            try:
                forward, backward = torch_attention(peer, qkv, dout)
                out = forward()
                table.append(
                    (where, f"PyTorch {peer}", median_ms(forward), median_ms(lambda: backward(out)), "")
                )
            except RuntimeError as e:
                table.append((where, f"PyTorch {peer}", math.nan, math.nan, str(e)[:60]))
        for name, kernel in kernels.items():
            if kernel.hs != hs:
                continue
            b = buffers(kernel, batch, tokens, heads)
            forward = median_ms(lambda: kernel.forward(b["out"], b["lse"], qkv))
            args = (b["dqkv"], b["scratch"], dout, qkv, b["out"], b["lse"])
            parts = " ".join(
                f"{part} {median_ms(lambda: kernel.backward(*args, only=part)):.3f}"
                for part in ("query", "key")
            )
            table.append((where, name, forward, median_ms(lambda: kernel.backward(*args)), parts))
    print(f"{'shape':24}{'version':18}{'forward ms':>11}{'backward ms':>12}  {torch.cuda.get_device_name()}")
    for where, name, forward, backward, note in table:
        print(f"{where:24}{name:18}{forward:11.3f}{backward:12.3f}  {note}")


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verbs", nargs="+", choices=["compile", "check", "repeat", "time"])
    parser.add_argument("--kernels", type=pathlib.Path, default=here.parent.parent / "kernels")
    parser.add_argument("--cubins", type=pathlib.Path, help="folder of compiled kernels, read and filled")
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--times", type=int, default=200, help="runs of `repeat`")
    parser.add_argument("--versions", default="mma,hopper", help="of mma, hopper")
    parser.add_argument("--head-sizes", type=int, nargs="+", default=HEAD_SIZES)
    options = parser.parse_args()

    if options.verbs != ["compile"]:
        import torch

        torch.zeros(1, device="cuda")  # makes the context that the driver calls below use

    def compile(file, defines):
        cubin = compile_cubin(options.kernels, file, options.arch, defines, options.cubins)
        return None if options.verbs == ["compile"] else cubin

    kernels = {}
    if "mma" in options.versions:
        kernels |= {f"mma HS{hs}": Portable(compile, hs) for hs in options.head_sizes}
    if "hopper" in options.versions:
        kernels |= {
            f"wgmma HS{hs}": Hopper(compile, hs) for hs in HOPPER_HEAD_SIZES if hs in options.head_sizes
        }
    if options.verbs == ["compile"]:
        return
    failed = []
    if "check" in options.verbs:
        failed += check(kernels)
        for line in failed[:20]:
            print("FAILED", line)
    if "repeat" in options.verbs:
        failed += repeat(kernels, options.times)
    if "time" in options.verbs:
        shapes = [
            (16, 1024, 25, 64),
            (64, 1024, 12, 64),
            (8, 2048, 24, 80),
            (8, 2048, 16, 96),
            (8, 2048, 16, 128),
        ]
        time(kernels, [s for s in shapes if any(k.hs == s[3] for k in kernels.values())], ["flash", "cudnn"])
    print(f"{len(failed)} failures")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
