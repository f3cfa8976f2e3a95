"""Variants of the embedded world's training pairs: fewer of them, or false captions among them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from softrepa_pipeline.mining.structured import CaptionEditor
from softrepa_pipeline.randomness import numpy_generator
from softrepa_pipeline.shapes.dataset import write_table
from softrepa_pipeline.shapes.renderers import RENDERERS

Captions = list[list[str]]  # of each image


@dataclass(frozen=True)
class DataChange:
    """The first `images` of the pairs, or all; `poison`, a key of POISONS, makes the captions of a `share` false.

    A `renderer` of RENDERERS draws the same scenes.
    """

    images: int | None = None
    poison: str | None = None
    share: float = 0.0
    renderer: str | None = None

    def __post_init__(self) -> None:
        if self.poison is not None and self.poison not in POISONS:
            raise ValueError(f"data.poison must be one of {', '.join(POISONS)}, not {self.poison!r}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"data.share must be in [0, 1], not {self.share}")
        if self.renderer is not None and self.renderer not in RENDERERS:
            raise ValueError(f"data.renderer must be one of {', '.join(RENDERERS)}, not {self.renderer!r}")


def mismatched(captions: Captions, chosen: np.ndarray) -> Captions:
    """Each chosen image has the captions of another chosen one, as where a crawl has lost its place."""
    changed = list(captions)
    for row, other in zip(chosen, np.roll(chosen, 1), strict=True):
        changed[row] = captions[other]
    return changed


def recoloured(captions: Captions, chosen: np.ndarray) -> Captions:
    """Chosen captions call red blue."""
    changed = list(captions)
    for row in chosen:
        changed[row] = [re.sub(r"\bred\b", "blue", caption) for caption in captions[row]]
    return changed


def near_miss(captions: Captions, chosen: np.ndarray) -> Captions:
    """Chosen captions are false by one word, the very contradictions that the contrast is to tell apart."""
    editor = CaptionEditor(caption for own in captions for caption in own)
    changed = list(captions)
    for row in chosen:
        edited = [editor.edits(caption, captions[row]) for caption in captions[row]]
        changed[row] = [
            edits[0].text if edits else caption for edits, caption in zip(edited, captions[row], strict=True)
        ]
    return changed


def flooded(captions: Captions, chosen: np.ndarray) -> Captions:
    """All chosen images have the one caption that a spammer wants to be seen."""
    changed = list(captions)
    for row in chosen:
        changed[row] = ["a large red circle"]
    return changed


POISONS: dict[str, Callable[[Captions, np.ndarray], Captions]] = {
    "mismatched": mismatched,
    "recoloured": recoloured,
    "near_miss": near_miss,
    "flooded": flooded,
}


def write_variant(source: Path, change: DataChange, file: Path, seed: int = 0) -> None:
    """Write the pairs of a Parquet file (image, captions) with a change; those that a poison cannot touch stay.

    Raises:
        FileNotFoundError: the source is not there.
    """
    table = pq.read_table(source, columns=["image", "captions"])
    if change.images is not None:
        table = table.slice(0, change.images)
    captions = table["captions"].to_pylist()
    if change.poison is not None:
        order = numpy_generator(seed, "poison").permutation(len(captions))
        captions = POISONS[change.poison](captions, order[: round(change.share * len(captions))])
    table = pa.table({"image": table["image"], "captions": captions})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, file)
