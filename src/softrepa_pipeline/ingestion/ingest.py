"""Ingestion of a source into `pairs.parquet`, with what cannot be used in `quarantine.parquet`."""

from __future__ import annotations

import hashlib
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from softrepa_pipeline.ingestion.sources import RawSample, open_source
from softrepa_pipeline.ingestion.tables import (
    PAIRS_FILE,
    PAIRS_SCHEMA,
    QUARANTINE_FILE,
    QUARANTINE_SCHEMA,
    TableWriter,
    add_captions,
    content_digest,
)
from softrepa_pipeline.ingestion.validation import (
    BadSample,
    CheckedImage,
    Limits,
    check_image,
    check_size,
    clean_caption,
)


@dataclass(frozen=True)
class IngestConfig:
    """What to read, where to write, and the share of bad samples, with their least number, that is too many."""

    source: str
    output: str
    limits: Limits = field(default_factory=Limits)
    max_bad_share: float = 0.2
    min_bad_samples: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"ingest.max_bad_share must be in [0, 1], not {self.max_bad_share}")
        source, output = Path(self.source).resolve(), Path(self.output).resolve()
        if source in (output, output / PAIRS_FILE, output / QUARANTINE_FILE):
            raise ValueError(f"ingest.output would overwrite ingest.source: {self.output}")


@dataclass
class _Tally:
    num_samples: int = 0
    num_bad: int = 0
    num_merged: int = 0
    image_ids: set[str] = field(default_factory=set)
    late_captions: dict[str, list[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Check every sample of a source, write both tables to the output folder and return a JSON-able manifest.

    A sample is bad, and absent from the pairs, if its image or all its captions are; a bad caption among good ones
    only costs itself. Each bad image and each bad caption is a row of the quarantine table, whose `bytes` is the size
    of the image, 0 where there is none. Samples with the same image bytes become one row, which has the name of the
    first and the captions of all, each once, in order. Each table appears under its name only when it is complete.

    Raises:
        FileNotFoundError: there is no source.
        ValueError: the source has no accepted format, no usable sample, or too many bad ones; in the last two cases
            the quarantine table has been written, and the pairs have been left as they were.
    """
    samples, output = open_source(Path(config.source)), Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with TableWriter(output / PAIRS_FILE, PAIRS_SCHEMA) as pairs:
        with TableWriter(output / QUARANTINE_FILE, QUARANTINE_SCHEMA) as quarantine:
            tally = _sort(samples, config.limits, pairs, quarantine)
            quarantine.publish()
        _refuse_bad_source(config, tally)
        pairs.close()
        if tally.late_captions:
            add_captions(pairs.partial, tally.late_captions)
        pairs.publish()
    return _manifest(output, tally)


def _sort(samples: Iterable[RawSample], limits: Limits, pairs: TableWriter, quarantine: TableWriter) -> _Tally:
    tally = _Tally()
    for sample in tqdm(samples, desc="ingest", unit="sample"):
        tally.num_samples += 1
        reasons = _take(sample, limits, pairs, tally)
        for reason in reasons:
            quarantine.add({"file": _as_utf8(sample.name), "reason": reason, "bytes": _num_bytes(sample)})
        tally.reasons.update(reasons)
    return tally


def _take(sample: RawSample, limits: Limits, pairs: TableWriter, tally: _Tally) -> list[str]:
    """Add a sample to the pairs if it can be used; returns the reasons against it or against some of its captions."""
    try:
        data, size = _read(sample, limits)
    except BadSample as bad:
        tally.num_bad += 1
        return [bad.reason]
    captions, reasons = _clean(sample.captions, limits)
    image_id = hashlib.sha256(data).hexdigest()[:32]
    if not captions:
        tally.num_bad += 1
    elif image_id in tally.image_ids:
        tally.num_merged += 1
        tally.late_captions.setdefault(image_id, []).extend(captions)
    else:
        tally.image_ids.add(image_id)
        row = {"image_id": image_id, "image": data, "captions": captions, "source": _as_utf8(sample.name)}
        pairs.add({**row, "width": size.width, "height": size.height})
    return reasons


def _read(sample: RawSample, limits: Limits) -> tuple[bytes, CheckedImage]:
    if sample.problem:
        raise BadSample(sample.problem)
    data = _read_file(sample.image, limits) if isinstance(sample.image, Path) else sample.image
    if not sample.captions:
        raise BadSample("no caption")
    return data, check_image(data, limits)


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
    if isinstance(sample.image, bytes):
        return len(sample.image)
    try:
        return sample.image.stat().st_size
    except OSError:
        return 0


def _as_utf8(name: str) -> str:
    # A file name on Linux may be any bytes, which Python holds as surrogates and Arrow refuses.
    return name.encode("utf-8", "replace").decode()


def _refuse_bad_source(config: IngestConfig, tally: _Tally) -> None:
    too_many = tally.num_bad > config.max_bad_share * tally.num_samples and tally.num_bad >= config.min_bad_samples
    if too_many or not tally.image_ids:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in tally.reasons.most_common())
        raise ValueError(
            f"{tally.num_bad} of {tally.num_samples} samples of {config.source} are bad (ingest.max_bad_share is "
            f"{config.max_bad_share:g}): {reasons}. All are listed in {Path(config.output) / QUARANTINE_FILE}"
        )


def _manifest(output: Path, tally: _Tally) -> dict[str, Any]:
    digest, num_captions = content_digest(output / PAIRS_FILE)
    return {
        "folder": str(output),
        "digest": digest,
        "num_samples": tally.num_samples,
        "num_images": len(tally.image_ids),
        "num_captions": num_captions,
        "num_merged": tally.num_merged,
        "num_quarantined": tally.reasons.total(),
        "reasons": dict(sorted(tally.reasons.items())),
    }
