"""What is taken out of the pairs although each sample is sound: floods, and leaks from the evaluation set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from softrepa_pipeline.ingestion.duplicates import near_others
from softrepa_pipeline.ingestion.tables import PAIRS_SCHEMA, TableWriter, iter_rows


@dataclass(frozen=True)
class Removal:
    """Images by id and captions by text that must not stay, each with its reason."""

    images: dict[str, str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Floods:
    """How far captions are spread, and what is above the limits."""

    most_images_of_a_caption: int
    most_captions_of_an_image: int
    removal: Removal


def floods(pairs: Path, max_images_per_caption: int, max_captions_per_image: int) -> Floods:
    """Captions of more images, and images with more captions, than a table of pairs should have."""
    counted, num_images = np.unique(_caption_hashes(pairs), return_counts=True)
    flooding = counted[num_images > max_images_per_caption]
    removal, most_captions = Removal(), 0
    for row in iter_rows(pairs, ("image_id", "captions")):
        most_captions = max(most_captions, len(row["captions"]))
        if len(row["captions"]) > max_captions_per_image:
            removal.images[row["image_id"]] = f"more than {max_captions_per_image} captions"
        for caption in _among(row["captions"], flooding):
            removal.captions[caption] = f"caption of more than {max_images_per_caption} images"
    return Floods(int(num_images.max(initial=0)), most_captions, removal)


def leaks(training: Path, evaluation: Path, max_distance: int) -> Removal:
    """Images and captions of a training table that an evaluation table has as well, near-duplicates included.

    Images are near if their perceptual hashes differ in at most `max_distance` bits.
    """
    captions = np.unique(_caption_hashes(evaluation))
    ids = {row["image_id"] for row in iter_rows(evaluation, ("image_id",))}
    training_ids, hashes = perceptual_hashes(training)
    rows, _, _ = near_others(hashes, perceptual_hashes(evaluation)[1], max_distance)
    near = [image_id.decode() for image_id in training_ids[rows]]
    removal = Removal(dict.fromkeys(near, "near-duplicate of an evaluation image"))
    for row in iter_rows(training, ("image_id", "captions")):
        if row["image_id"] in ids:
            removal.images[row["image_id"]] = "evaluation image"
        for caption in _among(row["captions"], captions):
            removal.captions[caption] = "evaluation caption"
    return removal


def remove(pairs: Path, removal: Removal, quarantine: TableWriter) -> int:
    """Rewrite a table of pairs without what is to go, which is added to the quarantine; returns the images that went.

    An image whose captions all go, goes with them.
    """
    if not removal.images and not removal.captions:
        return 0
    num_removed = 0
    with TableWriter(pairs, PAIRS_SCHEMA) as kept:
        for row in iter_rows(pairs):
            captions, reasons = [], [removal.images.get(row["image_id"], "")]
            for caption in row["captions"]:
                reason = removal.captions.get(caption)
                if reason is None:
                    captions.append(caption)
                elif not reasons[0]:
                    reasons.append(reason)
            for reason in filter(None, reasons):
                quarantine.add({"file": row["source"], "reason": reason, "bytes": row["bytes"] or 0})
            if captions and not reasons[0]:
                kept.add({**row, "captions": captions})
            else:
                num_removed += 1
        kept.publish()
    return num_removed


def perceptual_hashes(pairs: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids (images,) and perceptual hashes (images,) uint64 of the rows that have an image."""
    ids, hashes = [], []
    for row in iter_rows(pairs, ("image_id", "perceptual_hash")):
        if row["perceptual_hash"] is not None:
            ids.append(row["image_id"].encode())
            hashes.append(row["perceptual_hash"])
    return np.array(ids, "S32"), np.array(hashes, np.uint64)


def _caption_hashes(pairs: Path) -> np.ndarray:
    rows = iter_rows(pairs, ("captions",))
    return np.fromiter((_hash(caption) for row in rows for caption in row["captions"]), np.uint64)


def _among(captions: Iterable[str], hashes: np.ndarray) -> list[str]:
    """Those captions whose hash is in a sorted array."""
    if not len(hashes):
        return []
    return [caption for caption in captions if _is_in(_hash(caption), hashes)]


def _is_in(value: int, values: np.ndarray) -> bool:
    place = np.searchsorted(values, np.uint64(value))
    return bool(place < len(values) and values[place] == np.uint64(value))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
