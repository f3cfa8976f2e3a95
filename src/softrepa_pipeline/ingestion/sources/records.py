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
class LinesShard:
    """Consecutive lines of a JSON-lines file, found again by where they begin and end."""

    key: str
    root: Path
    file: Path
    start: int
    end: int
    first_line: int

    def samples(self, max_bytes: int) -> Iterator[RawSample]:
        with self.file.open("rb") as lines:
            lines.seek(self.start)
            for number, line in enumerate(lines, start=self.first_line):
                if line.strip():
                    yield _line_sample(self.root, self.file, number, line)
                if lines.tell() >= self.end:
                    return


def find(source: str) -> list[Shard] | None:
    file = Path(source)
    if not file.is_file():
        return None
    if file.name.endswith(".jsonl.gz"):
        with gzip.open(file) as lines:
            numbered = enumerate(lines, start=1)
            return listed_shards(_line_sample(file.parent, file, number, line) for number, line in numbered)
    reader = READERS.get(file.suffix)
    return reader(file.parent, file, set()) if reader else None


def _jsonl_shards(root: Path, file: Path, listed: set[str]) -> list[Shard]:
    """Shards of a JSON-lines file; the names of its images are added to `listed`."""
    shards: list[Shard] = []
    for key, group in cut(_lines(root, file, listed)):
        start, _, first_line, _ = group[0]
        # The key knows line numbers only where a fault is reported by them: other lines may move within the file.
        numbers = [number for _, _, number, is_place in group if is_place]
        name = file.relative_to(root).as_posix()
        shards.append(LinesShard(key_of(name, numbers, key), root, file, start, group[-1][1], first_line))
    return shards


def _lines(root: Path, file: Path, listed: set[str]) -> Iterator[tuple[str, str, tuple[int, int, int, bool]]]:
    start = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            sample = _line_sample(root, file, number, line)
            listed.add(sample.name)
            fingerprint = f"{hashlib.sha256(line).hexdigest()} {stamp(sample.image)}"
            is_place = sample.name == _place(root, file, number)
            name = hashlib.sha256(line).hexdigest() if is_place else sample.name
            yield name, fingerprint, (start, start + len(line), number, is_place)
            start += len(line)


def _line_sample(root: Path, file: Path, number: int, line: bytes) -> RawSample:
    place = _place(root, file, number)
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return RawSample(place, b"", (), "metadata line is not JSON in UTF-8")
    return _record_sample(root, file, place, record)


def _record_sample(root: Path, file: Path, place: str, record: Any) -> RawSample:
    """The sample of a record; one with nothing but an `image_id` and captions has no image."""
    target = next((record[key] for key in FILE_KEYS if key in record), None) if isinstance(record, dict) else None
    # Any other key may be a misspelt `file_name`, whose image must not be lost without a word.
    if isinstance(record, dict) and "image_id" in record and record.keys() <= {"image_id", *CAPTION_KEYS}:
        return sample_of(str(record["image_id"]), None, record)
    if not isinstance(target, str):
        return RawSample(place, b"", (), "metadata line without file_name")
    image = inside(file.parent, target)
    if image is None:
        return RawSample(target, b"", (), "path leaves the folder")
    return sample_of(image.relative_to(root).as_posix(), image, record)


def _csv_shards(root: Path, file: Path, listed: set[str]) -> list[Shard]:
    samples = list(_csv_samples(root, file))
    listed.update(sample.name for sample in samples)
    return listed_shards(samples)


def _csv_samples(root: Path, file: Path) -> Iterator[RawSample]:
    # Bytes that are not UTF-8 become lone surrogates, so that they cost one sample and not the file.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.DictReader(lines)
        names = rows.fieldnames or []
        if not any(key in names for key in CAPTION_KEYS):
            raise ValueError(f"{file} has the columns {', '.join(names)}; one of {', '.join(CAPTION_KEYS)} is needed")
        while True:
            place = _place(root, file, rows.line_num + 1)
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:
                yield RawSample(place, b"", (), "metadata line is not CSV")
                continue
            sample = _record_sample(root, file, place, row)
            if any("\udc80" <= char <= "\udcff" for text in sample.captions for char in text):
                sample = RawSample(sample.name, sample.image, (), "captions are not UTF-8")
            yield sample


def _place(root: Path, file: Path, number: int) -> str:
    return f"{file.relative_to(root).as_posix()}:{number}"


READERS = {".jsonl": _jsonl_shards, ".csv": _csv_shards}
