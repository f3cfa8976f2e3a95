"""Captions that do not fit their image: mismatched by accident or planted, found by how CLIP sees all the others.

A caption that was put to the wrong image is as close to it as any other caption of the data set; a right one is closer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from softrepa_pipeline.mining.corpus import Corpus
from softrepa_pipeline.randomness import numpy_generator

logger = logging.getLogger(__name__)

_MOST = 0.3  # a larger share says more about the CLIP than about the captions
_SAMPLE = 1024  # others that an image and a caption are compared with: the deviation is then known to 2 %
_BLOCK = 65536  # rows at once: bounds the memory


@dataclass(frozen=True)
class Misfit:
    """A caption that was taken from its image, and how well it fits it."""

    image_id: str
    caption: str
    fit: float


def without_misfits(corpus: Corpus, min_fit: float) -> tuple[Corpus, list[Misfit]]:
    """The corpus without captions whose fit to their own image is below `min_fit`, and without images that lose all.

    Nothing is taken out where that would be more than 30 % of the captions, which is logged: this CLIP does not know
    such images, or much of the data is wrong. Captions without images cannot be judged.
    """
    if corpus.images is None:
        return corpus, []
    fits = fit_scores(corpus.images, corpus.texts, corpus.own)
    share = float(np.mean(np.concatenate(fits) < min_fit))
    if share > _MOST:
        logger.warning(
            "%.0f %% of the captions do not fit their image (mine.min_fit %g): none is taken out. Set clip.model to "
            "one that knows such images, or look at the data",
            100 * share,
            min_fit,
        )
        return corpus, []
    misfits = [
        Misfit(image_id, corpus.captions[row], float(fit))
        for image_id, own, of_image in zip(corpus.image_ids, corpus.own, fits, strict=True)
        for row, fit in zip(own, of_image, strict=True)
        if fit < min_fit
    ]
    own = [rows[fit >= min_fit] for rows, fit in zip(corpus.own, fits, strict=True)]
    kept = [row for row, captions in enumerate(own) if len(captions)]
    logger.info("%d captions do not fit their image; %d images lose all", len(misfits), len(own) - len(kept))
    ids, own = [corpus.image_ids[row] for row in kept], [own[row] for row in kept]
    return replace(corpus, image_ids=ids, own=own, images=corpus.images[kept]), misfits


def fit_scores(images: np.ndarray, texts: np.ndarray, text_of: Sequence[np.ndarray]) -> list[np.ndarray]:
    """How well each caption fits its image: for every image an array with one score a caption of it.

    The score is the similarity of the two in deviations above that of the image with other captions, and of the caption
    with other images, averaged: about 0 for a caption of another image, whatever CLIP and data set. `images` (images,
    width) and `texts` (captions, width) are embeddings of unit length; `text_of` names each image's captions by row.
    """
    rng = numpy_generator(0, "captions screened")
    by_image = _moments(images, texts[rng.choice(len(texts), min(len(texts), _SAMPLE), replace=False)])
    by_text = _moments(texts, images[rng.choice(len(images), min(len(images), _SAMPLE), replace=False)])
    scores = []
    for row, captions in enumerate(text_of):
        similarity = np.asarray(texts[captions], dtype=np.float32) @ np.asarray(images[row], dtype=np.float32)
        above_captions = (similarity - by_image[row, 0]) / by_image[row, 1]
        above_images = (similarity - by_text[captions, 0]) / by_text[captions, 1]
        scores.append((above_captions + above_images) / 2)
    return scores


def _moments(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean and deviation (vectors, 2) of each vector's similarity with others."""
    parts = []
    for start in range(0, len(vectors), _BLOCK):
        similarity = np.asarray(vectors[start : start + _BLOCK], dtype=np.float32) @ others.T.astype(np.float32)
        parts.append(np.stack([similarity.mean(axis=1), similarity.std(axis=1) + 1e-6], axis=1))
    return np.concatenate(parts)
