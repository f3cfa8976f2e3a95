"""Readers of captioned images: one module a format, each finding its shards and streaming their samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softrepa_pipeline.ingestion.sources import coco, folder, hugging_face, parquet, records, webdataset
from softrepa_pipeline.ingestion.sources.base import Format, RawSample, Shard, key_of

FORMATS: dict[str, Format] = {
    "hugging_face": hugging_face,
    "parquet": parquet,
    "webdataset": webdataset,
    "coco": coco,
    "records": records,
    "folder": folder,
}


@dataclass(frozen=True)
class Source:
    """A data set as its shards; the digest changes whenever one of its files may have."""

    name: str
    shards: tuple[Shard, ...]

    @property
    def digest(self) -> str:
        return key_of(*(shard.key for shard in self.shards))[:16]

    def samples(self, max_bytes: int = 1 << 30) -> Iterator[RawSample]:
        """Stream the samples in order, no more than a few of them in memory."""
        for shard in self.shards:
            yield from shard.samples(max_bytes)


def open_source(name: str) -> Source:
    """Find the shards of a file, a folder or an `hf:` data set; images are not read yet.

    Files and folders whose name starts with a dot are skipped. The layout is checked at the call, before the first
    sample; faults of single samples are left to the caller. Nothing but a name with `hf:` touches the network.

    Raises:
        FileNotFoundError: nothing is at that path.
        ValueError: what is there is in none of the accepted formats, or in several.
    """
    if not name.startswith("hf:") and not Path(name).exists():
        raise FileNotFoundError(f"no data at {name}; set `source.known.<name>` or pass --params dataset=FOLDER")
    found = {each: shards for each, one in FORMATS.items() if (shards := one.find(name)) is not None}
    if not found:
        raise ValueError(f"no captioned images at {name}; {ACCEPTED}")
    if len(found) > 1:
        raise ValueError(f"{name} can be read as {' or as '.join(found)}; name the one file or folder that is meant")
    return Source(name, tuple(found.popitem()[1]))


ACCEPTED = "accepted are: " + "; ".join(each.DESCRIPTION for each in FORMATS.values())

__all__ = ["ACCEPTED", "FORMATS", "RawSample", "Shard", "Source", "open_source"]
