"""Folders of images, with captions in `metadata.jsonl`, `metadata.csv`, `pairs.jsonl` or a `.txt` beside each image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softrepa_pipeline.ingestion.sources.base import (
    IMAGE_SUFFIXES,
    MAX_TEXT_BYTES,
    RawSample,
    Shard,
    caption_lines,
    cut,
    stamp,
)
from softrepa_pipeline.ingestion.sources.records import READERS, RecordFile

DESCRIPTION = (
    "a folder of images with metadata.jsonl, metadata.csv or pairs.jsonl (keys `file_name` or `file`, and `captions`, "
    "`caption` or `text`); a folder of images with a .txt file beside each, one caption a line"
)
_METADATA = ("metadata.jsonl", "metadata.csv", "pairs.jsonl")


@dataclass(frozen=True)
class SidecarShard:
    """Images of a folder, by their names relative to it."""

    key: str
    root: Path
    names: tuple[str, ...]

    def samples(self, max_bytes: int) -> Iterator[RawSample]:
        for name in self.names:
            yield _sidecar_sample(name, self.root / name)


def find(source: str) -> list[Shard] | None:
    root = Path(source)
    if not root.is_dir():
        return None
    shards: list[Shard] = []
    listed: set[str] = set()
    metadata = [name for name in _files(root) if Path(name).name in _METADATA]
    for name in metadata:
        shards += READERS[Path(name).suffix](RecordFile(root, name), listed)
    images = (name for name in _files(root) if Path(name).suffix.lower() in IMAGE_SUFFIXES and name not in listed)
    items = ((name, _stamps(root / name), name) for name in images)
    sidecars = [SidecarShard(key, root, tuple(names)) for key, names in cut(items)]
    if not metadata and not any(_sidecar(root / name).is_file() for shard in sidecars for name in shard.names):
        return None
    return shards + sidecars


def _files(root: Path, folder: str = "", above: tuple[str, ...] = ()) -> Iterator[str]:
    """Names relative to the root in sorted order, without those that start with a dot; links are followed."""
    real = os.path.realpath(root / folder)
    if real in above:  # a link to a folder that it lies in
        return
    # Not `is_file`: a broken link is a sample that is lost, so it has to be reported.
    with os.scandir(real) as entries:
        visible = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    for name, is_folder in visible:
        path = f"{folder}/{name}" if folder else name
        if is_folder:
            yield from _files(root, path, (*above, real))
        else:
            yield path


def _sidecar(image: Path) -> Path:
    return image.with_suffix(".txt")


def _stamps(image: Path) -> str:
    return f"{stamp(image)} {stamp(_sidecar(image))}"


def _sidecar_sample(name: str, image: Path) -> RawSample:
    sidecar = _sidecar(image)
    if not sidecar.is_file():
        return RawSample(name, image, ())
    try:
        with sidecar.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError:
        return RawSample(name, image, (), "captions cannot be read")
    if len(data) > MAX_TEXT_BYTES:
        return RawSample(name, image, (), f"captions of more than {MAX_TEXT_BYTES} bytes")
    captions = caption_lines(data)
    return RawSample(name, image, captions or (), "captions are not UTF-8" if captions is None else "")
