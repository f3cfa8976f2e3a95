"""Evaluation images: each is drawn once and kept by what made it, whoever draws it and in whatever batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from softrepa_pipeline.backbones import Backbone, ModelConfig, load_backbone
from softrepa_pipeline.evaluation.pixels import keep, read_kept
from softrepa_pipeline.inference import SamplingConfig, Strength, add_tokens, draw_batch
from softrepa_pipeline.runners import LocalRunner, Runner
from softrepa_pipeline.soft_tokens import load_soft_tokens
from softrepa_pipeline.stage import source_digest

_NOT_IN_THE_IMAGE = ("batch_size", "seeds_per_prompt", "device", "local_files_only", "licence")
# Newer than images that are kept, whose names must stay.
_NAMED_WHERE_SET = ("resolution",)


@dataclass(frozen=True)
class Model:
    """A base model, alone or with the soft tokens of a file at some strength."""

    base: ModelConfig
    tokens: str | None = None
    strength: Strength = Strength()  # noqa: RUF009 - frozen

    @property
    def conditional_only(self) -> bool:
        return self.tokens is not None and self.strength.conditional_only

    def identity(self) -> dict[str, Any]:
        """What tells it from other models, by content."""
        base = {"digest": source_digest(self.base.base, self.base.revision), **asdict(self.base)}
        # Images are kept that were named before a strength was more than a number.
        strength = self.strength.value if self.strength == Strength(self.strength.value) else asdict(self.strength)
        tokens = None if self.tokens is None else [source_digest(self.tokens), strength]
        return {"base": {name: value for name, value in base.items() if name != "base"}, "tokens": tokens}


@dataclass(frozen=True)
class Work:
    """One image to draw: where to, the prompt, and which of its images it is."""

    file: Path
    prompt: str
    index: int


@contextmanager
def opened(model: Model) -> Iterator[Backbone]:
    """The model, loaded, with its tokens in it for as long as it is open; a process keeps the last base.

    Raises:
        FileNotFoundError: the base or the tokens are not there.
        ValueError: the tokens are damaged or do not fit the base.
    """
    backbone = _base(model.base)
    if model.tokens is None:
        yield backbone
        return
    tokens, _ = load_soft_tokens(Path(model.tokens), model.base.family)
    with add_tokens(backbone, tokens, model.strength):
        yield backbone


@lru_cache(maxsize=1)
def _base(config: ModelConfig) -> Backbone:
    return load_backbone(config)


def generate(
    model: Model,
    prompts: Sequence[str],
    sampling: SamplingConfig,
    guidance: float,
    folder: Path,
    label: str = "drawing",
    runner: Runner = LocalRunner(),  # noqa: B008 - frozen
) -> np.ndarray:
    """Images (prompts, seeds, height, width, 3), uint8: those that lie in `folder` are read, the others drawn and kept.

    An image's noise is a function of (seed, prompt, index) alone, and its file's name of all that makes it. So the
    images do not depend on the batch size (but for rounding) or on the runner. A batch of which an image is missing or
    damaged is drawn again as a whole: then an interruption does not change the rounding either.

    Raises:
        OSError: an image could not be written; those before it are kept.
    """
    made_by = _without({"model": model.identity(), "sampling": asdict(sampling), "guidance": guidance})
    work = [
        Work(folder / f"{_key(made_by, prompt, index)}.png", prompt, index)
        for prompt in prompts
        for index in range(sampling.seeds_per_prompt)
    ]
    images = _read(item.file for item in work)
    distinct = list(dict.fromkeys(work))
    batches = [distinct[start : start + sampling.batch_size] for start in range(0, len(distinct), sampling.batch_size)]
    batches = [batch for batch in batches if any(item.file not in images for item in batch)]
    missing = [item for batch in batches for item in batch if item.file not in images]
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(work), initial=len(work) - len(missing), desc=label, leave=False, disable=not missing) as bar:
        for drawn in runner.map(partial(_draw, model, sampling, guidance, frozenset(missing)), batches):
            bar.update(drawn)
    images |= _read(item.file for item in missing)
    pixels = np.stack([images[item.file] for item in work])
    return pixels.reshape(len(prompts), sampling.seeds_per_prompt, *pixels.shape[1:])


def _draw(model: Model, sampling: SamplingConfig, guidance: float, missing: frozenset[Work], batch: list[Work]) -> int:
    """Draw a batch and keep those images of it that are missing; returns their number."""
    with opened(model) as backbone:
        work = [(item.prompt, item.index) for item in batch]
        images = draw_batch(backbone, work, sampling, guidance, conditional_only=model.conditional_only)
    drawn = [(item, image) for item, image in zip(batch, images, strict=True) if item in missing]
    for item, image in drawn:
        keep(item.file, image)
    return len(drawn)


def _key(made_by: dict[str, Any], prompt: str, index: int) -> str:
    parts = json.dumps({**made_by, "prompt": prompt, "index": index}, sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def _without(values: dict[str, Any]) -> dict[str, Any]:
    """What does not change the image left out, at every level."""
    return {
        name: _without(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in _NOT_IN_THE_IMAGE and not (name in _NAMED_WHERE_SET and value is None)
    }


def _read(files: Iterable[Path]) -> dict[Path, np.ndarray]:
    """Pixels (height, width, 3) of those images that are there and whole."""
    found = ((file, read_kept(file)) for file in files)
    return {file: pixels for file, pixels in found if pixels is not None}
