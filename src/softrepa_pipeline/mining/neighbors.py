"""Candidates of images by their neighbours: captions near the image, near its captions, or of the images near to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from softrepa_pipeline.mining.corpus import Corpus, captions_of
from softrepa_pipeline.mining.index import NeighborIndex
from softrepa_pipeline.mining.policy import Anchor, Candidates, Policy


@dataclass(frozen=True)
class Indexes:
    """What is searched: the captions, and the images where there are any."""

    texts: NeighborIndex
    images: NeighborIndex | None

    def report(self) -> dict[str, Any]:
        """What each index is and finds."""
        parts = {"captions": self.texts, "images": self.images}
        return {name: index.report() for name, index in parts.items() if index is not None}


_NEAR_IMAGES = 128
Neighbors = Callable[[Corpus, Indexes, range, Policy], Iterator[Candidates]]


def anchors(corpus: Corpus, indexes: Indexes, block: range, max_similarity: float) -> Iterator[Anchor]:
    """The images of a block, with the captions of those of their 128 nearest that reach `max_similarity`."""
    if corpus.images is None or indexes.images is None:
        yield from (Anchor(image, np.empty(0, int)) for image in block)
        return
    searched = indexes.images.search(corpus.images[block.start : block.stop], _NEAR_IMAGES)
    found = (each for scores, rows in searched for each in zip(scores, rows, strict=True))
    for image, (scores, rows) in zip(block, found, strict=True):
        near = rows[(scores >= max_similarity) & (rows != image)]
        yield Anchor(image, captions_of(corpus.own, near))


def image_to_caption(corpus: Corpus, indexes: Indexes, block: range, policy: Policy) -> Iterator[Candidates]:
    """Captions nearest to each image of a block."""
    assert corpus.images is not None
    for scores, rows in indexes.texts.search(corpus.images[block.start : block.stop], policy.range_max):
        for found in zip(rows[:, policy.range_min :], scores[:, policy.range_min :], strict=True):
            yield _filled(*found)


def caption_to_caption(corpus: Corpus, indexes: Indexes, block: range, policy: Policy) -> Iterator[Candidates]:
    """Captions nearest to one of each image's own, by their scores with the image (or the caption, without images)."""
    queries = np.concatenate([corpus.own[image] for image in block])
    found = np.concatenate([rows for _, rows in indexes.texts.search(corpus.texts[queries], policy.range_max)])
    ends = np.cumsum([len(corpus.own[image]) for image in block])[:-1]
    for image, rows in zip(block, np.split(found[:, policy.range_min :], ends), strict=True):
        yield _scored(corpus, image, rows.ravel())


def image_to_image(corpus: Corpus, indexes: Indexes, block: range, policy: Policy) -> Iterator[Candidates]:
    """Captions of the images nearest to each image, by their scores with it; ranks are those of images."""
    assert corpus.images is not None
    assert indexes.images is not None
    searched = indexes.images.search(corpus.images[block.start : block.stop], policy.range_max + 1)
    neighbors = (rows for _, found in searched for rows in found)
    for image, rows in zip(block, neighbors, strict=True):
        others = rows[(rows != image) & (rows >= 0)][policy.range_min : policy.range_max]
        yield _scored(corpus, image, captions_of(corpus.own, others))


def _filled(rows: np.ndarray, scores: np.ndarray) -> Candidates:
    return Candidates(rows[rows >= 0], scores[rows >= 0])


def _scored(corpus: Corpus, image: int, rows: np.ndarray) -> Candidates:
    rows = np.unique(rows[rows >= 0])
    scores = corpus.scores(image, rows)
    order = np.argsort(-scores, kind="stable")
    return Candidates(rows[order], scores[order])
