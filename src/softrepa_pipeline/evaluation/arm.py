"""One model under test."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softrepa_pipeline.evaluation.benchmark import Benchmark
from softrepa_pipeline.evaluation.generation import Model, opened
from softrepa_pipeline.evaluation.retrieval import retrieval_hits
from softrepa_pipeline.evaluation.scorers import NotMeasured, Scores
from softrepa_pipeline.evaluation.statistics import overall
from softrepa_pipeline.evaluation.studio import Studio

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """A model's guidance scale, its images (prompts, seeds, height, width, 3) of the test prompts, and their scores.

    `validation` has the first scorer's mean by guidance scale; `distances` are the set measures; `hits` (images,) say
    whether an image's own caption has the lowest denoising error, None where the benchmark has no captioned images.
    """

    guidance: float
    validation: dict[float, float]
    images: np.ndarray
    scores: dict[str, Scores | NotMeasured]
    distances: dict[str, float | NotMeasured]
    hits: np.ndarray | None

    @property
    def deciding(self) -> np.ndarray:
        """The first scorer's scores (prompts, seeds)."""
        first = next(iter(self.scores.values()))
        assert isinstance(first, Scores)
        return first.values.reshape(self.images.shape[:2])


def measure(benchmark: Benchmark, model: Model, guidance_scales: Sequence[float], studio: Studio, name: str) -> Arm:
    """Measure a model on the test prompts, at the guidance scale that serves it best on the validation prompts.

    Raises:
        ValueError: there are several scales, and no validation prompts to choose one on.
    """
    guidance, trials = _best_guidance(benchmark, model, guidance_scales, studio, name)
    images = studio.draw(model, benchmark.test, guidance, f"{name}: test prompts")
    scores = studio.measures.score(benchmark.test, images)
    distances = studio.measures.distances(benchmark.test, images)
    arm = Arm(guidance, trials, images, scores, distances, _retrieve(benchmark, model, studio))
    mean = overall(arm.deciding, benchmark.test.tasks)
    logger.info("%s: %s %.3f at guidance %g", name, next(iter(scores)), mean, guidance)
    return arm


def _retrieve(benchmark: Benchmark, model: Model, studio: Studio) -> np.ndarray | None:
    if benchmark.captioned is None:
        return None
    with opened(model) as backbone:
        own = benchmark.captioned
        return retrieval_hits(backbone, own.images, own.captions, studio.sampling.seed)


def _best_guidance(
    benchmark: Benchmark, model: Model, guidance_scales: Sequence[float], studio: Studio, name: str
) -> tuple[float, dict[float, float]]:
    """The scale that the first scorer likes best, the lowest of equals, and what it gave to each."""
    prompts = benchmark.validation
    if len(guidance_scales) == 1:
        return guidance_scales[0], {}
    if not prompts.prompts:
        raise ValueError(
            f"evaluation.guidance_scales has {len(guidance_scales)} scales, and the prompts {benchmark.name!r} have no "
            "validation split to choose one on; give one scale"
        )
    trials = {}
    for guidance in guidance_scales:
        images = studio.draw(model, prompts, guidance, f"{name}: guidance {guidance:g}")
        trials[guidance] = overall(studio.measures.decide(prompts, images), prompts.tasks)
    return max(trials, key=lambda guidance: (trials[guidance], -guidance)), trials
