"""Parquet files with images as bytes or paths, read a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from softrepa_pipeline.ingestion.sources.base import (
    CAPTION_KEYS,
    RawSample,
    Shard,
    inside,
    key_of,
    row_sample,
    stamp,
)

DESCRIPTION = (
    "a .parquet file or a folder of *.parquet with the columns `image` (bytes, a {bytes, path} struct or a relative "
    "path) and `captions`, `caption` or `text`"
)
_BATCH_ROWS = 16
_SHARD_ROWS = 256
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class ParquetShard:
    """Row groups of a file."""

    key: str
    file: Path
    columns: tuple[str, ...]
    groups: tuple[int, ...]
    first_row: int

    def samples(self, max_bytes: int) -> Iterator[RawSample]:
        row = self.first_row
        try:
            # With the default read-ahead Arrow keeps every row group that it has read until the file is closed.
            with pq.ParquetFile(self.file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as table:
                for batch in table.iter_batches(_BATCH_ROWS, self.groups, self.columns):
                    for record in batch.to_pylist():
                        yield row_sample(f"{self.file.name}:{row}", self.file.parent, record)
                        row += 1
        except (pa.ArrowException, OSError):
            yield RawSample(f"{self.file.name}:{row}", b"", (), "damaged Parquet file from this row on")


def find(source: str) -> list[Shard] | None:
    path = Path(source)
    files = sorted(path.glob("[!.]*.parquet")) if path.is_dir() else [path]
    if not files or any(file.suffix != ".parquet" for file in files):
        return None
    return [shard for file in files for shard in _shards(file)]


def _shards(file: Path) -> list[Shard]:
    try:
        with pq.ParquetFile(file) as table:
            columns = _columns(file, table.schema_arrow)
            return list(_row_groups(file, table, columns))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable Parquet file: {error}") from error


def _columns(file: Path, schema: pa.Schema) -> tuple[str, ...]:
    captions = [key for key in CAPTION_KEYS if key in schema.names]
    if "image" not in schema.names or not captions:
        raise ValueError(f"{file} has the columns {', '.join(schema.names)}; accepted is {DESCRIPTION}")
    return ("image", *captions)


def _row_groups(file: Path, table: pq.ParquetFile, columns: tuple[str, ...]) -> Iterator[Shard]:
    """Consecutive row groups, at least 256 rows of them together."""
    groups: list[int] = []
    first = row = 0
    for group in range(table.num_row_groups):
        groups.append(group)
        row += table.metadata.row_group(group).num_rows
        if row - first >= _SHARD_ROWS or group == table.num_row_groups - 1:
            key = key_of(file.name, stamp(file), groups, *_stamps_of_paths(file, table, groups))
            yield ParquetShard(key, file, columns, tuple(groups), first)
            groups, first = [], row


def _stamps_of_paths(file: Path, table: pq.ParquetFile, groups: list[int]) -> Iterator[str]:
    """The state of the image files that rows name, where they do."""
    kind = table.schema_arrow.field("image").type
    is_path = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not is_path and not _has_rows_without_bytes(table, groups):
        return
    for batch in table.iter_batches(1024, groups, ["image" if is_path else "image.path"]):
        column = batch.column(0) if is_path else batch.column(0).field("path")
        for target in column.to_pylist():
            name = inside(target) if target else None
            yield stamp(file.parent / name if name else None)


def _has_rows_without_bytes(table: pq.ParquetFile, groups: list[int]) -> bool:
    leaves = [table.schema.column(index).path for index in range(len(table.schema.names))]
    if "image.bytes" not in leaves:
        return "image.path" in leaves
    column = leaves.index("image.bytes")
    statistics = [table.metadata.row_group(group).column(column).statistics for group in groups]
    return any(found is None or not found.has_null_count or found.null_count for found in statistics)
