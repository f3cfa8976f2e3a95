"""Measures of a set of generated images: against real ones, or among themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from softrepa_pipeline.evaluation.scorers.base import NotMeasured, ScorerConfig
from softrepa_pipeline.evaluation.scorers.weights import MissingWeightsError
from softrepa_pipeline.evaluation.sets.distances import Features, clip_distance, frechet, kernel_distance
from softrepa_pipeline.evaluation.sets.features import ClipImages, DinoV2, FeatureExtractor
from softrepa_pipeline.evaluation.sets.lpips import Lpips

logger = logging.getLogger(__name__)

LPIPS_DIVERSITY = "lpips_diversity"

__all__ = ["LPIPS_DIVERSITY", "SET_MEASURES", "Lpips", "SetMeasure", "load_set_measure"]

# The features that images are compared by, and the distance between two sets of them.
SET_MEASURES: dict[str, tuple[Callable[[ScorerConfig], FeatureExtractor], Callable[[Features, Features], float]]] = {
    "fd_dinov2": (DinoV2, frechet),
    "kid_dinov2": (DinoV2, kernel_distance),
    "cmmd": (ClipImages, clip_distance),
}


@dataclass(frozen=True)
class SetMeasure:
    """A distance of two sets of images: 0 for the same, larger the more unlike they are."""

    extractor: FeatureExtractor
    distance: Callable[[Features, Features], float]

    def measure(self, real: Sequence[Image.Image], generated: Sequence[Image.Image]) -> float:
        """The distance; both sets need more than one image.

        Raises:
            ValueError: a set is too small.
        """
        if min(len(real), len(generated)) < 2:
            raise ValueError(f"sets of {len(real)} and {len(generated)} images are too small to compare")
        return self.distance(self.extractor.features(real), self.extractor.features(generated))


def load_set_measure(config: ScorerConfig) -> SetMeasure | Lpips | NotMeasured:
    """A measure by its name, or why it cannot be taken.

    Raises:
        ValueError: there is no measure of that name.
    """
    known = (*SET_MEASURES, LPIPS_DIVERSITY)
    if config.name not in known:
        raise ValueError(f"unknown set measure {config.name!r}. Known: {', '.join(known)}")
    try:
        if config.name == LPIPS_DIVERSITY:
            return Lpips(config)
        extractor, distance = SET_MEASURES[config.name]
        return SetMeasure(extractor(config), distance)
    except MissingWeightsError as error:
        logger.warning("%s is not measured: %s", config.name, error)
        return NotMeasured(str(error))
