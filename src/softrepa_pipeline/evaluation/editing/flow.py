"""FlowEdit (arXiv 2412.08629): an image moves along the difference of two velocities, without inversion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.evaluation.editing.config import Captions, EditConfig
from softrepa_pipeline.evaluation.editing.guidance import encode, guided
from softrepa_pipeline.randomness import torch_generator

if TYPE_CHECKING:
    from softrepa_pipeline.evaluation.editing.guidance import Latents


def flow_edit(backbone: Backbone, source: Latents, captions: Sequence[Captions], config: EditConfig) -> Latents:
    """dz = (v(z + x_t − x, t, target) − v(x_t, t, source)) dt from z = x; x_t = (1 − σ) x + σ ε, a new ε each step.

    What moves is the difference z − x, so that equal captions and guidance leave the source as it is, bit for bit.
    """
    conditions = encode(backbone, captions)
    scheduler = type(backbone.pipeline.scheduler).from_config(backbone.pipeline.scheduler.config)
    scheduler.set_timesteps(config.num_steps)
    difference = torch.zeros_like(source)
    for step in range(config.start_step, config.num_steps):
        timestep = scheduler.timesteps[step].item()
        moments = torch.full((len(source),), timestep, device=source.device)
        noised = backbone.noise(source, _noise(source, captions, config.seed, step), moments).sample
        here = guided(backbone, noised, timestep, conditions, conditions.source, config.source_guidance)
        there = guided(backbone, noised + difference, timestep, conditions, conditions.target, config.target_guidance)
        difference += (scheduler.sigmas[step + 1] - scheduler.sigmas[step]).item() * (there - here)
    return source + difference


def _noise(source: Latents, captions: Sequence[Captions], seed: int, step: int) -> Tensor:
    """Each edit's own noise, whatever it shares a batch with."""
    rows = [
        torch.randn(source.shape[1:], generator=torch_generator(seed, f"edit {own.source} → {own.target}", step))
        for own in captions
    ]
    return torch.stack(rows).to(source)
