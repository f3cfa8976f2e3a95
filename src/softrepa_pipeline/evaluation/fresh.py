"""Denoising retrieval on images that no training has seen, with captions of other images against their own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from softrepa_pipeline.evaluation.editing.edit import native_side
from softrepa_pipeline.evaluation.generation import Model, opened
from softrepa_pipeline.evaluation.retrieval import retrieval_hits
from softrepa_pipeline.randomness import numpy_generator


@dataclass(frozen=True)
class FreshImages:
    """RGB images, their places in a data set, and the captions of all of that data set's images."""

    images: list[Image.Image]
    places: list[int]
    captions: list[list[str]]


def fresh_retrieval(model: Model, fresh: FreshImages, num_captions: int, seed: int) -> np.ndarray:
    """Whether each image's first caption (images,) has a lower error than `num_captions` − 1 of other images."""
    captions = [_against_others(fresh, place, num_captions - 1, seed) for place in fresh.places]
    with opened(model) as backbone:
        side = native_side(backbone)
        images = np.stack([np.asarray(ImageOps.fit(image, (side, side))) for image in fresh.images])
        return retrieval_hits(backbone, images, captions, seed)


def _against_others(fresh: FreshImages, place: int, count: int, seed: int) -> list[str]:
    own = fresh.captions[place]
    rng = numpy_generator(seed, "fresh captions", place)
    others: dict[str, None] = {}
    for other in rng.permutation(len(fresh.captions)):
        caption = fresh.captions[other][0]
        if caption not in own:
            others[caption] = None
        if len(others) == count:
            break
    return [own[0], *others]
