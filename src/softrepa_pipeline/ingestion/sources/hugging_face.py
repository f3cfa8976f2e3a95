"""Hugging Face data sets: what `save_to_disk` wrote, and whatever `load_dataset` streams, from a folder or the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from softrepa_pipeline.ingestion.sources.base import CAPTION_KEYS, RawSample, Shard, key_of, row_sample, stamp

if TYPE_CHECKING:
    from datasets import IterableDataset

DESCRIPTION = (
    "a folder that `Dataset.save_to_disk` wrote; hf:NAME[@REVISION][:SPLIT], a data set of Hugging Face's hub or a "
    "folder that `datasets.load_dataset` reads without a script (columns `image` and `captions`, `caption` or `text`)"
)
_STREAMED = re.compile(r"hf:(?P<name>[^@:]+)(@(?P<revision>[^:]+))?(:(?P<split>.+))?")


@dataclass(frozen=True)
class ArrowShard:
    """One of the Arrow files of a saved data set."""

    key: str
    file: Path

    def samples(self, max_bytes: int) -> Iterator[RawSample]:
        row = 0
        try:
            with pa.memory_map(str(self.file)) as file, pa.ipc.open_stream(file) as batches:
                for batch in batches:
                    for part in (batch.slice(start, 16) for start in range(0, len(batch), 16)):
                        for record in part.to_pylist():
                            yield row_sample(f"{self.file.name}:{row}", self.file.parent, record)
                            row += 1
        except (pa.ArrowException, OSError):
            yield RawSample(f"{self.file.name}:{row}", b"", (), "damaged Arrow file from this row on")


@dataclass(frozen=True)
class StreamedShard:
    """One of the pieces that `datasets` itself cuts a streamed data set into."""

    key: str
    name: str
    revision: str | None
    split: str
    index: int
    num_shards: int

    def samples(self, max_bytes: int) -> Iterator[RawSample]:
        stream = _open(self.name, self.revision, self.split).shard(self.num_shards, self.index)
        folder = Path(self.name)
        for row, record in enumerate(stream):
            yield row_sample(f"{self.split}-{self.index}:{row}", folder, record)


def find(source: str) -> list[Shard] | None:
    if match := _STREAMED.fullmatch(source):
        return _streamed(match["name"], match["revision"], match["split"] or "train")
    folder = Path(source)
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        raise ValueError(f"{folder} has several splits, name one: {', '.join(str(folder / name) for name in splits)}")
    if not (folder / "state.json").is_file() or not (folder / "dataset_info.json").is_file():
        return None
    files = [folder / entry["filename"] for entry in json.loads((folder / "state.json").read_text())["_data_files"]]
    return [ArrowShard(key_of(file.name, stamp(file)), file) for file in files]


def _streamed(name: str, revision: str | None, split: str) -> list[Shard]:
    is_local = Path(name).is_dir()
    if is_local:
        state = [f"{file.relative_to(name)} {stamp(file)}" for file in sorted(Path(name).rglob("*")) if file.is_file()]
    else:
        from huggingface_hub import HfApi

        revision = HfApi().dataset_info(name, revision=revision).sha
        state = [name]
    num_shards = _open(name, revision, split).num_shards
    keys = [key_of(split, revision, index, num_shards, *state) for index in range(num_shards)]
    return [StreamedShard(key, name, revision, split, index, num_shards) for index, key in enumerate(keys)]


def _open(name: str, revision: str | None, split: str) -> IterableDataset:
    """The stream, images still encoded."""
    # Importing `datasets` takes seconds, which other formats need not wait for.
    from datasets import Image, load_dataset

    stream = load_dataset(name, revision=revision, split=split, streaming=True)
    columns = stream.features or {}
    if "image" not in columns or not any(key in columns for key in CAPTION_KEYS):
        raise ValueError(f"hf:{name}:{split} has the columns {', '.join(columns)}; accepted is {DESCRIPTION}")
    return stream.cast_column("image", Image(decode=False))
