"""The check of one shard: its usable samples and its faults, each in a table of their own."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import imagehash
import pyarrow.parquet as pq
from PIL import Image

from softrepa_pipeline.ingestion.sources import RawSample, Shard
from softrepa_pipeline.ingestion.sources.base import key_of
from softrepa_pipeline.ingestion.tables import PART_SCHEMA, QUARANTINE_SCHEMA, TableWriter
from softrepa_pipeline.ingestion.validation import BadSample, Limits, check_image, check_size, clean_caption


@dataclass(frozen=True)
class Part:
    """A checked shard: its table of samples, of which none or more are usable, and how many it had."""

    file: Path
    num_samples: int
    num_bad: int

    @property
    def quarantine(self) -> Path:
        return quarantine_of(self.file)


def quarantine_of(part: Path) -> Path:
    return part.with_suffix(".quarantine.parquet")


@dataclass(frozen=True)
class CheckShard:
    """The work of a map over shards; `code` stands for the version of the checks.

    A shard that was checked before is not read again: its part has the name of what it was made from and appears only
    when it is complete, after its quarantine.
    """

    folder: Path
    limits: Limits
    code: str

    def __call__(self, shard: Shard) -> Part:
        file = self.folder / f"{key_of(shard.key, self.limits, self.code)[:32]}.parquet"
        if not file.is_file():
            self._write(shard.samples(self.limits.max_bytes), file)
        facts = pq.read_metadata(file).metadata
        return Part(file, *(json.loads(facts[name]) for name in (b"num_samples", b"num_bad")))

    def _write(self, samples: Iterable[RawSample], file: Path) -> None:
        num_samples = num_bad = 0
        with TableWriter(file, PART_SCHEMA) as part, TableWriter(quarantine_of(file), QUARANTINE_SCHEMA) as quarantine:
            for sample in samples:
                num_samples += 1
                is_usable, reasons = _take(sample, self.limits, part)
                num_bad += not is_usable
                for reason in reasons:
                    quarantine.add({"file": _as_utf8(sample.name), "reason": reason, "bytes": _num_bytes(sample)})
            quarantine.publish()
            part.describe(num_samples=num_samples, num_bad=num_bad)
            part.publish()


def _take(sample: RawSample, limits: Limits, part: TableWriter) -> tuple[bool, list[str]]:
    """Add a sample to the part if it can be used; returns the reasons against it or against some of its captions."""
    try:
        if sample.problem:
            raise BadSample(sample.problem)
        data = _read_file(sample.image, limits) if isinstance(sample.image, Path) else sample.image
        if not sample.captions:
            raise BadSample("no caption")
        image = None if data is None else check_image(data, limits)
    except BadSample as bad:
        return False, [bad.reason]
    captions, reasons = _clean(sample.captions, limits)
    if captions:
        content = f"name:{sample.name}".encode() if data is None else data
        image_id = hashlib.sha256(content).hexdigest()[:32]
        row = {"image_id": image_id, "captions": captions, "source": _as_utf8(sample.name), "image": data}
        part.add({**row, **_measures(data, image)})
    return bool(captions), reasons


def _measures(data: bytes | None, image: Image.Image | None) -> dict[str, int]:
    if data is None or image is None:
        return {}
    perceptual_hash = int(str(imagehash.phash(image)), 16)
    return {"width": image.width, "height": image.height, "bytes": len(data), "perceptual_hash": perceptual_hash}


def _read_file(file: Path, limits: Limits) -> bytes:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadSample("not a file")
        check_size(status.st_size, limits)
        return file.read_bytes()
    except FileNotFoundError as error:
        raise BadSample("file not found") from error
    except OSError as error:
        raise BadSample("file cannot be read") from error


def _clean(captions: Iterable[str], limits: Limits) -> tuple[list[str], list[str]]:
    cleaned, reasons = [], []
    for text in captions:
        try:
            cleaned.append(clean_caption(text, limits))
        except BadSample as bad:
            reasons.append(bad.reason)
    return list(dict.fromkeys(cleaned)), reasons


def _num_bytes(sample: RawSample) -> int:
    if isinstance(sample.image, Path):
        try:
            return sample.image.stat().st_size
        except OSError:
            return 0
    return sample.num_bytes or len(sample.image or b"")


def _as_utf8(name: str) -> str:
    # A file name on Linux may be any bytes, which Python holds as surrogates and Arrow refuses.
    return name.encode("utf-8", "replace").decode()
