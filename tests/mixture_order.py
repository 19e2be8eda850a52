#!/usr/bin/env python3
"""Which sequence stands at each position of a mixture, from docs/mixtures.md, with Python's own integers.

python3 tests/mixture_order.py SEED FROM COUNT NAME:SEQUENCES:WEIGHT …    # weights as the file has them
"""

import sys
from fractions import Fraction
from hashlib import sha256
from math import gcd, lcm

M = (0xD2511F53, 0xCD9E8D57)
W = (0x9E3779B9, 0xBB67AE85)


def philox(key, counter):
    k, c = list(key), list(counter)
    for _ in range(10):
        a, b = M[0] * c[0], M[1] * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + W[0]) & 0xFFFFFFFF, (k[1] + W[1]) & 0xFFFFFFFF]
    return c


def shuffled(seed, name, sequences, place):
    digest = sha256(b"runner/rng/v1" + seed.to_bytes(8, "little") + f"data order of {name}".encode()).digest()
    key = [int.from_bytes(digest[i : i + 4], "little") for i in (0, 4)]
    half = max(1, -(-(sequences - 1).bit_length() // 2))
    epoch, x = divmod(place, sequences)
    while True:
        left, right = x >> half, x % (1 << half)
        for r in range(8):
            word = philox(key, (right, r, epoch & 0xFFFFFFFF, epoch >> 32))[0]
            left, right = right, left ^ (word % (1 << half))
        x = left << half | right
        if x < sequences:
            return x


def whole(weights):
    ratios = [Fraction(weight) for weight in weights]
    scaled = [int(ratio * lcm(*(ratio.denominator for ratio in ratios))) for ratio in ratios]
    return [weight // gcd(*scaled) for weight in scaled]


def tree(weights):
    """A node is (weight, its first source, left, right); a leaf has no parts."""
    parts = [(weight, source, None, None) for source, weight in enumerate(weights)]
    while len(parts) > 1:
        parts.sort(key=lambda part: part[:2])
        left, right = sorted(parts[:2], key=lambda part: part[1])
        parts = parts[2:] + [(left[0] + right[0], left[1], left, right)]
    return parts[0]


def deal(node, position):
    """The source of a position, and its place there."""
    weight, source, left, right = node
    if left is None:
        return source, position
    lefts = lambda n: (2 * n * left[0] + weight) // (2 * weight)
    before = lefts(position)
    if lefts(position + 1) > before:
        return deal(left, before)
    return deal(right, position - before)


def main(seed, start, count, *sources):
    sources = sorted(source.split(":") for source in sources)
    root = tree(whole([weight for _, _, weight in sources]))
    first = [sum(int(s) for _, s, _ in sources[:at]) for at in range(len(sources))]
    for position in range(int(start), int(start) + int(count)):
        source, place = deal(root, position)
        name, sequences, _ = sources[source]
        print(first[source] + shuffled(int(seed), name, int(sequences), place))


if __name__ == "__main__":
    main(*sys.argv[1:])
