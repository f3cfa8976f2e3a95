"""Base against soft tokens on the embedded edits, at equal settings, over a sweep of the start step."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.evaluation.editing.benchmark import TrueEdit, draw_edits
from softrepa_pipeline.evaluation.editing.config import EditConfig, check_family
from softrepa_pipeline.evaluation.editing.edit import edit, reconstruct
from softrepa_pipeline.evaluation.editing.measures import peak_signal_to_noise
from softrepa_pipeline.evaluation.generation import Model, opened
from softrepa_pipeline.evaluation.pixels import keep, read_kept
from softrepa_pipeline.shapes.verifier import verify
from softrepa_pipeline.stage import code_digest

ARMS = ("base", "soft")

# What decides how an edited image looks.
_CODE = (
    "backbones",
    *(f"evaluation/editing/{name}" for name in ("edit", "features", "flow", "guidance", "inversion")),
    "noising",
    "randomness",
    "soft_tokens",
)


@dataclass(frozen=True)
class SweepConfig:
    """How many edits are made, how (one entry a method), and the start steps that replace the one of each entry."""

    edits_per_kind: int
    start_steps: tuple[int, ...]
    settings: tuple[EditConfig, ...]

    def __post_init__(self) -> None:
        if self.edits_per_kind < 1:
            raise ValueError(f"edit.edits_per_kind must be 1 or more, not {self.edits_per_kind}")
        if not self.start_steps or list(self.start_steps) != sorted(set(self.start_steps)):
            raise ValueError(f"edit.start_steps must rise, not {list(self.start_steps)}")
        methods = [own.method for own in self.settings]
        if not methods or len(set(methods)) < len(methods):
            raise ValueError(f"edit.methods must name one or more, none twice, not {methods}")
        for own in self.settings:
            for start in self.start_steps:
                replace(own, start_step=start)


@dataclass(frozen=True)
class Outcome:
    """One arm from one start step: images, whether the target's claim holds, and PSNR where nothing may change."""

    images: np.ndarray
    success: np.ndarray
    kept: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """All outcomes by method, arm and start step, and what the autoencoder alone makes of the sources."""

    config: SweepConfig
    edits: list[TrueEdit]
    outcomes: dict[str, dict[str, dict[int, Outcome]]]
    autoencoder: Outcome


def compare(config: SweepConfig, base: ModelConfig, tokens: Path, work: Path) -> Comparison:
    """Edit with the base and with the soft tokens of a file.

    Edited images are kept in `work`, so that a stopped run goes on, and the base's serve all tokens on it.

    Raises:
        ValueError: a method is not for the base's family.
        OSError: images could not be written; those before them are kept.
    """
    for own in config.settings:
        check_family(own.method, base.family)
    edits = draw_edits(config.edits_per_kind, seed=config.settings[0].seed)
    work.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, dict[str, dict[int, Outcome]]] = {own.method: {} for own in config.settings}
    for arm, model in {"base": Model(base), "soft": Model(base, str(tokens))}.items():
        made_by = {"model": model.identity(), "code": code_digest(_CODE)}
        for own in config.settings:
            outcomes[own.method][arm] = {}
            for start in config.start_steps:
                settings = replace(own, start_step=start)
                label = f"{arm}, {own.method} from step {start}"
                images = _edited(model, made_by, edits, settings, work, label)
                outcomes[own.method][arm][start] = _judge(edits, images)
    with opened(Model(base)) as backbone:
        autoencoder = _judge(edits, reconstruct(backbone, _sources(edits)))
    return Comparison(config, edits, outcomes, autoencoder)


def _edited(
    model: Model, made_by: dict[str, Any], edits: list[TrueEdit], settings: EditConfig, work: Path, label: str
) -> np.ndarray:
    """The edited images, from `work` where they are there and whole: one picture, below each other."""
    sources, captions = _sources(edits), [own.captions for own in edits]
    content = hashlib.sha256(sources.tobytes() + repr(captions).encode()).hexdigest()
    parts = json.dumps({**made_by, "settings": asdict(settings), "edits": content}, sort_keys=True)
    file = work / f"{hashlib.sha256(parts.encode()).hexdigest()[:32]}.png"
    column = read_kept(file)
    if column is None:
        with opened(model) as backbone:
            column = np.concatenate(edit(backbone, sources, captions, settings, label))
        keep(file, column)
    return column.reshape(sources.shape)


def _sources(edits: list[TrueEdit]) -> np.ndarray:
    return np.stack([own.image for own in edits])


def _judge(edits: list[TrueEdit], images: np.ndarray) -> Outcome:
    """What the verifier and the masks say of edited images (edits, height, width, 3), uint8."""
    pairs = list(zip(edits, images, strict=True))
    success = np.array([verify(image, own.claim) for own, image in pairs])
    kept = np.array([peak_signal_to_noise(own.image[~own.mask], image[~own.mask]) for own, image in pairs])
    return Outcome(images, success, kept)
