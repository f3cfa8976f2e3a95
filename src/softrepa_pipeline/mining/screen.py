"""Captions that do not fit their image: mismatched by accident or planted, found by how CLIP sees all the others.

A caption that was put to the wrong image is as close to it as any other caption of the data set; a right one is closer.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from softrepa_pipeline.mining.corpus import Corpus

logger = logging.getLogger(__name__)

_MOST = 0.3  # a larger share says more about the CLIP than about the captions


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
    fits = [corpus.fits(image, own) for image, own in enumerate(corpus.own)]
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
