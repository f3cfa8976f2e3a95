"""Alignment against fidelity along guidance and along the strength of the tokens, on validation prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from softrepa_pipeline.evaluation.benchmark import Prompts
from softrepa_pipeline.evaluation.generation import Model
from softrepa_pipeline.evaluation.scorers import NotMeasured
from softrepa_pipeline.evaluation.statistics import paired_intervals
from softrepa_pipeline.evaluation.studio import Studio


def trace_curves(
    prompts: Prompts,
    base: Model,
    soft: Model,
    guidance_scales: Sequence[float],
    strengths: Sequence[float],
    guidance: float,
    studio: Studio,
) -> dict[str, list[dict[str, Any]]]:
    """Three curves of points: the base's and the soft tokens' along guidance, and one along strength at `guidance`.

    Strength 0 is the base. A point has the first scorer's mean with its interval, and every set measure that could be
    taken; without prompts there are no points.
    """
    if not prompts.prompts:
        return {}
    return {
        "base": [_point(prompts, base, scale, studio, f"base: guidance {scale:g}") for scale in guidance_scales],
        "soft": [_point(prompts, soft, scale, studio, f"soft: guidance {scale:g}") for scale in guidance_scales],
        "strength": [
            _point(prompts, _at(soft, strength), guidance, studio, f"strength {strength:g}") for strength in strengths
        ],
    }


def _at(model: Model, strength: float) -> Model:
    """The model at a strength; at 0 the tokens do nothing, and the images are the base's."""
    if strength == 0:
        return replace(model, tokens=None)
    return replace(model, strength=replace(model.strength, value=strength))


def _point(prompts: Prompts, model: Model, guidance: float, studio: Studio, label: str) -> dict[str, Any]:
    images = studio.draw(model, prompts, guidance, label)
    scores = studio.measures.decide(prompts, images)
    alignment, _ = paired_intervals(np.zeros_like(scores), scores, prompts.tasks)
    distances = studio.measures.distances(prompts, images)
    return {
        "guidance": guidance,
        "strength": model.strength.value if model.tokens is not None else 0.0,
        "alignment": asdict(alignment),
        "distances": {name: own for name, own in distances.items() if not isinstance(own, NotMeasured)},
    }
