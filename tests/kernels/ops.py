"""One function an operation, returning its launches: geometry and argument structs as the program's bindings
have them."""

import struct

import torch

from device import Module

FILES = [
    "embedding",
    "layernorm",
    "gelu",
    "activate",
    "reduce",
    "classifier",
    "adamw",
    "elementwise",
    "digest",
]
F32 = torch.float32


def ceil(a, b):
    return -(-a // b)


def run(launches):
    for launch in launches:
        launch()


def table(rows, layout):
    """A descriptor table on the device. Keeps the tensors it points to alive."""
    packed = b"".join(
        struct.pack("<" + layout, *[f.data_ptr() if isinstance(f, torch.Tensor) else (f or 0) for f in row])
        for row in rows
    )
    out = torch.frombuffer(bytearray(packed), dtype=torch.uint8).cuda()
    out.keep = rows
    return out


class Ops:
    def __init__(self, act):
        self.dtype = torch.bfloat16 if act == "ACT_BF16" else F32
        self.modules = {name: Module(name, act) for name in FILES}

    def scratch(self, *shape, dtype=F32):
        """Poisoned with NaN: nothing may read what was not written."""
        out = torch.empty(shape, dtype=dtype, device="cuda")
        return out.fill_(float("nan")) if dtype.is_floating_point else out.random_(1 << 30)

    def embedding(self, out, ids, wte, wpe, seq):
        n, c = out.shape
        return [
            self.modules["embedding"].launch(
                "embedding_forward", ceil(n * c // 8, 256), 256, "QQQQQII", out, ids, wte, wpe, n, seq, c
            )
        ]

    def embedding_backward(self, dwte, dwpe, add, dout, ids, batch, seq):
        m = self.modules["embedding"]
        n, c = dout.shape
        tiles, pieces, slices = ceil(n, 1024), ceil(n, 32), ceil(c // 8, 128)
        a, b = (self.scratch(n, dtype=torch.int32) for _ in range(2))
        counts = self.scratch(tiles * 256, dtype=torch.int32)
        partials = self.scratch(2, pieces, c)
        launches = []
        for shift, source, target in [(0, None, a), (8, a, b)]:
            for kernel in ["sort_count", "sort_scatter"]:
                launches.append(m.launch(kernel, tiles, 256, "QQQQII", ids, source, target, counts, n, shift))
        for kernel in ["embedding_backward_tokens", "embedding_backward_crossing"]:
            launches.append(
                m.launch(kernel, (pieces, slices), 128, "QQQQQII", dwte, partials, dout, ids, b, n, c)
            )
        rows = seq if add else dwpe.shape[0]
        launches.append(
            m.launch(
                "embedding_backward_positions", (rows, slices), 128, "QQIIII", dwpe, dout, batch, seq, c, add
            )
        )
        return launches

    def layernorm(self, out, mean, rstd, x, weight, bias, branch=None, residual=None):
        """RMSNorm where mean is None."""
        n, c = x.shape
        warps = next(w for w in (1, 2, 4, 8) if c <= 2048 * w)
        kernel = ("rmsnorm" if mean is None else "layernorm") + "_forward"
        kernel = ("" if branch is None else "residual_") + kernel + ("_unbiased" if bias is None else "")
        return [
            self.modules["layernorm"].launch(
                kernel,
                ceil(n, 8 // warps),
                256,
                "QQQQQQQQQII",
                out,
                residual,
                mean,
                rstd,
                x,
                branch,
                weight,
                bias,
                n,
                c,
                warps,
            )
        ]

    def layernorm_backward(self, dx, dx_add, dweight, dbias, add, dout, x, weight, mean, rstd, wide=None):
        n, c = x.shape
        rows = max(4, ceil(ceil(n, 512), 4) * 4)
        blocks = ceil(n, rows)
        vectors = 1 if dbias is None else 2
        partials = self.scratch(blocks, vectors, c)
        wide = c > 4096 if wide is None else wide
        kernel = ("rmsnorm" if mean is None else "layernorm") + "_backward"
        kernel += ("_wide" if wide else "") + ("_unbiased" if dbias is None else "")
        block = 512 if wide else ceil(c // 8, 32) * 32
        first = self.modules["layernorm"].launch(
            kernel,
            blocks,
            block,
            "QQQQQQQQQQIIII",
            dx,
            None,
            None,
            partials,
            dout,
            x,
            weight,
            mean,
            rstd,
            n,
            c,
            rows,
            dx_add,
            0,
        )
        return [first, *self.reduce(dweight, dbias, partials, blocks, vectors * c, c, add)]

    def reduce(self, out0, out1, partials, count, width, split, add):
        return [
            self.modules["reduce"].launch(
                "reduce_partials",
                ceil(width, 32),
                1024,
                "QQQQQQII",
                out0,
                out1,
                partials,
                count,
                width,
                split,
                add,
                0,
            )
        ]

    def column_sum(self, out, add, dout, partials=None):
        n, width = dout.shape
        blocks = ceil(n, 128)
        partials = self.scratch(blocks, width) if partials is None else partials
        first = self.modules["reduce"].launch(
            "column_sum", (ceil(width, 256), blocks), 256, "QQQQ", partials, dout, n, width
        )
        return [first, *self.reduce(out, None, partials, blocks, width, width, add)]

    def gelu(self, out, pre):
        n = pre.numel()
        return [self.modules["gelu"].launch("gelu_forward", ceil(n, 4096), 256, "QQQ", out, pre, n)]

    def activate(self, name, out, pre):
        """`name` is squared_relu or swiglu; `pre` of the latter is pairs of gate and up."""
        blocks = ceil(pre.numel(), 4096)
        module = self.modules["activate"]
        return [module.launch(f"{name}_forward", blocks, 256, "QQQ", out, pre, out.numel())]

    def activate_backward(self, name, dpre, dout, pre):
        blocks = ceil(pre.numel(), 4096)
        module = self.modules["activate"]
        return [module.launch(f"{name}_backward", blocks, 256, "QQQQ", dpre, dout, pre, dout.numel())]

    def gelu_backward(self, dpre, dout, pre, dbias=None, add=0):
        n, width = pre.shape
        blocks = ceil(n, 128)
        partials = None if dbias is None else self.scratch(blocks, width)
        launches = [
            self.modules["gelu"].launch(
                "gelu_backward",
                (ceil(width, 256), blocks),
                256,
                "QQQQQQ",
                dpre,
                partials,
                dout,
                pre,
                n,
                width,
            )
        ]
        return (
            launches
            if dbias is None
            else launches + self.reduce(dbias, None, partials, blocks, width, width, add)
        )

    def classifier(
        self, logits, losses, targets, used, scale=1.0, gradient=True, cached=True, cap=0.0, z_loss=0.0
    ):
        """`cap` of 0: no soft-cap."""
        n, padded = logits.shape
        cached = cached and gradient and padded * logits.element_size() <= 227 * 1024 - 1024
        shared = padded * logits.element_size() if cached else 0
        kernel = "classifier_gradient" if gradient else "classifier_loss"
        kernel += "_capped" if cap else "_z" if gradient and z_loss else ""
        fields = logits, losses, self.scratch(n, 2), targets, padded, used, scale, cached, cap, z_loss
        return [self.modules["classifier"].launch(kernel, n, 512, "QQQQQQfIff", *fields, shared=shared)]

    def adamw(self, tensors, hyper, key, step):
        """tensors: (param, master or None, grad, m, v, weight_decay, id). hyper: lr, betas, epsilon,
        corrections, grad_scale."""
        rows, first = [], 0
        for param, master, grad, m, v, decay, number in tensors:
            rows.append((param, master, grad, m, v, param.numel(), 0, first, decay, number))
            first += ceil(param.numel(), 16384)
        return [
            self.modules["adamw"].launch(
                "adamw", first, 256, "QQI7fII", table(rows, "QQQQQQQQfI"), step, len(rows), *hyper, *key
            )
        ]

    def sum_squares(self, sums, tensors):
        rows, first = [], 0
        for t in tensors:
            rows.append((t, t.numel(), first))
            first += ceil(t.numel(), 16384)
        arguments = (
            "QQQQII",
            table(rows, "QQQ"),
            self.scratch(first, dtype=torch.float64),
            sums,
            first,
            len(rows),
            0,
        )
        m = self.modules["adamw"]
        return [
            m.launch("sum_squares_partial", first, 256, *arguments),
            m.launch("sum_squares_reduce", len(rows), 256, *arguments),
        ]

    def elementwise(self, kernel, dst, src):
        n = dst.numel()
        return [self.modules["elementwise"].launch(kernel, ceil(n, 4096), 256, "QQQ", dst, src, n)]

    def digest(self, tensors, leaf_state, node_state):
        """tensors of uint8. Returns the launches and the (count, 32) bytes of the roots."""
        m = self.modules["digest"]
        counts = [ceil(t.numel(), 4096) for t in tensors]
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        rows = [(t, t.numel(), f) for t, f in zip(tensors, firsts)]
        level = self.scratch(sum(counts) * 8, dtype=torch.int32)
        launches = [
            m.launch(
                "digest_leaves",
                ceil(sum(counts), 128),
                128,
                "QQQI8II",
                table(rows, "QQQ"),
                level,
                sum(counts),
                len(rows),
                *leaf_state,
                0,
            )
        ]
        while True:
            groups = [ceil(c, 512) for c in counts]
            last = max(groups) == 1
            target = self.scratch(sum(groups) * 8, dtype=torch.int32)
            runs = table([(sum(counts[:i]), counts[i], sum(groups[:i])) for i in range(len(counts))], "QQQ")
            launches.append(
                m.launch(
                    "digest_nodes",
                    sum(groups),
                    256,
                    "QQQI8II",
                    runs,
                    level,
                    target,
                    len(counts),
                    *node_state,
                    last,
                )
            )
            level, counts = target, groups
            if last:
                return launches, level.view(torch.uint8).view(-1, 32)
