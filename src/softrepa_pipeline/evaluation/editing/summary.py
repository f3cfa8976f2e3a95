"""What a comparison comes to, as it is written to edit.json."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from softrepa_pipeline.evaluation.editing.benchmark import TrueEdit
from softrepa_pipeline.evaluation.editing.compare import ARMS, Comparison, Outcome
from softrepa_pipeline.evaluation.editing.config import EditConfig
from softrepa_pipeline.evaluation.editing.front import Curve, front_gain
from softrepa_pipeline.evaluation.editing.measures import ClipScorer, Distance, measure
from softrepa_pipeline.evaluation.statistics import paired_intervals


def summarise(
    comparison: Comparison, score_clip: ClipScorer | None = None, structure: Distance | None = None
) -> dict[str, Any]:
    """Means and 95 % intervals of both arms and of their differences, by method and start step."""
    edits, ceiling = comparison.edits, comparison.autoencoder
    return {
        "num_edits": len(edits),
        "autoencoder": {"success": float(ceiling.success.mean()), "kept": float(ceiling.kept.mean())},
        "methods": {
            own.method: _method(own, comparison.outcomes[own.method], edits, score_clip, structure)
            for own in comparison.config.settings
        },
    }


def _method(
    settings: EditConfig,
    outcomes: dict[str, dict[int, Outcome]],
    edits: list[TrueEdit],
    score_clip: ClipScorer | None,
    structure: Distance | None,
) -> dict[str, Any]:
    kinds = [own.kind for own in edits]
    points = []
    for start in outcomes["base"]:
        base, soft = (outcomes[arm][start] for arm in ARMS)
        point: dict[str, Any] = {"start_step": start}
        for name, own in (("base", base), ("soft", soft)):
            point[name] = {"success": _interval(own.success, kinds), "kept": _interval(own.kept, kinds)}
            point[name]["measures"] = _measured(edits, own.images, score_clip, structure)
        point["delta"] = {
            "success": _interval(soft.success, kinds, base.success),
            "kept": _interval(soft.kept, kinds, base.kept),
        }
        points.append(point)
    base_curve, soft_curve = (_curve(list(outcomes[arm].values())) for arm in ARMS)
    shared = {name: value for name, value in asdict(settings).items() if name != "start_step"}
    return {
        "settings": shared,
        "points": points,
        "front": front_gain(base_curve, soft_curve, kinds, list(outcomes["base"])),
    }


def _curve(outcomes: list[Outcome]) -> Curve:
    return Curve(np.stack([own.success for own in outcomes]), np.stack([own.kept for own in outcomes]))


def _interval(values: np.ndarray, kinds: list[str], against: np.ndarray | None = None) -> dict[str, Any]:
    """Mean of the values, or of their differences, with its interval, in all and by kind."""
    start = np.zeros(values.shape) if against is None else against.astype(float)
    total, by_kind = paired_intervals(start[:, None], values[:, None].astype(float), kinds)
    return {**asdict(total), "kinds": {kind: asdict(interval) for kind, interval in by_kind.items()}}


def _measured(
    edits: list[TrueEdit], images: np.ndarray, score_clip: ClipScorer | None, structure: Distance | None
) -> dict[str, float | None]:
    """Means of PIE-Bench's measures; None for what is not measured."""
    sources, masks = np.stack([own.image for own in edits]), np.stack([own.mask for own in edits])
    captions = [own.captions.target for own in edits]
    found = measure(sources, images, captions, masks, score_clip, structure)
    return {name: None if values is None else float(values.mean()) for name, values in found.items()}
