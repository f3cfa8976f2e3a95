"""Records that name an image file and its captions, a line each: JSON lines and CSV."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softrepa_pipeline.ingestion.sources.base import (
    CAPTION_KEYS,
    FILE_KEYS,
    RawSample,
    Shard,
    cut,
    inside,
    key_of,
    listed_shards,
    sample_of,
    stamp,
)

DESCRIPTION = (
    "a .jsonl, .jsonl.gz or .csv file whose records name an image and its captions, or have captions only "
    "(keys `image_id` and `captions`, `caption` or `text`)"
)


@dataclass(frozen=True)
class RecordFile:
    """A file of records in a data set, by its name relative to the root, which reports use."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        return self.root / self.name

    def place(self, number: int) -> str:
        return f"{self.name}:{number}"

    def sample_of_line(self, number: int, line: bytes) -> RawSample:
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return RawSample(self.place(number), b"", (), "metadata line is not JSON in UTF-8")
        return self.sample_of(number, record)

    def sample_of(self, number: int, record: Any) -> RawSample:
        """The sample of a record; one with nothing but an `image_id` and captions has no image."""
        target = next((record[key] for key in FILE_KEYS if key in record), None) if isinstance(record, dict) else None
        # Any other key may be a misspelt `file_name`, whose image must not be lost without a word.
        if isinstance(record, dict) and "image_id" in record and record.keys() <= {"image_id", *CAPTION_KEYS}:
            return sample_of(str(record["image_id"]), None, record)
        if not isinstance(target, str):
            return RawSample(self.place(number), b"", (), "metadata line without file_name")
        beside = inside(target)
        if beside is None:
            return RawSample(target, b"", (), "path leaves the folder")
        folder = self.name.rpartition("/")[0]
        name = f"{folder}/{beside}" if folder else beside
        return sample_of(name, self.root / name, record)


@dataclass(frozen=True)
class LinesShard:
    """Consecutive lines of a JSON-lines file, found again by where they begin and end."""

    key: str
    file: RecordFile
    start: int
    end: int
    first_line: int

    def samples(self, max_bytes: int) -> Iterator[RawSample]:
        with self.file.path.open("rb") as lines:
            lines.seek(self.start)
            for number, line in enumerate(lines, start=self.first_line):
                if line.strip():
                    yield self.file.sample_of_line(number, line)
                if lines.tell() >= self.end:
                    return


def find(source: str) -> list[Shard] | None:
    path = Path(source)
    if not path.is_file():
        return None
    file = RecordFile(path.parent, path.name)
    if path.name.endswith(".jsonl.gz"):
        with gzip.open(path) as lines:
            return listed_shards(file.sample_of_line(number, line) for number, line in enumerate(lines, start=1))
    reader = READERS.get(path.suffix)
    return reader(file, set()) if reader else None


def _jsonl_shards(file: RecordFile, listed: set[str]) -> list[Shard]:
    """Shards of a JSON-lines file; the names of its images are added to `listed`."""
    shards: list[Shard] = []
    for key, group in cut(_lines(file, listed)):
        start, _, first_line, _ = group[0]
        # The key knows line numbers only where a fault is reported by them: other lines may move within the file.
        numbers = [number for _, _, number, is_place in group if is_place]
        shards.append(LinesShard(key_of(file.name, numbers, key), file, start, group[-1][1], first_line))
    return shards


def _lines(file: RecordFile, listed: set[str]) -> Iterator[tuple[str, str, tuple[int, int, int, bool]]]:
    start = 0
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            sample = file.sample_of_line(number, line)
            listed.add(sample.name)
            content = hashlib.sha256(line).hexdigest()
            is_place = sample.name == file.place(number)
            name = content if is_place else sample.name
            yield name, f"{content} {stamp(sample.image)}", (start, start + len(line), number, is_place)
            start += len(line)


def _csv_shards(file: RecordFile, listed: set[str]) -> list[Shard]:
    samples = list(_csv_samples(file))
    listed.update(sample.name for sample in samples)
    return listed_shards(samples)


def _csv_samples(file: RecordFile) -> Iterator[RawSample]:
    # Bytes that are not UTF-8 become lone surrogates, so that they cost one sample and not the file.
    with file.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.DictReader(lines)
        names = rows.fieldnames or []
        if not any(key in names for key in CAPTION_KEYS):
            needed = ", ".join(CAPTION_KEYS)
            raise ValueError(f"{file.path} has the columns {', '.join(names)}; one of {needed} is needed")
        while True:
            number = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:
                yield RawSample(file.place(number), b"", (), "metadata line is not CSV")
                continue
            sample = file.sample_of(number, row)
            if any("\udc80" <= char <= "\udcff" for text in sample.captions for char in text):
                sample = RawSample(sample.name, sample.image, (), "captions are not UTF-8")
            yield sample


READERS = {".jsonl": _jsonl_shards, ".csv": _csv_shards}
