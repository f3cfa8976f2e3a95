"""DDIM inversion (arXiv 2010.02502) and sampling from it, plain or with the source's features (PnP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.evaluation.editing.config import Captions, EditConfig
from softrepa_pipeline.evaluation.editing.features import first_for_all, shared_modules
from softrepa_pipeline.evaluation.editing.guidance import Conditions, encode, guided, predict
from softrepa_pipeline.noising import mix_preserving_variance, separate

if TYPE_CHECKING:
    from softrepa_pipeline.evaluation.editing.guidance import Latents


@dataclass(frozen=True)
class Level:
    """A noise level of a DDIM schedule: the denoiser's timestep and ᾱ."""

    timestep: int
    signal: float


def ddim_levels(backbone: Backbone, num_steps: int) -> list[Level]:
    """The levels between which DDIM moves, from the clean image (level 0) to noise (level `num_steps`)."""
    scheduler = DDIMScheduler.from_config(backbone.pipeline.scheduler.config)
    scheduler.set_timesteps(num_steps)
    clean = Level(0, float(scheduler.final_alpha_cumprod))
    rising = scheduler.timesteps.flip(0).tolist()
    return [clean, *(Level(step, float(scheduler.alphas_cumprod[step])) for step in rising)]


def move(backbone: Backbone, sample: Latents, prediction: Latents, here: Level, there: Level) -> Latents:
    """One step of DDIM with η = 0, in either direction: √ᾱ' x̂_0 + √(1 − ᾱ') ε̂."""
    kind = backbone.pipeline.scheduler.config.prediction_type
    clean, noise = separate(sample, prediction, _signal(sample, here), kind)
    return mix_preserving_variance(clean, noise, _signal(sample, there), kind)[0]


def _signal(sample: Latents, level: Level) -> Tensor:
    return torch.full((len(sample),), level.signal)


def invert(
    backbone: Backbone, source: Latents, conditions: Conditions, levels: list[Level], guidance: float
) -> list[Latents]:
    """The source's latents at every level, each from the one before.

    Departure: the denoiser is told the level that its input has. diffusers' inverse scheduler tells it the next one, at
    which a v prediction would be taken apart wrongly.
    """
    trajectory = [source]
    for here, there in pairwise(levels):
        prediction = guided(backbone, trajectory[-1], here.timestep, conditions, conditions.source, guidance)
        trajectory.append(move(backbone, trajectory[-1], prediction, here, there))
    return trajectory


def edit_by_inversion(backbone: Backbone, source: Latents, captions: Sequence[Captions], config: EditConfig) -> Latents:
    """Invert with the source captions up to the start step's level, then sample with the target captions."""
    conditions = encode(backbone, captions)
    levels = ddim_levels(backbone, config.num_steps)[: config.num_steps - config.start_step + 1]
    trajectory = invert(backbone, source, conditions, levels, config.source_guidance)
    sample = trajectory[-1]
    for index in reversed(range(1, len(levels))):
        moment = levels[index].timestep
        if config.method == "pnp":
            modules = shared_modules(backbone.denoiser, config, config.num_steps - index)
            with first_for_all(modules, 3):
                prediction = _beside_source(backbone, trajectory[index], sample, moment, conditions, config)
        else:
            prediction = guided(backbone, sample, moment, conditions, conditions.target, config.target_guidance)
        sample = move(backbone, sample, prediction, levels[index], levels[index - 1])
    return sample


def _beside_source(
    backbone: Backbone, source: Latents, sample: Latents, moment: int, conditions: Conditions, config: EditConfig
) -> Latents:
    """The guided prediction for `sample`, from a batch whose first third is the source at the same level."""
    rows = torch.cat([conditions.source, conditions.null, conditions.target])
    _, null, own = predict(backbone, torch.cat([source, sample, sample]), moment, conditions, rows).chunk(3)
    return null + config.target_guidance * (own - null)
