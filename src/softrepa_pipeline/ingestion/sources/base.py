"""What every format shares: samples as they are found, shards of them, and where a data set is cut into shards."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
CAPTION_KEYS = ("captions", "caption", "text")
FILE_KEYS = ("file_name", "file", "image")
MAX_TEXT_BYTES = 1 << 20
_MEAN_SAMPLES, _MAX_SAMPLES = 256, 1024

Item = TypeVar("Item")


@dataclass(frozen=True)
class RawSample:
    """An unchecked sample: encoded image bytes, or where they are, or None where the source has captions only.

    `problem` is empty, or says why the source itself refuses the sample, of which `num_bytes` were there unread.
    """

    name: str
    image: bytes | Path | None
    captions: tuple[str, ...]
    problem: str = ""
    num_bytes: int = 0


class Shard(Protocol):
    """A part of a data set that is read by itself; `key` changes with everything that `samples` reads."""

    @property
    def key(self) -> str: ...

    def samples(self, max_bytes: int) -> Iterator[RawSample]:
        """Stream the samples in a fixed order; what is larger than `max_bytes` need not be read."""
        ...


@dataclass(frozen=True)
class ListedShard:
    """Samples whose captions stand in a file that can only be read as a whole."""

    key: str
    listed: tuple[RawSample, ...]

    def samples(self, max_bytes: int) -> Iterator[RawSample]:
        yield from self.listed


class Format(Protocol):
    """A module of this package; each is an entry of `FORMATS`."""

    DESCRIPTION: str

    def find(self, source: str) -> list[Shard] | None:
        """The shards of a source, found without reading images; None where it is in another format."""
        ...


def cut(items: Iterable[tuple[str, str, Item]]) -> Iterator[tuple[str, list[Item]]]:
    """Group (name, fingerprint, item) into shards of about 256, each as (key of its names and fingerprints, items).

    A shard ends where the hash of a name says so, not by number: what is added or removed moves no other shard's ends.
    """
    digest, group = hashlib.sha256(), []
    for name, fingerprint, item in items:
        digest.update(f"{name}\0{fingerprint}\0".encode("utf-8", "surrogateescape"))
        group.append(item)
        is_end = zlib.crc32(name.encode("utf-8", "surrogateescape")) % _MEAN_SAMPLES == 0
        if is_end or len(group) == _MAX_SAMPLES:
            yield digest.hexdigest(), group
            digest, group = hashlib.sha256(), []
    if group:
        yield digest.hexdigest(), group


def listed_shards(samples: Iterable[RawSample]) -> list[Shard]:
    """Shards of samples that are known already; their images are files."""
    items = ((sample.name, f"{sample.captions}{sample.problem}{stamp(sample.image)}", sample) for sample in samples)
    return [ListedShard(key, tuple(group)) for key, group in cut(items)]


def stamp(file: Path | bytes | None) -> str:
    """Size and time of the last change, which stand for the content of a file that was seen before."""
    if not isinstance(file, Path):
        return ""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return "missing"
    return f"{status.st_size}:{status.st_mtime_ns}"


def key_of(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()


def sample_of(name: str, image: bytes | Path | None, record: Mapping[str, Any]) -> RawSample:
    """Take the captions of a record from the first caption key that has a value; null in a list is an empty caption."""
    value: Any = next((record[key] for key in CAPTION_KEYS if record.get(key) is not None), [])
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(text is None or isinstance(text, str) for text in captions):
        return RawSample(name, image, (), "captions are not text")
    return RawSample(name, image, tuple(text or "" for text in captions))


def row_sample(name: str, folder: Path, record: Mapping[str, Any]) -> RawSample:
    """A sample from a table's row, whose `image` is bytes, a {bytes, path} struct or a path relative to `folder`."""
    image = record.get("image")
    if isinstance(image, dict):
        data = image.get("bytes")
        image = image.get("path") if data is None else data
    if isinstance(image, str):
        target = inside(image)
        if target is None:
            return RawSample(name, b"", (), "path leaves the folder")
        image = folder / target
    if not isinstance(image, (bytes, Path)):
        return RawSample(name, b"", (), "no image")
    return sample_of(name, image, record)


def inside(target: str) -> str | None:
    """A file's name in the data, normalised; None where it leads out of the folder that it is relative to."""
    # By name only: Hugging Face's cache holds its files as links out of the folder, and these are to be followed.
    name = os.path.normpath(target)
    leaves = name == os.pardir or name.startswith(("/", "../")) or "\0" in target
    return None if leaves else name


def caption_lines(data: bytes) -> tuple[str, ...] | None:
    """The lines of a caption file that are not blank; None where it is not UTF-8."""
    try:
        return tuple(line for line in data.decode("utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError:
        return None
