"""Readers of captioned images: Parquet, `metadata.jsonl` and `.txt` sidecars, one sample at a time in a fixed order."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
CAPTION_KEYS = ("captions", "caption", "text")
FILE_KEYS = ("file_name", "file")
ACCEPTED = (
    "accepted are: a .parquet file or a folder of *.parquet with the columns `image` (bytes, a {bytes, path} struct or "
    "a relative path) and `captions`, `caption` or `text`; a folder of images with metadata.jsonl (keys `file_name` "
    "and `captions`, `caption` or `text`); a folder of images with a .txt file beside each, one caption a line"
)
_METADATA = "metadata.jsonl"
_BATCH_ROWS = 16
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class RawSample:
    """An unchecked sample: encoded image bytes, or where they are, and its captions.

    `problem` is empty, or says why the source itself refuses the sample.
    """

    name: str
    image: bytes | Path
    captions: tuple[str, ...]
    problem: str = ""


def open_source(path: Path) -> Iterator[RawSample]:
    """Stream the samples of a file or folder, images in sorted order, no more than a few of them in memory.

    Files and folders whose name starts with a dot are skipped. The layout is checked at the call, before the first
    sample; faults of single samples are left to the caller.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: what is there is in none of the accepted formats.
    """
    if not path.exists():
        raise FileNotFoundError(f"no data at {path}; set `datasets.<name>.path` or pass --params dataset=FOLDER")
    files = sorted(path.glob("[!.]*.parquet")) if path.is_dir() else [path]
    if files and all(file.suffix == ".parquet" for file in files):
        return _parquet_samples([(file, _parquet_columns(file)) for file in files])
    if path.is_dir():
        visible = [file for file in sorted(path.rglob("*")) if _is_visible(file.relative_to(path))]
        metadata = [file for file in visible if file.name == _METADATA]
        # Not `is_file`: a broken link is a sample that is lost, so it has to be reported.
        images = [file for file in visible if file.suffix.lower() in IMAGE_SUFFIXES and not file.is_dir()]
        if metadata or any(image.with_suffix(".txt").is_file() for image in images):
            return _folder_samples(path, metadata, images)
    raise ValueError(f"no captioned images at {path}; {ACCEPTED}")


def _is_visible(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def _folder_samples(root: Path, metadata: list[Path], images: list[Path]) -> Iterator[RawSample]:
    listed = set()
    for file in metadata:
        for sample in _metadata_samples(root, file):
            listed.add(sample.image)
            yield sample
    for image in images:
        if image not in listed:
            yield _sidecar_sample(image.relative_to(root).as_posix(), image)


def _metadata_samples(root: Path, file: Path) -> Iterator[RawSample]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _metadata_sample(root, file, number, line)


def _metadata_sample(root: Path, file: Path, number: int, line: bytes) -> RawSample:
    place = f"{file.relative_to(root).as_posix()}:{number}"
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return RawSample(place, b"", (), "metadata line is not JSON in UTF-8")
    target = next((record[key] for key in FILE_KEYS if key in record), None) if isinstance(record, dict) else None
    if not isinstance(target, str):
        return RawSample(place, b"", (), "metadata line without file_name")
    image = _inside(file.parent, target)
    if image is None:
        return RawSample(target, b"", (), "path leaves the folder")
    return _sample(image.relative_to(root).as_posix(), image, record)


def _sidecar_sample(name: str, image: Path) -> RawSample:
    sidecar = image.with_suffix(".txt")
    if not sidecar.is_file():
        return RawSample(name, image, ())
    try:
        lines = sidecar.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        return RawSample(name, image, (), "captions are not UTF-8")
    except OSError:
        return RawSample(name, image, (), "captions cannot be read")
    return RawSample(name, image, tuple(line for line in lines if line.strip()))


def _parquet_columns(file: Path) -> list[str]:
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is not a readable Parquet file: {error}") from error
    captions = [key for key in CAPTION_KEYS if key in schema.names]
    if "image" not in schema.names or not captions:
        raise ValueError(f"{file} has the columns {', '.join(schema.names)}; {ACCEPTED}")
    return ["image", *captions]


def _parquet_samples(files: list[tuple[Path, list[str]]]) -> Iterator[RawSample]:
    for file, columns in files:
        row = 0
        # With the default read-ahead Arrow keeps every row group that it has read until the file is closed.
        with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as table:
            for batch in table.iter_batches(_BATCH_ROWS, columns=columns):
                for record in batch.to_pylist():
                    yield _parquet_sample(f"{file.name}:{row}", file.parent, record)
                    row += 1


def _parquet_sample(name: str, folder: Path, record: Mapping[str, Any]) -> RawSample:
    image = record["image"]
    if isinstance(image, dict):
        data = image.get("bytes")
        image = image.get("path") if data is None else data
    if isinstance(image, str):
        image = _inside(folder, image)
        if image is None:
            return RawSample(name, b"", (), "path leaves the folder")
    if not isinstance(image, (bytes, Path)):
        return RawSample(name, b"", (), "no image")
    return _sample(name, image, record)


def _sample(name: str, image: bytes | Path, record: Mapping[str, Any]) -> RawSample:
    """Take the captions of a record from the first caption key that has a value; null in a list is an empty caption."""
    value: Any = next((record[key] for key in CAPTION_KEYS if record.get(key) is not None), [])
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(text is None or isinstance(text, str) for text in captions):
        return RawSample(name, image, (), "captions are not text")
    return RawSample(name, image, tuple(text or "" for text in captions))


def _inside(folder: Path, target: str) -> Path | None:
    # By name only: Hugging Face's cache holds its files as links out of the folder, and these are to be followed.
    relative = Path(os.path.normpath(target))
    leaves = relative.is_absolute() or os.pardir in relative.parts or "\0" in target
    return None if leaves else folder / relative
