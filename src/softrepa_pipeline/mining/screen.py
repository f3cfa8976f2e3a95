"""Captions that do not fit their image: mismatched by accident or planted, found by how CLIP sees all the others.

A caption that was put to the wrong image is as close to it as any other caption of the data set; a right one is closer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from softrepa_pipeline.randomness import numpy_generator

_SAMPLE = 1024  # others that an image and a caption are compared with: the deviation is then known to 2 %
_BLOCK = 65536  # rows at once: bounds the memory


def fit_scores(images: np.ndarray, texts: np.ndarray, text_of: Sequence[Sequence[int]]) -> list[np.ndarray]:
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
        similarity = np.asarray(texts[list(captions)], dtype=np.float32) @ np.asarray(images[row], dtype=np.float32)
        above_captions = (similarity - by_image[row, 0]) / by_image[row, 1]
        above_images = (similarity - by_text[list(captions), 0]) / by_text[list(captions), 1]
        scores.append((above_captions + above_images) / 2)
    return scores


def _moments(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean and deviation (vectors, 2) of each vector's similarity with others."""
    parts = []
    for start in range(0, len(vectors), _BLOCK):
        similarity = np.asarray(vectors[start : start + _BLOCK], dtype=np.float32) @ others.T.astype(np.float32)
        parts.append(np.stack([similarity.mean(axis=1), similarity.std(axis=1) + 1e-6], axis=1))
    return np.concatenate(parts)
