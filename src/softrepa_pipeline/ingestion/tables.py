"""The two tables that ingestion writes, `pairs.parquet` and `quarantine.parquet`, and readers of the first."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PAIRS_FILE = "pairs.parquet"
QUARANTINE_FILE = "quarantine.parquet"
PAIRS_SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "image": pa.binary(),
        "captions": pa.list_(pa.string()),
        "width": pa.int32(),
        "height": pa.int32(),
        "source": pa.string(),
    }
)
QUARANTINE_SCHEMA = pa.schema({"file": pa.string(), "reason": pa.string(), "bytes": pa.int64()})
_BATCH_ROWS = 64
_GROUP_ROWS = 1024
_GROUP_BYTES = 32 << 20


@dataclass(frozen=True)
class Pair:
    """An image in its original encoding with its captions; `image_id` is 32 hex digits of the SHA-256 of the bytes."""

    image_id: str
    image: bytes
    captions: tuple[str, ...]


class TableWriter:
    """Rows into `<path>.partial`, a row group at a time; `publish` gives the file its name, else it is removed."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self._rows: list[Mapping[str, Any]] = []
        self._num_bytes = 0
        # A dictionary of images would hold a second copy of them and find nothing twice.
        self._writer = pq.ParquetWriter(self.partial, schema, use_dictionary=False)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self.partial.unlink(missing_ok=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row with the schema's columns."""
        self._rows.append(row)
        self._num_bytes += len(row.get("image", b""))
        if len(self._rows) >= _GROUP_ROWS or self._num_bytes >= _GROUP_BYTES:
            self._flush()

    def publish(self) -> None:
        """Complete the file and put it in the place of an older one in one step."""
        self.close()
        os.replace(self.partial, self.path)

    def close(self) -> None:
        """Complete the file under its partial name."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._writer.schema))
        self._rows, self._num_bytes = [], 0


def iter_pairs(folder: Path) -> Iterator[Pair]:
    """Stream the pairs of an ingested folder in file order."""
    for row in iter_rows(folder / PAIRS_FILE, ("image_id", "image", "captions")):
        yield Pair(row["image_id"], row["image"], tuple(row["captions"]))


def iter_rows(file: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Stream the rows of a Parquet file, all columns unless some are named."""
    # With the default read-ahead Arrow keeps every row group that it has read until the file is closed.
    with pq.ParquetFile(file, pre_buffer=False) as table:
        for batch in table.iter_batches(_BATCH_ROWS, columns=columns):
            yield from batch.to_pylist()


def add_captions(file: Path, captions: Mapping[str, Sequence[str]]) -> None:
    """Append captions, by image id, to the rows of a pairs table; those that a row has already are not repeated."""
    with TableWriter(file, PAIRS_SCHEMA) as table:
        for row in iter_rows(file):
            united = dict.fromkeys([*row["captions"], *captions.get(row["image_id"], ())])
            table.add({**row, "captions": list(united)})
        table.publish()


def content_digest(file: Path) -> tuple[str, int]:
    """The SHA-256 of a pairs table's content, whatever the order of its rows, and its number of captions."""
    num_captions, lines = 0, []
    for row in iter_rows(file, ("image_id", "captions")):
        num_captions += len(row["captions"])
        captions = hashlib.sha256(json.dumps(row["captions"]).encode()).hexdigest()
        lines.append(f"{row['image_id']} {captions}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(), num_captions
