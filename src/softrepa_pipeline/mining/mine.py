"""Hard negatives: captions that CLIP finds close to an image, yet not so close that they may be true of it.

Beside them stand structured ones, the image's own captions with a contradiction in them (`mining.structured`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from softrepa_pipeline.mining.embeddings import Embeddings
from softrepa_pipeline.mining.index import nearest
from softrepa_pipeline.mining.structured import CaptionEditor

_EDITS = pa.list_(pa.list_(pa.string()))


@dataclass(frozen=True)
class MineConfig:
    """`num_candidates` negatives are kept per image, the hardest first.

    A caption counts as a possible false negative, and is left out, where its similarity to the image exceeds
    (1 − `relative_margin`) times that of the image's own caption (positive-aware mining, arXiv 2407.15831).
    `search_depth` captions are looked at for each image.
    """

    clip: str
    num_candidates: int = 16
    relative_margin: float = 0.3
    search_depth: int = 4096
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 <= self.relative_margin < 1:
            raise ValueError(f"mine.relative_margin must be in [0, 1), not {self.relative_margin}")
        if self.num_candidates < 1:
            raise ValueError(f"mine.num_candidates must be at least 1, not {self.num_candidates}")


@dataclass(frozen=True)
class Captioned:
    """What mining reads of a pair: an identity and captions."""

    image_id: str
    captions: tuple[str, ...]


def mine(config: MineConfig, pairs: Iterable[Captioned], embeddings: Embeddings, output: Path) -> dict[str, Any]:
    """Write `negatives.parquet` (image_id, captions, edits, edit_kinds, negatives, scores) and return its figures.

    `edits` has one list of structured negatives for each of the image's captions, in their order, `edit_kinds` their
    kinds.

    Raises:
        ValueError: fewer than two distinct captions, so that nothing can be a negative.
    """
    image_ids, captions_of = [], []
    for pair in pairs:
        image_ids.append(pair.image_id)
        captions_of.append(pair.captions)
    captions = sorted({caption for own in captions_of for caption in own})
    if len(captions) < 2:
        raise ValueError(f"mining needs at least two distinct captions, but the data set has {len(captions)}")
    images, texts = embeddings.of_images(image_ids), embeddings.of_captions(captions)
    negatives = choose_negatives(config, images, texts, captions, captions_of)
    return _write(output, image_ids, captions_of, negatives)


def choose_negatives(
    config: MineConfig,
    images: np.ndarray,
    texts: np.ndarray,
    captions: list[str],
    captions_of: list[tuple[str, ...]],
) -> list[list[tuple[str, float]]]:
    """For each image the hardest captions below the margin, as (caption, similarity), hardest first.

    Captions equal to one of the image's own are left out by content, not by row.
    """
    row_of = {caption: row for row, caption in enumerate(captions)}
    chosen = []
    found = nearest(texts, images, config.search_depth)
    for image, own, (image_scores, image_rows) in zip(images, captions_of, found, strict=True):
        positive = max(float(image @ texts[row_of[caption]]) for caption in own)
        limit = positive - config.relative_margin * abs(positive)
        fitting = [
            (captions[row], float(score))
            for score, row in zip(image_scores, image_rows, strict=True)
            if score < limit and captions[row] not in own
        ]
        chosen.append(fitting[: config.num_candidates] or _farthest(image, texts, captions, own))
    return chosen


def _farthest(
    image: np.ndarray, texts: np.ndarray, captions: list[str], own: tuple[str, ...]
) -> list[tuple[str, float]]:
    """The caption least like the image: the safest negative where all near ones may be true."""
    similarity = texts @ image
    for row in np.argsort(similarity):
        if captions[row] not in own:
            return [(captions[row], float(similarity[row]))]
    return []


def _write(
    output: Path, image_ids: list[str], captions_of: list[tuple[str, ...]], negatives: list[list[tuple[str, float]]]
) -> dict[str, Any]:
    output.mkdir(parents=True, exist_ok=True)
    editor = CaptionEditor(caption for own in captions_of for caption in own)
    edits = [[editor.edits(caption, own) for caption in own] for own in captions_of]
    table = pa.table(
        {
            "image_id": image_ids,
            "captions": [list(own) for own in captions_of],
            "edits": pa.array([[[edit.text for edit in some] for some in own] for own in edits], _EDITS),
            "edit_kinds": pa.array([[[edit.kind for edit in some] for some in own] for own in edits], _EDITS),
            "negatives": [[caption for caption, _ in items] for items in negatives],
            "scores": pa.array([[score for _, score in items] for items in negatives], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, output / "negatives.parquet")
    counts = [len(items) for items in negatives]
    return {
        "folder": str(output),
        "num_images": len(image_ids),
        "num_distinct_captions": len({caption for own in captions_of for caption in own}),
        "negatives_per_image": {"mean": float(np.mean(counts)), "min": int(min(counts)), "max": int(max(counts))},
        "mean_similarity": float(np.mean([score for items in negatives for _, score in items])),
    }
