"""Base against soft tokens on the embedded world: same prompts, same noise, exact truth."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.evaluation.retrieval import draw_distractors, retrieval_hits
from softrepa_pipeline.evaluation.scorers import NotMeasured, Scorer, ScorerConfig, Scores, score_images
from softrepa_pipeline.evaluation.scorers.verifier import WorldVerifier
from softrepa_pipeline.evaluation.statistics import overall, paired_intervals, task_means
from softrepa_pipeline.inference import SamplingConfig, add_tokens, draw
from softrepa_pipeline.shapes.dataset import Prompt, read_images, read_prompts
from softrepa_pipeline.soft_tokens import SoftTokens

logger = logging.getLogger(__name__)

# Loaded scorers by name, and those whose weights are missing.
Scorers = Mapping[str, Scorer | NotMeasured]


@dataclass(frozen=True)
class EvaluationConfig:
    """How much is measured; guidance scales are compared on validation prompts, each model keeps its best.

    `scorers` come on top of the exact verifier.
    """

    prompts_per_task: int
    validation_prompts_per_task: int
    guidance_scales: tuple[float, ...]
    sampling: SamplingConfig
    scorers: tuple[ScorerConfig, ...] = ()
    retrieval_images: int = 96
    retrieval_captions: int = 8


@dataclass(frozen=True)
class Arm:
    """One model under test: its guidance scale, images (prompts, seeds, h, w, 3) and verdicts (prompts, seeds)."""

    guidance: float
    validation: dict[float, float]
    images: np.ndarray
    verdicts: np.ndarray
    retrieval: float
    scores: dict[str, Scores | NotMeasured]


@dataclass(frozen=True)
class Evaluation:
    """Both arms on the same prompts, and the summary that is written to evaluation.json."""

    prompts: list[Prompt]
    base: Arm
    soft: Arm
    summary: dict[str, Any]


def evaluate(
    config: EvaluationConfig,
    backbone: Backbone,
    tokens: SoftTokens,
    world: Path,
    scorers: Scorers,
) -> Evaluation:
    """Measure verifier accuracy, denoising retrieval and scores of the base and of the base with tokens."""
    prompts = read_prompts(world, "test", config.prompts_per_task)
    started = time.perf_counter()
    base = measure(config, backbone, world, scorers, "base")
    halfway = time.perf_counter()
    with add_tokens(backbone, tokens):
        soft = measure(config, backbone, world, scorers, "soft")
    seconds = {"base": halfway - started, "soft": time.perf_counter() - halfway, "scoring an image": _costs(base)}
    return Evaluation(prompts, base, soft, {**summarise(prompts, base, [soft]), "seconds": seconds})


def measure(config: EvaluationConfig, backbone: Backbone, world: Path, scorers: Scorers, name: str) -> Arm:
    """Measure the model as it stands, with whatever tokens are injected, at its own best guidance scale."""
    prompts = read_prompts(world, "test", config.prompts_per_task)
    trial_prompts = read_prompts(world, "validation", config.validation_prompts_per_task)
    trials = {}
    for guidance in config.guidance_scales:
        images = draw(backbone, _texts(trial_prompts), config.sampling, guidance, f"{name}: guidance {guidance:g}")
        trials[guidance] = overall(judge(images, trial_prompts), _tasks(trial_prompts))
    best = max(trials, key=lambda guidance: (trials[guidance], -guidance))
    images = draw(backbone, _texts(prompts), config.sampling, best, f"{name}: test prompts")
    truth, truth_prompts = read_images(world, "test", config.retrieval_images)
    distractors = draw_distractors(truth, truth_prompts, config.retrieval_captions - 1, config.sampling.seed)
    captions = [[prompt.text, *others] for prompt, others in zip(truth_prompts, distractors, strict=True)]
    hits = retrieval_hits(backbone, truth, captions, config.sampling.seed)
    scores = score_images(scorers, *_flat(prompts, images))
    verdicts = judge(images, prompts)
    logger.info("%s: accuracy %.3f at guidance %g", name, overall(verdicts, _tasks(prompts)), best)
    return Arm(best, trials, images, verdicts, float(hits.mean()), scores)


def judge(images: np.ndarray, prompts: list[Prompt]) -> np.ndarray:
    """Verdicts (prompts, seeds) of the exact verifier on images (prompts, seeds, height, width, 3)."""
    verifier = WorldVerifier(ScorerConfig("verifier"), {prompt.text: prompt.claim for prompt in prompts})
    return verifier.score(*_flat(prompts, images)).reshape(images.shape[:2]).astype(bool)


def _flat(prompts: list[Prompt], images: np.ndarray) -> tuple[list[str], list[Image.Image]]:
    """One prompt an image, and the images (prompts, seeds, height, width, 3) in that order."""
    texts = [text for text in _texts(prompts) for _ in range(images.shape[1])]
    return texts, [Image.fromarray(image) for image in images.reshape(-1, *images.shape[2:])]


def summarise(prompts: list[Prompt], base: Arm, soft: list[Arm]) -> dict[str, Any]:
    """Accuracies and paired intervals of the base against one or more trainings of soft tokens."""
    tasks = _tasks(prompts)
    verdicts = np.concatenate([arm.verdicts for arm in soft], axis=1)
    total, by_task = paired_intervals(base.verdicts, verdicts, tasks)
    return {
        "num_prompts": len(prompts),
        "num_prompts_by_task": dict(Counter(tasks)),
        "seeds_per_prompt": int(base.verdicts.shape[1]),
        "num_trainings": len(soft),
        "base": {"overall": overall(base.verdicts, tasks), "tasks": task_means(base.verdicts, tasks)},
        "soft": {"overall": overall(verdicts, tasks), "tasks": task_means(verdicts, tasks)},
        "delta": {"overall": asdict(total), "tasks": {task: asdict(interval) for task, interval in by_task.items()}},
        "guidance": {"base": base.guidance, "soft": [arm.guidance for arm in soft]},
        "validation": {"base": _by_guidance(base), "soft": [_by_guidance(arm) for arm in soft]},
        "retrieval": {"base": base.retrieval, "soft": float(np.mean([arm.retrieval for arm in soft]))},
        "scores": {name: _compare_scores(base, soft, name, tasks) for name in base.scores},
    }


def _compare_scores(base: Arm, soft: list[Arm], name: str, tasks: list[str]) -> dict[str, Any]:
    """One scorer's means over tasks and the paired interval of the difference, or why it was not measured."""
    results = [arm.scores[name] for arm in (base, *soft)]
    measured = [result for result in results if isinstance(result, Scores)]
    if len(measured) < len(results):
        return {"not_measured": next(result.reason for result in results if isinstance(result, NotMeasured))}
    before, *after = (result.values.reshape(len(tasks), -1) for result in measured)
    values = np.concatenate(after, axis=1)
    return {
        "model": measured[0].model,
        "base": overall(before, tasks),
        "soft": overall(values, tasks),
        "delta": asdict(paired_intervals(before, values, tasks)[0]),
    }


def _costs(arm: Arm) -> dict[str, float]:
    return {name: result.seconds_per_image for name, result in arm.scores.items() if isinstance(result, Scores)}


def _by_guidance(arm: Arm) -> dict[str, float]:
    return {f"{guidance:g}": accuracy for guidance, accuracy in arm.validation.items()}


def _texts(prompts: list[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def _tasks(prompts: list[Prompt]) -> list[str]:
    return [prompt.claim.task for prompt in prompts]
