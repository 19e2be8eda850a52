#!/usr/bin/env python3
"""Writes the texts, Parquet files and token shards of this folder, always the same bytes (pyarrow 26.0.1).

    pip install numpy pyarrow==26.0.1
    python tests/cases/make.py

Each text holds three short documents, or what is said beside it. `tests/integration/cases.rs` says what the
program must make of each.
"""

import gzip
import json
import pathlib
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent
PAGES = [
    "A kettle boils sooner with its lid on, because less steam gets away.",
    "The ferry leaves at noon. It carries forty cars, and bicycles go free.",
    "Rye is sown in autumn; it stands under the snow and is cut in July.",
]
PLAIN = pa.table({"text": pa.array(PAGES)})


def write(name, table, **options):
    pq.write_table(table, HERE / name, **{"compression": "none", **options})


write("plain.parquet", PLAIN)

# An Arrow dictionary column, which pandas writes for a Categorical: four rows, three values.
words = pa.array([PAGES[0], PAGES[1], PAGES[0], PAGES[2]]).dictionary_encode()
write("dictionary.parquet", pa.table({"text": words}))

# Page checksums, in both versions of pages; in the first file one letter was changed after they were
# computed.
sums = dict(use_dictionary=False, write_statistics=False, write_page_checksum=True)
write("crc.parquet", PLAIN, **sums)
raw = bytearray((HERE / "crc.parquet").read_bytes())
raw[raw.index(b"kettle")] ^= 1
(HERE / "crc.parquet").write_bytes(raw)
write("checked_v2.parquet", PLAIN, write_page_checksum=True, data_page_version="2.0", compression="zstd")

write("empty_part.parquet", PLAIN.slice(0, 0))

# Texts in `page.body.text`, beside a list of texts; the second file's last page has none.
page = pa.struct([("url", pa.string()), ("body", pa.struct([("text", pa.string())]))])


def nested(bodies):
    rows = [{"url": "x", "body": body} for body in bodies]
    return pa.table({"page": pa.array(rows, page), "tags": pa.array([["a", "b"]] * len(rows))})


write("nested.parquet", nested([{"text": text} for text in PAGES]), row_group_size=2)
write("nested_null.parquet", nested([{"text": PAGES[0]}, {"text": PAGES[1]}, None]))

# JSON lines under their own and other names, compressed, and what only looks like them.
RECORDS = [{"text": page} for page in PAGES]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
for name in ["pages.jsonl", "pages.json"]:
    (HERE / name).write_text(LINES)
for name in ["pages.gz", "pages.jsonl.gz"]:
    (HERE / name).write_bytes(gzip.compress(LINES.encode(), mtime=0))
(HERE / "pages_array.json").write_text(json.dumps(RECORDS, indent=1) + "\n")
(HERE / "pages.csv").write_text("id,text\n" + "".join(f'{i},"{page}"\n' for i, page in enumerate(PAGES)))
(HERE / "pages.html").write_text(
    "<!DOCTYPE html>\n<html><head><title>Pages</title></head><body>\n"
    + "".join(f"<p>{page}</p>\n" for page in PAGES)
    + "</body></html>\n"
)

# Token shards in llm.c's format, a token a byte. The first has fewer tokens than one sequence of 64 needs.
letters = np.random.Generator(np.random.PCG64(12))
for name, count in [
    ("short_train_000000", 20),
    ("short_train_000001", 4000),
    ("short_val_000000", 1000),
    ("same_train_000000", 4000),
    ("same_val_000000", 1000),
]:
    header = struct.pack("<3i", 20240520, 1, count) + bytes(4 * 253)
    (HERE / f"{name}.bin").write_bytes(header + letters.integers(97, 123, count).astype("<u2").tobytes())
