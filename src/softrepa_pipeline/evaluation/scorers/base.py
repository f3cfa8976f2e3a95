"""What a scorer is: prompts and images in, one number an image out; its weights are named and its cost is measured."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm


@dataclass(frozen=True)
class ScorerConfig:
    """A scorer by name; `model` is a folder or a hub id; what is left out is the default that docs/metrics.md lists."""

    name: str
    model: str | None = None
    revision: str | None = None
    device: str = "cpu"
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size of scorer {self.name} must be at least 1, not {self.batch_size}")


@dataclass(frozen=True)
class NotMeasured:
    """In the place of a result: why there is none, and what to do about it."""

    reason: str


@dataclass(frozen=True)
class Scores:
    """Scores (images,), what gave them (a model's folder or hub id and revision), and what one image cost.

    Tables show them times `scale`.
    """

    values: np.ndarray
    model: str
    seconds_per_image: float
    scale: float = 1.0


class Scorer(ABC):
    """Scores images against their prompts; `model` says which weights do it. Tables show its scores times `scale`."""

    scale: ClassVar[float] = 1.0

    def __init__(self, config: ScorerConfig, model: str) -> None:
        self.name, self.device, self.batch_size, self.model = config.name, config.device, config.batch_size, model

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
        """Scores (images,), float64; the prompt at an image's place is its own.

        Raises:
            ValueError: there are not as many prompts as images.
        """
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts for {len(images)} images: each image needs its own")
        starts = tqdm(range(0, len(images), self.batch_size), desc=self.name, mininterval=2, leave=False)
        batches = [slice(start, start + self.batch_size) for start in starts]
        with torch.inference_mode():
            parts = [
                self.score_batch(prompts[batch], [image.convert("RGB") for image in images[batch]]) for batch in batches
            ]
        return np.concatenate([np.zeros(0), *parts])

    @abstractmethod
    def score_batch(self, prompts: Sequence[str], images: list[Image.Image]) -> np.ndarray:
        """Scores (images,) of one batch of RGB images."""


def score_images(
    scorers: Mapping[str, Scorer | NotMeasured], prompts: Sequence[str], images: Sequence[Image.Image]
) -> dict[str, Scores | NotMeasured]:
    """Every scorer's scores by its name; what could not be loaded stays marked as not measured."""
    results: dict[str, Scores | NotMeasured] = {}
    for name, scorer in scorers.items():
        if isinstance(scorer, NotMeasured):
            results[name] = scorer
            continue
        started = time.perf_counter()
        values = scorer.score(prompts, images)
        seconds = (time.perf_counter() - started) / max(len(images), 1)
        results[name] = Scores(values, scorer.model, seconds, scorer.scale)
    return results
