"""Functions that kernels are checked with: those of an MLP and norms in fp64, and Philox."""

import math

import numpy as np
import torch

from comparison import F64


def gelu64(x):
    x = x.to(F64)
    k = math.sqrt(2 / math.pi)
    tanh = torch.tanh(k * (x + 0.044715 * x**3))
    # 1 + tanh loses everything in the left tail: written with the sigmoid there.
    gate = torch.sigmoid(2 * k * (x + 0.044715 * x**3))
    return x * gate, gate + 0.5 * x * (1 - tanh) * 2 * gate * k * (1 + 3 * 0.044715 * x**2)


def squared_relu64(x):
    x = x.to(F64).clamp(min=0)
    return x * x, 2 * x


def swiglu64(pre, dout):
    gate, up, dout = pre[0::2].to(F64), pre[1::2].to(F64), dout.to(F64)
    s = torch.sigmoid(gate)
    dgate = dout * up * (s + gate * s * torch.sigmoid(-gate))
    return gate * s * up, torch.stack([dgate, dout * gate * s], dim=1).flatten()


def norm_reference(x, weight, bias, rms=False):
    x = x.to(F64)
    mean = x.mean(1) * (not rms)
    rstd = ((x - mean[:, None]).square().mean(1) + 1e-5).rsqrt()
    return mean, rstd, (x - mean[:, None]) * rstd[:, None] * weight.to(F64) + bias.to(F64)


def philox(key, c):
    """Philox4x32-10 over arrays of counters c: (4, n) uint64 holding 32-bit words."""
    k = [np.uint64(key[0]), np.uint64(key[1])]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> np.uint64(32)) ^ c[1] ^ k[0], b & low, (a >> np.uint64(32)) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return c
