"""Drawing with a base model, with or without soft tokens, through its stock diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.randomness import torch_generator


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn; `seeds_per_prompt` images a prompt."""

    num_inference_steps: int
    batch_size: int
    seeds_per_prompt: int = 1
    seed: int = 0


def draw(
    backbone: Backbone, prompts: Sequence[str], config: SamplingConfig, guidance: float, label: str = "drawing"
) -> np.ndarray:
    """Draw images (prompts, seeds, height, width, 3), uint8, at one classifier-free guidance scale.

    Each image's noise is a function of (seed, prompt, index) alone, so that two models get the same noise.
    """
    work = [(prompt, index) for prompt in prompts for index in range(config.seeds_per_prompt)]
    images = []
    for start in tqdm(range(0, len(work), config.batch_size), desc=label, mininterval=2, leave=False):
        images.append(_draw_batch(backbone, work[start : start + config.batch_size], config, guidance))
    drawn = np.concatenate(images)
    return drawn.reshape(len(prompts), config.seeds_per_prompt, *drawn.shape[1:])


@torch.no_grad()
def _draw_batch(backbone: Backbone, work: list[tuple[str, int]], config: SamplingConfig, guidance: float) -> np.ndarray:
    output = backbone.pipeline(
        prompt=[prompt for prompt, _ in work],
        guidance_scale=guidance,
        num_inference_steps=config.num_inference_steps,
        generator=[torch_generator(config.seed, f"image {prompt}", index) for prompt, index in work],
        output_type="np",
        **backbone.call_options,
    )
    return np.rint(output.images * 255).astype(np.uint8)
