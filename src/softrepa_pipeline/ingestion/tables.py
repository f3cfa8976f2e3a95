"""The tables that ingestion writes (docs/data-format.md), and readers of the pairs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PAIRS_FILE = "pairs.parquet"
QUARANTINE_FILE = "quarantine.parquet"
DUPLICATES_FILE = "duplicates.parquet"
PARTS_FOLDER = "parts"
_SAMPLE = {
    "image_id": pa.string(),
    "captions": pa.list_(pa.string()),
    "width": pa.int32(),
    "height": pa.int32(),
    "bytes": pa.int64(),
    "source": pa.string(),
    "perceptual_hash": pa.uint64(),
}
PART_SCHEMA = pa.schema({**_SAMPLE, "image": pa.binary()})
PAIRS_SCHEMA = pa.schema({**_SAMPLE, "part": pa.string(), "row": pa.int32()})
QUARANTINE_SCHEMA = pa.schema({"file": pa.string(), "reason": pa.string(), "bytes": pa.int64()})
DUPLICATES_SCHEMA = pa.schema({"image_id": pa.string(), "duplicate_of": pa.string(), "distance": pa.int8()})
_BATCH_ROWS = 64
_GROUP_ROWS = 1024
_GROUP_BYTES = 32 << 20


@dataclass(frozen=True)
class Pair:
    """An image in its original encoding with its captions; `image_id` is 32 hex digits of the SHA-256 of the bytes.

    Where the data set has captions only, `image` is None and `image_id` the hash of the name that the source gives it.
    """

    image_id: str
    image: bytes | None
    captions: tuple[str, ...]


class TableWriter:
    """Rows into a file beside `path`, a row group at a time; `publish` gives it its name, else it is removed."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        # Its own name for each writer: two that write the same part at once each publish a whole one.
        self.partial = path.with_name(f"{path.name}.{uuid4().hex[:8]}.partial")
        self._rows: list[Mapping[str, Any]] = []
        self._num_bytes = 0
        # A dictionary of images would hold a second copy of them and find nothing twice; they are compressed already.
        compression = {name: "none" if name == "image" else "snappy" for name in schema.names}
        self._writer = pq.ParquetWriter(self.partial, schema, use_dictionary=False, compression=compression)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self.partial.unlink(missing_ok=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row with the schema's columns."""
        self._rows.append(row)
        self._num_bytes += len(row.get("image") or b"")
        if len(self._rows) >= _GROUP_ROWS or self._num_bytes >= _GROUP_BYTES:
            self._flush()

    def describe(self, **facts: object) -> None:
        """Write facts into the file's own metadata, as JSON."""
        self._writer.add_key_value_metadata({key: json.dumps(value) for key, value in facts.items()})

    def publish(self) -> None:
        """Complete the file and put it in the place of an older one in one step."""
        self.close()
        os.replace(self.partial, self.path)

    def close(self) -> None:
        """Complete the file under its temporary name."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._writer.schema))
        self._rows, self._num_bytes = [], 0


def iter_pairs(folder: Path) -> Iterator[Pair]:
    """Stream the pairs of an ingested folder in file order."""
    rows = iter_rows(folder / PAIRS_FILE, ("image_id", "captions", "part", "row"))
    for part, group in groupby(rows, key=lambda row: row["part"]):
        images = enumerate(iter_rows(folder / PARTS_FOLDER / part, ("image",)))
        for row in group:
            image = next(record["image"] for number, record in images if number == row["row"])
            yield Pair(row["image_id"], image, tuple(row["captions"]))


def iter_rows(file: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Stream the rows of a Parquet file, all columns unless some are named."""
    # With the default read-ahead Arrow keeps every row group that it has read until the file is closed.
    with pq.ParquetFile(file, pre_buffer=False) as table:
        for batch in table.iter_batches(_BATCH_ROWS, columns=columns):
            yield from batch.to_pylist()


def content_digest(file: Path) -> str:
    """The SHA-256 of a pairs table's content, whatever the order of its rows."""
    lines = np.empty(pq.read_metadata(file).num_rows, "S98")
    for index, row in enumerate(iter_rows(file, ("image_id", "captions"))):
        captions = hashlib.sha256(json.dumps(row["captions"]).encode()).hexdigest()
        lines[index] = f"{row['image_id']} {captions}\n".encode()
    lines.sort()
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()
