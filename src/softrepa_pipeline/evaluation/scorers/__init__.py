"""Scorers by name, behind one interface: `score(prompts, images)` gives one number an image."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from softrepa_pipeline.evaluation.scorers.aesthetic import Aesthetic
from softrepa_pipeline.evaluation.scorers.base import NotMeasured, Scorer, ScorerConfig, Scores, score_images
from softrepa_pipeline.evaluation.scorers.clip import ClipScore, PickScore
from softrepa_pipeline.evaluation.scorers.geneval import GenEval
from softrepa_pipeline.evaluation.scorers.hps import HpsV21
from softrepa_pipeline.evaluation.scorers.image_reward import ImageReward
from softrepa_pipeline.evaluation.scorers.verifier import WorldVerifier
from softrepa_pipeline.evaluation.scorers.vqa import VqaScore
from softrepa_pipeline.evaluation.scorers.weights import MissingWeightsError

logger = logging.getLogger(__name__)

# Scorers that read the prompt itself.
SCORERS: dict[str, Callable[[ScorerConfig], Scorer]] = {
    "clip_score": ClipScore,
    "pick_score": PickScore,
    "hps_v2_1": HpsV21,
    "image_reward": ImageReward,
    "vqa_score": VqaScore,
    "aesthetic": Aesthetic,
}
# Scorers that judge by what a prompt asks for, which is given to them prompt by prompt.
JUDGES: dict[str, Callable[[ScorerConfig, Mapping[str, Any]], Scorer]] = {
    "verifier": WorldVerifier,
    "geneval": GenEval,
}

__all__ = ["NotMeasured", "Scorer", "ScorerConfig", "Scores", "load_scorers", "score_images"]


def load_scorers(configs: Sequence[ScorerConfig], truths: Mapping[str, Any]) -> dict[str, Scorer | NotMeasured]:
    """Load the scorers asked for; one whose weights are missing is marked as not measured and the others go on.

    `truths` says by prompt what it asks for: a claim of the embedded world, or GenEval's request.

    Raises:
        ValueError: there is no scorer of that name.
    """
    for config in configs:
        if config.name not in {**SCORERS, **JUDGES}:
            known = [*SCORERS, *JUDGES]
            near = difflib.get_close_matches(config.name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown scorer {config.name!r}; did you mean {near}? Known: {', '.join(known)}")
    return {config.name: _load(config, truths) for config in configs}


def _load(config: ScorerConfig, truths: Mapping[str, Any]) -> Scorer | NotMeasured:
    try:
        return JUDGES[config.name](config, truths) if config.name in JUDGES else SCORERS[config.name](config)
    except MissingWeightsError as error:
        logger.warning("%s is not measured: %s", config.name, error)
        return NotMeasured(str(error))
