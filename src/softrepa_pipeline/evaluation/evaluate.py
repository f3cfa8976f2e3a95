"""Base against soft tokens: same prompts, same noise, each at its own best guidance."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softrepa_pipeline.evaluation.arm import Arm, measure
from softrepa_pipeline.evaluation.benchmark import EMBEDDED_WORLD, Benchmark, embedded_world, published
from softrepa_pipeline.evaluation.curves import trace_curves
from softrepa_pipeline.evaluation.generation import Model, opened
from softrepa_pipeline.evaluation.intrinsic import measure_by_depth, summarise_depths
from softrepa_pipeline.evaluation.scorers import ScorerConfig, Scores
from softrepa_pipeline.evaluation.studio import Studio
from softrepa_pipeline.evaluation.summary import summarise
from softrepa_pipeline.inference import SamplingConfig, Strength
from softrepa_pipeline.soft_tokens import load_soft_tokens


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and by what; `prompts` is a set's name or a file of one prompt a line (`prompts.prompt_set`).

    The first scorer decides: guidance scales are compared by it on validation prompts, and each model keeps its best.
    `sets` measure all images together; `strengths` are those of the tokens along their curve. With `conditional_only`
    tokens act on guidance's conditional branch alone.
    """

    prompts: str
    prompts_per_task: int
    validation_prompts_per_task: int
    guidance_scales: tuple[float, ...]
    sampling: SamplingConfig
    scorers: tuple[ScorerConfig, ...]
    sets: tuple[ScorerConfig, ...] = ()
    strengths: tuple[float, ...] = ()
    conditional_only: bool = False
    retrieval_images: int = 96
    retrieval_captions: int = 8

    def __post_init__(self) -> None:
        if not self.guidance_scales:
            raise ValueError("evaluation.guidance_scales is empty; a single scale is taken as it is")
        least = {
            "prompts_per_task": 1,
            "validation_prompts_per_task": 0,
            "retrieval_images": 1,
            "retrieval_captions": 2,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"evaluation.{name} must be at least {value}, not {getattr(self, name)}")

    def soft_model(self, base: ModelConfig, tokens: str) -> Model:
        """A base with the soft tokens of a file, acting where this evaluation has them act."""
        return Model(base, tokens, Strength(conditional_only=self.conditional_only))


@dataclass(frozen=True)
class Evaluation:
    """Both arms on the same prompts, and the summary that is written to evaluation.json."""

    benchmark: Benchmark
    base: Arm
    soft: Arm
    summary: dict[str, Any]


def load_benchmark(config: EvaluationConfig, world: Path, folder: Path) -> Benchmark:
    """The embedded world from `world`, or published prompts from `folder`.

    Raises:
        FileNotFoundError, ValueError: there is no such set, or its file is not what it should be.
    """
    if config.prompts != EMBEDDED_WORLD:
        return published(config.prompts, folder, config.prompts_per_task)
    sizes = (config.prompts_per_task, config.validation_prompts_per_task)
    return embedded_world(world, *sizes, config.retrieval_images, config.retrieval_captions, config.sampling.seed)


def evaluate(config: EvaluationConfig, benchmark: Benchmark, base: Model, soft: Model, studio: Studio) -> Evaluation:
    """Measure both models on the test prompts, and their curves on the validation prompts."""
    started = time.perf_counter()
    before = measure(benchmark, base, config.guidance_scales, studio, "base")
    halfway = time.perf_counter()
    after = measure(benchmark, soft, config.guidance_scales, studio, "soft")
    summary = summarise(benchmark, before, [after])
    summary["seconds"] = {
        "base": halfway - started,
        "soft": time.perf_counter() - halfway,
        "scoring an image": {
            name: own.seconds_per_image for name, own in before.scores.items() if isinstance(own, Scores)
        },
    }
    summary["intrinsic"] = _by_depth(benchmark, base, soft, config.sampling.seed)
    summary["curves"] = trace_curves(
        benchmark.validation, base, soft, config.guidance_scales, config.strengths, after.guidance, studio
    )
    return Evaluation(benchmark, before, after, summary)


def _by_depth(benchmark: Benchmark, base: Model, soft: Model, seed: int) -> dict[str, Any]:
    """What the errors tell by level and depth; nothing where there are no captioned images, or no tokens."""
    if benchmark.captioned is None or soft.tokens is None:
        return {}
    tokens, _ = load_soft_tokens(Path(soft.tokens), soft.base.family)
    own = benchmark.captioned
    with opened(base) as backbone:
        return summarise_depths(measure_by_depth(backbone, tokens, own.images, own.captions, seed))
