#!/usr/bin/env bash
# Makes a release for x86-64 Linux with glibc 2.28 or newer into a folder (target/release-files by default):
#
#   runner-VERSION-TARGET.tar.gz   program, manual pages, completions, licence, list of crates
#   runner-VERSION-….whl           the same program for `pip install`
#   SHA256SUMS                     of both
#   provenance.json                how they were built: an in-toto statement with SLSA provenance v1, unsigned
#
# Needs a Rust toolchain, Python 3.11 or newer with venv, and access to crates and wheels; no GPU, no root.
# See docs/release.md.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$(realpath -m "${1:-target/release-files}")
target=x86_64-unknown-linux-gnu
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
name=runner-$version-$target
work=target/release-work
mkdir -p "$out" "$work"
rm -rf "$out"/runner-* "$out/SHA256SUMS" "$out/provenance.json" "$work/root"

wheels() {
    [ -x "$1/bin/python" ] || python3 -m venv "$1"
    "$1/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$2"
}
wheels "$work/nvrtc" release/requirements.txt
wheels "$work/tools" release/tools.txt

"$work/nvrtc/bin/python" release/kernels.py "$work/kernels.pack"

# One build: the program of the tarball is the one in the wheel. Paths of this machine stay out of it.
export KERNEL_PACK=$PWD/$work/kernels.pack CARGO_TARGET_DIR=$PWD/$work/target CARGO_INCREMENTAL=0
export CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$PWD=/runner"$'\x1f'"--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
PATH=$PWD/$work/tools/bin:$PATH "$work/tools/bin/maturin" build --release --locked --zig --features object-storage \
    --target "$target" --compatibility manylinux_2_28 --out "$out"

root=$work/root/$name
mkdir -p "$root/bin" "$root/share/man/man1" "$root/share/bash-completion/completions" \
    "$root/share/zsh/site-functions" "$root/share/fish/vendor_completions.d"
python3 - "$out" "$root/bin/runner" <<'PYTHON'
import pathlib, sys, zipfile
wheel = zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).glob("*.whl")))
program = next(name for name in wheel.namelist() if name.endswith(".data/scripts/runner"))
pathlib.Path(sys.argv[2]).write_bytes(wheel.read(program))
PYTHON
runner=$root/bin/runner
chmod 755 "$runner"
"$runner" man "$root/share/man/man1" > "$work/pages"
"$runner" completions bash > "$root/share/bash-completion/completions/runner"
"$runner" completions zsh > "$root/share/zsh/site-functions/_runner"
"$runner" completions fish > "$root/share/fish/vendor_completions.d/runner.fish"
cp LICENSE README.md CHANGELOG.md "$root"
python3 release/describe.py crates "$target" > "$root/crates.cdx.json"

tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go-w \
    -C "$work/root" -c "$name" | gzip -n -9 > "$out/$name.tar.gz"
(cd "$out" && sha256sum runner-* > SHA256SUMS)
python3 release/describe.py provenance "$target" "$out" "$KERNEL_PACK" > "$out/provenance.json"
python3 release/describe.py binstall "$target" "$out"
cat "$out/SHA256SUMS"
