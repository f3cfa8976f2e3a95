"""What models are compared on: prompts with what they ask for, and real images for the measures that need some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from softrepa_pipeline.evaluation.prompts import TaskPrompt, prompt_set
from softrepa_pipeline.evaluation.retrieval import draw_distractors
from softrepa_pipeline.evaluation.scorers.geneval_rules import Request
from softrepa_pipeline.shapes.claims import Claim
from softrepa_pipeline.shapes.dataset import read_images, read_prompts
from softrepa_pipeline.shapes.scene import Split

EMBEDDED_WORLD = "shapes"


@dataclass(frozen=True)
class Prompts:
    """Prompts of one split, and real images of what they are about; those may be none."""

    prompts: list[TaskPrompt]
    real: list[Image.Image] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [prompt.text for prompt in self.prompts]

    @property
    def tasks(self) -> list[str]:
        return [prompt.task for prompt in self.prompts]


@dataclass(frozen=True)
class Captioned:
    """Images (images, height, width, 3), uint8, with captions of which the first is an image's own."""

    images: np.ndarray
    captions: list[list[str]]


@dataclass(frozen=True)
class Benchmark:
    """The result is told on `test`; settings are chosen on `validation`, which published sets do not have."""

    name: str
    test: Prompts
    validation: Prompts
    captioned: Captioned | None = None

    @property
    def truths(self) -> dict[str, Claim | Request | None]:
        """What each prompt asks for."""
        return {prompt.text: prompt.truth for split in (self.test, self.validation) for prompt in split.prompts}

    @property
    def claims(self) -> list[Claim] | None:
        """What the test prompts claim of the embedded world; None where they are of another one."""
        claims = [prompt.truth for prompt in self.test.prompts if isinstance(prompt.truth, Claim)]
        return claims if len(claims) == len(self.test.prompts) else None


def embedded_world(
    world: Path, prompts_per_task: int, validation_prompts_per_task: int, images: int, captions: int, seed: int
) -> Benchmark:
    """The embedded world's prompts with their claims and renderings, and `images` with as many `captions` each."""
    truth, prompts = read_images(world, "test", images)
    distractors = draw_distractors(truth, prompts, captions - 1, seed)
    captioned = Captioned(truth, [[own.text, *others] for own, others in zip(prompts, distractors, strict=True)])
    test = _embedded(world, "test", prompts_per_task)
    validation = _embedded(world, "validation", validation_prompts_per_task)
    return Benchmark(EMBEDDED_WORLD, test, validation, captioned)


def published(name: str, folder: Path, prompts_per_task: int) -> Benchmark:
    """The first prompts of each task of a set by its name, or of a file of one prompt a line (`prompts.prompt_set`)."""
    return Benchmark(name, Prompts(_first(prompt_set(name, folder), prompts_per_task)), Prompts([]))


def _embedded(world: Path, split: Split, per_task: int) -> Prompts:
    prompts = [TaskPrompt(own.text, own.claim.task, own.claim) for own in read_prompts(world, split, per_task)]
    real, _ = read_images(world, split, len(prompts))
    return Prompts(prompts, [Image.fromarray(image) for image in real])


def _first(prompts: Sequence[TaskPrompt], per_task: int) -> list[TaskPrompt]:
    """As they stand, but no more of each task."""
    seen: Counter[str] = Counter()
    chosen = []
    for prompt in prompts:
        seen[prompt.task] += 1
        if seen[prompt.task] <= per_task:
            chosen.append(prompt)
    return chosen
