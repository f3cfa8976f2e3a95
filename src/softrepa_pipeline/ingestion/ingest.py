"""Ingestion of a source: a map over its shards, then a merge of what they hold (docs/data-format.md)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from softrepa_pipeline.ingestion.changes import count_changes
from softrepa_pipeline.ingestion.check import CheckShard, Part
from softrepa_pipeline.ingestion.duplicates import near_duplicates
from softrepa_pipeline.ingestion.merge import merge
from softrepa_pipeline.ingestion.screens import Removal, floods, leaks, perceptual_hashes, remove
from softrepa_pipeline.ingestion.sources import Source
from softrepa_pipeline.ingestion.tables import (
    DUPLICATES_FILE,
    DUPLICATES_SCHEMA,
    PAIRS_FILE,
    PAIRS_SCHEMA,
    PARTS_FOLDER,
    QUARANTINE_FILE,
    QUARANTINE_SCHEMA,
    TableWriter,
    content_digest,
    iter_rows,
)
from softrepa_pipeline.ingestion.validation import Limits
from softrepa_pipeline.runners import LocalRunner, Runner
from softrepa_pipeline.stage import code_digest

logger = logging.getLogger(__name__)

_CHECKS = ("ingestion/check", "ingestion/sources", "ingestion/tables", "ingestion/validation")


@dataclass(frozen=True)
class IngestConfig:
    """What to read, where to write, and what is too much.

    A share of bad samples above `max_bad_share`, with their least number, stops the ingestion. A caption of more than
    `max_images_per_caption` images is taken from all of them, an image with more than `max_captions_per_image` taken
    out. Images are near-duplicates if their perceptual hashes differ in at most `near_duplicate_bits` of 64.
    `evaluation` is the folder of an ingested data set whose images and captions must not be in this one.
    """

    source: str
    output: str
    limits: Limits = field(default_factory=Limits)
    max_bad_share: float = 0.2
    min_bad_samples: int = 10
    max_images_per_caption: int = 1000
    max_captions_per_image: int = 100
    near_duplicate_bits: int = 4
    evaluation: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"ingest.max_bad_share must be in [0, 1], not {self.max_bad_share}")
        for name in ("max_images_per_caption", "max_captions_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"ingest.{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.near_duplicate_bits <= 7:
            raise ValueError(f"ingest.near_duplicate_bits must be in [0, 7], not {self.near_duplicate_bits}")
        source, output = Path(self.source).resolve(), Path(self.output).resolve()
        if source in (output, output / PARTS_FOLDER, output / PAIRS_FILE, output / QUARANTINE_FILE):
            raise ValueError(f"ingest.output would overwrite ingest.source: {self.output}")
        if self.evaluation is not None and not (Path(self.evaluation) / PAIRS_FILE).is_file():
            raise ValueError(f"ingest.evaluation is {self.evaluation}, where there is no {PAIRS_FILE}; ingest it first")


def ingest(config: IngestConfig, source: Source, runner: Runner | None = None) -> dict[str, Any]:
    """Check every sample of a source, write the tables to the output folder and return a JSON-able manifest.

    A sample is bad, and absent from the pairs, if its image or all its captions are; a bad caption among good ones
    only costs itself. Each bad image and each bad caption is a row of the quarantine table, whose `bytes` is the size
    of the image, 0 where there is none. Samples with the same image bytes become one row, which has the name of the
    first and the captions of all, each once, in order. Each table appears under its name only when it is complete.
    The tables do not depend on the runner, nor on what was ingested before.

    Raises:
        ValueError: the source has no usable sample, or too many bad ones; the quarantine table has been written, and
            the pairs have been left as they were.
    """
    output = Path(config.output)
    parts = _check(config, source, runner or LocalRunner())
    with TableWriter(output / PAIRS_FILE, PAIRS_SCHEMA) as pairs:
        num_merged = merge([part.file for part in parts], pairs)
        pairs.close()
        num_bad, screened = _screen(config, parts, pairs.partial)
        counts = _counts(pairs.partial)
        num_samples = sum(part.num_samples for part in parts)
        _refuse_bad_source(config, num_samples, num_bad, counts["num_images"], screened["reasons"])
        num_near = _write_near_duplicates(config, pairs.partial, output / DUPLICATES_FILE)
        changes = count_changes(output / PAIRS_FILE, pairs.partial)
        logger.info("ingest: %s", ", ".join(f"{count} {name}" for name, count in changes.items()))
        pairs.publish()
    _clear_away(output, parts)
    found = {
        "num_samples": num_samples,
        **counts,
        "num_merged": num_merged,
        "num_near_duplicates": num_near,
        **screened,
    }
    return {"folder": str(output), "digest": content_digest(output / PAIRS_FILE), **found}


def _check(config: IngestConfig, source: Source, runner: Runner) -> list[Part]:
    folder = Path(config.output) / PARTS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    work = CheckShard(folder, config.limits, code_digest(_CHECKS))
    parts, num_samples = [], 0
    with tqdm(total=len(source.shards), desc="ingest", unit="shard", mininterval=1) as progress:
        for part in runner.map(work, source.shards):
            parts.append(part)
            progress.update()
            num_samples += part.num_samples
            progress.set_postfix(samples=num_samples, refresh=False)
    return parts


def _screen(config: IngestConfig, parts: Sequence[Part], pairs: Path) -> tuple[int, dict[str, Any]]:
    """Take floods and leaks out of the pairs and write the quarantine: the number of bad samples, and figures."""
    file = Path(config.output) / QUARANTINE_FILE
    with TableWriter(file, QUARANTINE_SCHEMA) as quarantine:
        for part in parts:
            for row in iter_rows(part.quarantine):
                quarantine.add(row)
        found = floods(pairs, config.max_images_per_caption, config.max_captions_per_image)
        num_bad = sum(part.num_bad for part in parts) + remove(pairs, found.removal, quarantine)
        num_leaked = remove(pairs, _leaks(config, pairs), quarantine)
        quarantine.publish()
    reasons = Counter(row["reason"] for row in iter_rows(file, ("reason",)))
    return num_bad, {
        "most_images_of_a_caption": found.most_images_of_a_caption,
        "most_captions_of_an_image": found.most_captions_of_an_image,
        "num_leaked": num_leaked,
        "num_quarantined": reasons.total(),
        "reasons": dict(sorted(reasons.items())),
    }


def _leaks(config: IngestConfig, pairs: Path) -> Removal:
    if config.evaluation is None:
        return Removal()
    return leaks(pairs, Path(config.evaluation) / PAIRS_FILE, config.near_duplicate_bits)


def _counts(pairs: Path) -> dict[str, Any]:
    num_images = num_captions = 0
    has_images = True
    for row in iter_rows(pairs, ("captions", "width")):
        num_images += 1
        num_captions += len(row["captions"])
        has_images &= row["width"] is not None
    return {"num_images": num_images, "num_captions": num_captions, "has_images": has_images}


def _refuse_bad_source(
    config: IngestConfig, num_samples: int, num_bad: int, num_images: int, reasons: dict[str, int]
) -> None:
    too_many = num_bad > config.max_bad_share * num_samples and num_bad >= config.min_bad_samples
    if too_many or not num_images:
        listed = "; ".join(f"{reason} ({count})" for reason, count in Counter(reasons).most_common())
        raise ValueError(
            f"{num_bad} of {num_samples} samples of {config.source} are bad (ingest.max_bad_share is "
            f"{config.max_bad_share:g}): {listed}. All are listed in {Path(config.output) / QUARANTINE_FILE}"
        )


def _write_near_duplicates(config: IngestConfig, pairs: Path, file: Path) -> int:
    ids, hashes = perceptual_hashes(pairs)
    rows, originals, distances = near_duplicates(hashes, config.near_duplicate_bits)
    with TableWriter(file, DUPLICATES_SCHEMA) as table:
        for row, original, distance in zip(rows, originals, distances, strict=True):
            found = {"image_id": ids[row].decode(), "duplicate_of": ids[original].decode()}
            table.add({**found, "distance": int(distance)})
        table.publish()
    return len(rows)


def _clear_away(output: Path, parts: Sequence[Part]) -> None:
    """Remove the parts of shards that are no more, and what killed runs left behind."""
    kept = {file for part in parts for file in (part.file, part.quarantine)}
    for file in {*(output / PARTS_FOLDER).iterdir(), *output.glob("*.partial")} - kept:
        file.unlink()
