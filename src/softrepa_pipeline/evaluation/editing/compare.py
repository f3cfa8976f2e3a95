"""Base against soft tokens on the embedded edits, at equal settings, over a sweep of the start step."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.evaluation.editing.benchmark import TrueEdit, draw_edits
from softrepa_pipeline.evaluation.editing.config import EditConfig
from softrepa_pipeline.evaluation.editing.edit import edit, reconstruct
from softrepa_pipeline.evaluation.editing.front import Curve, front_gains
from softrepa_pipeline.evaluation.editing.measures import ClipScorer, Distance, measure, peak_signal_to_noise
from softrepa_pipeline.evaluation.statistics import paired_intervals
from softrepa_pipeline.inference import add_tokens
from softrepa_pipeline.shapes.verifier import verify
from softrepa_pipeline.soft_tokens import SoftTokens

ARMS = ("base", "soft")


@dataclass(frozen=True)
class SweepConfig:
    """How many edits are made and from which start steps; `settings.start_step` is taken by none of them."""

    edits_per_kind: int
    start_steps: tuple[int, ...]
    settings: EditConfig

    def __post_init__(self) -> None:
        if self.edits_per_kind < 1:
            raise ValueError(f"edit.edits_per_kind must be 1 or more, not {self.edits_per_kind}")
        if not self.start_steps or list(self.start_steps) != sorted(set(self.start_steps)):
            raise ValueError(f"edit.start_steps must rise, not {list(self.start_steps)}")
        for start in self.start_steps:
            replace(self.settings, start_step=start)


@dataclass(frozen=True)
class Outcome:
    """One arm from one start step: images, whether the target's claim holds, and PSNR where nothing may change."""

    images: np.ndarray
    success: np.ndarray
    kept: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """All outcomes by arm and start step, and the summary that is written to edit.json."""

    edits: list[TrueEdit]
    outcomes: dict[str, dict[int, Outcome]]
    summary: dict[str, Any]


def compare(
    config: SweepConfig,
    backbone: Backbone,
    tokens: SoftTokens,
    work: Path,
    score_clip: ClipScorer | None = None,
    structure: Distance | None = None,
) -> Comparison:
    """Edit with the base and with soft tokens; edited images are kept in `work`, where a stopped run goes on."""
    edits = draw_edits(config.edits_per_kind, seed=config.settings.seed)
    sources = np.stack([own.image for own in edits])
    outcomes: dict[str, dict[int, Outcome]] = {}
    for arm in ARMS:
        with add_tokens(backbone, tokens) if arm == "soft" else nullcontext():
            outcomes[arm] = {
                start: _judge(edits, _edited(backbone, edits, sources, config, start, f"{arm}-{start}", work))
                for start in config.start_steps
            }
    ceiling = _judge(edits, reconstruct(backbone, sources))
    return Comparison(edits, outcomes, _summarise(config, edits, outcomes, ceiling, score_clip, structure))


def _edited(
    backbone: Backbone,
    edits: list[TrueEdit],
    sources: np.ndarray,
    config: SweepConfig,
    start: int,
    name: str,
    work: Path,
) -> np.ndarray:
    """The edited images, from `work` where they are there: one picture, below each other."""
    file = work / f"{name}.png"
    if not file.is_file():
        settings = replace(config.settings, start_step=start)
        images = edit(backbone, sources, [own.captions for own in edits], settings, name)
        work.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        Image.fromarray(images.reshape(-1, *images.shape[2:])).save(partial, "PNG")
        os.replace(partial, file)
    return np.asarray(Image.open(file)).reshape(sources.shape)


def _judge(edits: list[TrueEdit], images: np.ndarray) -> Outcome:
    pairs = list(zip(edits, images, strict=True))
    success = np.array([verify(image, own.claim) for own, image in pairs])
    kept = np.array([peak_signal_to_noise(own.image[~own.mask], image[~own.mask]) for own, image in pairs])
    return Outcome(images, success, kept)


def _summarise(
    config: SweepConfig,
    edits: list[TrueEdit],
    outcomes: dict[str, dict[int, Outcome]],
    ceiling: Outcome,
    score_clip: ClipScorer | None,
    structure: Distance | None,
) -> dict[str, Any]:
    kinds = [own.kind for own in edits]
    points = []
    for start in config.start_steps:
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
    curves = {arm: _curve(list(outcomes[arm].values())) for arm in ARMS}
    return {
        "settings": asdict(config.settings),
        "num_edits": len(edits),
        "autoencoder": {"success": float(ceiling.success.mean()), "kept": float(ceiling.kept.mean())},
        "points": points,
        "front": front_gains(curves["base"], curves["soft"], kinds, config.start_steps),
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
