#!/usr/bin/env python3
"""Writes the Parquet files of this folder, always the same bytes (pyarrow 26.0.1).

    pip install pyarrow==26.0.1
    python tests/cases/make.py

Each holds three short texts, or what is said beside it. `tests/integration/data.rs` and
`src/data/prepare/tests.rs` read them.
"""
import pathlib

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

# Page checksums, in both versions of pages; in the first file one letter was changed after they were computed.
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
