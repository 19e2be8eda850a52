"""The functions between the layers of an MLP in fp64: values and slopes."""

import math

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
