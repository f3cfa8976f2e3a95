"""Drawing with a base model, with or without soft tokens, through its stock diffusers pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from tqdm import tqdm

from softrepa_pipeline.backbones import ALL_TIMESTEPS, Backbone, Injection, ModelConfig, asking, inject, load_backbone
from softrepa_pipeline.randomness import torch_generator
from softrepa_pipeline.soft_tokens import SoftTokens, load_soft_tokens

# For the UNets' noise levels; SD3 has its own kind.
SCHEDULERS = {"ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn; `seeds_per_prompt` images a prompt, by a scheduler of SCHEDULERS or the base's own.

    `resolution` is the images' side in pixels, null the base's own.
    """

    num_inference_steps: int
    batch_size: int
    seeds_per_prompt: int = 1
    seed: int = 0
    scheduler: str | None = None
    resolution: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_inference_steps", "batch_size", "seeds_per_prompt", "resolution"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"sampling.{name} must be at least 1, not {value}")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            names = ", ".join(SCHEDULERS)
            raise ValueError(f"sampling.scheduler must be null or one of {names}, not {self.scheduler!r}")


@dataclass(frozen=True)
class Strength:
    """How strongly tokens act while images are drawn: `value` at timesteps in `timestep_range`, 0 at others.

    With `conditional_only` guidance's other branch, of the empty or the negative prompt, is the base's own; the paper
    has the tokens in both (arXiv 2503.08250).
    """

    value: float = 1.0
    timestep_range: tuple[float, float] = ALL_TIMESTEPS
    conditional_only: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.timestep_range[0] < self.timestep_range[1] <= ALL_TIMESTEPS[1]:
            raise ValueError(f"strength.timestep_range must lie in [0, 1000], not {self.timestep_range}")


def as_strength(value: float | Strength) -> Strength:
    """A bare number is a strength at all timesteps, in both branches."""
    return value if isinstance(value, Strength) else Strength(value)


def load_pipeline(
    base: str | Path, tokens: str | Path, strength: float | Strength = 1.0, **options: Any
) -> DiffusionPipeline:
    """A stock diffusers pipeline of `base` with the soft tokens of a file in it.

    Its attribute `soft_tokens` is the handle: `pipeline.soft_tokens.strength = 0.5`, `pipeline.soft_tokens.remove()`.
    `options` are those of `backbones.ModelConfig`: dtype, device, revision, variant, local_files_only, vae, t5.

    Raises:
        FileNotFoundError: the file or the model's folder is not there.
        ValueError: the file is damaged, its tokens do not fit the model, or `strength` is for one branch alone, which
            each call must ask for (docs/using-tokens.md).
    """
    if as_strength(strength).conditional_only:
        raise ValueError("a pipeline's calls ask for the conditional branch alone themselves: docs/using-tokens.md")
    loaded, metadata = load_soft_tokens(Path(tokens))
    backbone = load_backbone(ModelConfig(metadata["family"], str(base), **options))
    pipeline = backbone.pipeline
    pipeline.soft_tokens = add_tokens(backbone, loaded, strength)
    pipeline.set_progress_bar_config(disable=False)
    return pipeline


def add_tokens(backbone: Backbone, tokens: SoftTokens, strength: float | Strength = 1.0) -> Injection:
    """Put soft tokens into the layers that they were trained for; `conditional_only` is for `draw_batch` to see to."""
    sites, own = backbone.sites(tokens.config.layers), as_strength(strength)
    return inject(backbone.denoiser, sites, tokens.to(backbone.device), own.value, own.timestep_range)


def draw(
    backbone: Backbone,
    prompts: Sequence[str],
    config: SamplingConfig,
    guidance: float,
    label: str = "drawing",
    negative_prompt: str | None = None,
    conditional_only: bool = False,
) -> np.ndarray:
    """Draw images (prompts, seeds, height, width, 3), uint8, at one classifier-free guidance scale, as `draw_batch`.

    Each image's noise is a function of (seed, prompt, index) alone, so that two models get the same noise.
    """
    work = [(prompt, index) for prompt in prompts for index in range(config.seeds_per_prompt)]
    images = []
    for start in tqdm(range(0, len(work), config.batch_size), desc=label, mininterval=2, leave=False):
        batch = work[start : start + config.batch_size]
        images.append(draw_batch(backbone, batch, config, guidance, negative_prompt, conditional_only))
    drawn = np.concatenate(images)
    return drawn.reshape(len(prompts), config.seeds_per_prompt, *drawn.shape[1:])


@torch.no_grad()
def draw_batch(
    backbone: Backbone,
    work: Sequence[tuple[str, int]],
    config: SamplingConfig,
    guidance: float,
    negative_prompt: str | None = None,
    conditional_only: bool = False,
) -> np.ndarray:
    """Images (work, height, width, 3), uint8, of prompts, each with the index of one of its images, all at once.

    With `conditional_only`, for which tokens must be injected, they act on guidance's conditional branch alone.
    """
    options = {"guidance_scale": guidance, "num_inference_steps": config.num_inference_steps, **backbone.call_options}
    if conditional_only and guidance > 1:
        # diffusers' pipelines run both branches in one call, the unconditional one first.
        share = torch.cat([torch.zeros(len(work)), torch.ones(len(work))])
        options[backbone.sites(()).kwargs_name] = asking(share=share.to(backbone.device))
    if negative_prompt is not None:
        options["negative_prompt"] = [negative_prompt] * len(work)
    if config.resolution is not None:
        options |= {"height": config.resolution, "width": config.resolution}
    with _scheduled(backbone.pipeline, config.scheduler):
        output = backbone.pipeline(
            prompt=[prompt for prompt, _ in work],
            generator=[torch_generator(config.seed, f"image {prompt}", index) for prompt, index in work],
            output_type="np",
            **options,
        )
    return np.rint(output.images * 255).astype(np.uint8)


@contextmanager
def _scheduled(pipeline: Any, name: str | None) -> Iterator[None]:
    """The pipeline with another scheduler for what its own was trained for."""
    own = pipeline.scheduler
    if name is not None:
        pipeline.scheduler = SCHEDULERS[name].from_config(own.config)
    try:
        yield
    finally:
        pipeline.scheduler = own
