"""Compiles the kernels for every architecture that the released program carries, into one file.

    pip install --require-hashes -r release/requirements.txt
    python3 release/kernels.py target/kernels.pack
    KERNEL_PACK=target/kernels.pack cargo build --release

Needs no GPU. The file is a function of `kernels/` and of the compiler, which `requirements.txt` pins: the
same bytes on every machine. `build.rs` compresses it into the program, `src/ops/cuda/embedded.rs` reads it.

Layout: the line `runner/cubins/v1`, a line with the compiler's version and the architectures, the number of
entries (u32, little-endian), of each its key (32 bytes) and length (u64), then the machine code in that
order.
"""

import hashlib
import re
import struct
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/kernels"))

from compile_all import variants  # noqa: E402
from nvrtc import ARCHITECTURES, KERNELS, Nvrtc, options  # noqa: E402

# In the order in which the program hashes them.
HEADERS = re.findall(r'header!\("([^"]+)"\)', (ROOT / "src/ops/cuda/sources.rs").read_text())


def key(name, arguments, version):
    """What names a cubin: source and headers, options, compiler, as `src/ops/cuda/compile.rs` has it."""
    source = hashlib.sha256(b"runner/kernel-source/v1")
    for part in [name, *HEADERS]:
        text = (KERNELS / part).read_bytes()
        source.update(struct.pack("<Q", len(part)) + part.encode() + struct.pack("<Q", len(text)) + text)
    whole = hashlib.sha256(b"runner/cubin/v1" + source.digest())
    whole.update("\n".join(arguments).encode() + f"\nnvrtc {version}".encode())
    return whole.digest()


def compile_one(variant):
    """Returns (key, code) of one way to compile a file."""
    name, architecture, define = variant
    nvrtc = Nvrtc()
    arguments = options(architecture, define)
    return key(name, arguments, nvrtc.version), nvrtc.compile(name, architecture, define)[0]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sources = sorted(path.name for path in KERNELS.glob("*.cu"))
    work = [(name, architecture, define) for name in sources for architecture, define in variants(name)]
    with ProcessPoolExecutor() as pool:
        entries = sorted(pool.map(compile_one, work))
    assert len({key for key, _ in entries}) == len(work), "two variants have one key"
    head = f"runner/cubins/v1\n{' '.join([Nvrtc().version, *ARCHITECTURES])}\n".encode()
    table = b"".join(key + struct.pack("<Q", len(code)) for key, code in entries)
    content = head + struct.pack("<I", len(entries)) + table + b"".join(code for _, code in entries)
    # A file that is right stays as it is, so that nothing is built again.
    path = Path(sys.argv[1])
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    print(f"{len(entries)} cubins, {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
