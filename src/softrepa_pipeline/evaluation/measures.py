"""The scorers and set measures of an evaluation, loaded, and what they make of one model's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from softrepa_pipeline.evaluation.benchmark import Prompts
from softrepa_pipeline.evaluation.scorers import (
    NotMeasured,
    Scorer,
    ScorerConfig,
    Scores,
    load_scorers,
    score_images,
)
from softrepa_pipeline.evaluation.sets import Lpips, SetMeasure, load_set_measure


@dataclass(frozen=True)
class Measures:
    """Scorers and set measures by name; what has no weights says so in its place. The first scorer decides.

    Raises:
        ValueError: there is no scorer, or the first one has no weights.
    """

    scorers: Mapping[str, Scorer | NotMeasured]
    sets: Mapping[str, SetMeasure | Lpips | NotMeasured]

    def __post_init__(self) -> None:
        if not self.scorers:
            raise ValueError("evaluation.scorers is empty; its first scorer decides which model is better")
        if isinstance(self.deciding, NotMeasured):
            raise ValueError(
                f"{next(iter(self.scorers))}, the first of evaluation.scorers, decides which model is better, "
                f"and it is not measured: {self.deciding.reason}"
            )

    @property
    def deciding(self) -> Scorer | NotMeasured:
        return next(iter(self.scorers.values()))

    def decide(self, prompts: Prompts, images: np.ndarray) -> np.ndarray:
        """The first scorer's scores (prompts, seeds) of images (prompts, seeds, height, width, 3)."""
        scorer = self.deciding
        assert isinstance(scorer, Scorer)
        return scorer.score(*_flat(prompts, images)).reshape(images.shape[:2])

    def score(self, prompts: Prompts, images: np.ndarray) -> dict[str, Scores | NotMeasured]:
        """Every scorer's scores (prompts × seeds,)."""
        return score_images(self.scorers, *_flat(prompts, images))

    def distances(self, prompts: Prompts, images: np.ndarray) -> dict[str, float | NotMeasured]:
        """How far the images are from the prompts' real ones, and those of a prompt from each other, by set measure."""
        drawn = [[Image.fromarray(image) for image in of_prompt] for of_prompt in images]
        return {name: _take(own, prompts.real, drawn) for name, own in self.sets.items()}


def _take(
    measure: SetMeasure | Lpips | NotMeasured, real: list[Image.Image], drawn: list[list[Image.Image]]
) -> float | NotMeasured:
    if isinstance(measure, NotMeasured):
        return measure
    if isinstance(measure, Lpips):
        if len(drawn[0]) < 2:
            return NotMeasured("diversity needs several images a prompt; set seeds_per_prompt")
        return float(np.mean([measure.diversity(of_prompt) for of_prompt in drawn]))
    if not real:
        return NotMeasured("the prompt set has no real images")
    return measure.measure(real, [image for of_prompt in drawn for image in of_prompt])


def load_measures(scorers: Sequence[ScorerConfig], sets: Sequence[ScorerConfig], truths: Mapping[str, Any]) -> Measures:
    """Load what is asked for; `truths` says by prompt what it asks for (`scorers.load_scorers`).

    Raises:
        ValueError: there is no such scorer or measure, or the first scorer has no weights.
    """
    return Measures(load_scorers(scorers, truths), {config.name: load_set_measure(config) for config in sets})


def _flat(prompts: Prompts, images: np.ndarray) -> tuple[list[str], list[Image.Image]]:
    """One prompt an image, and the images in that order."""
    texts = [text for text in prompts.texts for _ in range(images.shape[1])]
    return texts, [Image.fromarray(image) for image in images.reshape(-1, *images.shape[2:])]
