"""The base model's own errors by timestep: what a calibrated temperature and importance sampling follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.objectives import denoising_errors
from softrepa_pipeline.randomness import torch_generator
from softrepa_pipeline.soft_tokens import bucket_of
from softrepa_pipeline.training.config import FitConfig
from softrepa_pipeline.training.data import TrainingSet
from softrepa_pipeline.training.distributed import Group
from softrepa_pipeline.training.draws import Draws, uniform_mass
from softrepa_pipeline.training.loading import StepData, load
from softrepa_pipeline.training.methods import Method

if TYPE_CHECKING:
    from jaxtyping import Float

_NUM_TIMESTEPS = 1000
NUM_BUCKETS = 10
NUM_BATCHES = 2
_LEAST_DENSITY = 0.25  # of the uniform one: bounds the weights 1/q at 4


@dataclass(frozen=True)
class Profile:
    """Means over images for each decile of timesteps (10,): error of the own caption, deviation over captions, weight.

    The weight is Σ_j |∂L_i / ∂err[i, j]|: how much of the objective's gradient a timestep contributes.
    """

    error: Float[Tensor, " buckets"]
    gap: Float[Tensor, " buckets"]
    weight: Float[Tensor, " buckets"]


@dataclass(frozen=True)
class Calibration:
    """τ by timestep and how often each decile is looked at, both (buckets,), and the profile that they come from."""

    temperatures: Tensor
    density: Tensor
    profile: Profile


def calibrate(backbone: Backbone, data: TrainingSet, method: Method, pairs_at_once: int, group: Group) -> Calibration:
    """Measure the model as it stands, and follow it where the configuration asks to.

    Raises:
        ValueError: none of the first images has finite errors.
    """
    config = method.config
    errors, is_candidate = _measure(backbone, data, config, pairs_at_once, group)
    # A damaged image is a guard's business, once training meets it; the temperatures must not know of it.
    is_finite = errors.isfinite().all(dim=2).all(dim=0)
    if not is_finite.any():
        rows = data.candidates(config, range(len(is_finite))).rows.tolist()
        images = ", ".join(data.image_ids[row] for row in rows[:8])
        raise ValueError(
            f"no error of the model is finite on the first images ({images}): look at them, or at its dtype"
        )
    errors, is_candidate = errors[:, is_finite], is_candidate[is_finite]
    gaps = errors.std(dim=2).mean(dim=1) if config.num_candidates > 1 else torch.ones(NUM_BUCKETS)
    temperatures = torch.tensor(config.temperatures)
    if config.calibrated and config.objective == "softrepa":
        middles = torch.arange(NUM_BUCKETS) * _NUM_TIMESTEPS / NUM_BUCKETS
        temperatures = temperatures[bucket_of(middles, len(temperatures))] * gaps
    weights = torch.stack(
        [
            gradient_weight(method, matrix, is_candidate, _temperature(temperatures, bucket))
            for bucket, matrix in enumerate(errors)
        ]
    )
    profile = Profile(errors[:, :, 0].mean(dim=1), gaps, weights)
    return Calibration(temperatures, _density(config, weights), profile)


def gradient_weight(method: Method, errors: Tensor, is_candidate: Tensor, temperature: Tensor) -> Tensor:
    """Mean over images of Σ_j |∂L_i / ∂err[i, j]| at these errors (images, captions), a scalar."""
    errors = errors.detach().requires_grad_()
    ones = torch.ones(len(errors), device=errors.device)
    losses = method.losses(errors, temperature.to(errors.device) * ones, is_candidate)
    (by_error,) = torch.autograd.grad(losses.loss.sum(), errors)
    return by_error.abs().sum(dim=1).mean()


def _density(config: FitConfig, weights: Tensor) -> Tensor:
    """How often each decile is drawn: as its weight asks, but never less than a quarter as often as uniformly."""
    uniform = uniform_mass(config, NUM_BUCKETS)
    wanted = uniform * weights / (uniform * weights).sum()
    return _LEAST_DENSITY * uniform + (1 - _LEAST_DENSITY) * wanted


def _temperature(temperatures: Tensor, bucket: int) -> Tensor:
    middle = torch.tensor([(bucket + 0.5) * _NUM_TIMESTEPS / NUM_BUCKETS])
    return temperatures[bucket_of(middle, len(temperatures))]


def _measure(
    backbone: Backbone, data: TrainingSet, config: FitConfig, pairs_at_once: int, group: Group
) -> tuple[Tensor, Tensor]:
    """Errors (deciles, images, captions) of the first images, whose candidates they are; processes share the work."""
    batches = [config.positions_of(step) for step in range(NUM_BATCHES)]
    is_candidate = torch.cat([data.candidates(config, batch).is_candidate for batch in batches])
    errors = torch.zeros(NUM_BUCKETS, *is_candidate.shape)
    for bucket in range(group.rank, NUM_BUCKETS, group.size):
        for batch in batches:
            draws = _draws(config, data.latent_shape(config, batch), bucket, batch)
            loaded = load(backbone, data, config, batch, draws)
            errors[bucket, batch.start : batch.stop] = pair_errors(backbone, loaded, pairs_at_once).cpu()
    return group.add(errors.to(backbone.device)).cpu(), is_candidate


@torch.no_grad()
def pair_errors(backbone: Backbone, loaded: StepData, pairs_at_once: int) -> Tensor:
    """err[i, j] (images, captions) of everything that was loaded, with the tokens that are injected."""
    ones = torch.ones(1)
    pairs = loaded.rows_at(torch.arange(len(loaded)), ones, share=True).pairs
    parts = [pairs[index] for index in torch.arange(len(pairs)).split(pairs_at_once)]
    errors = [denoising_errors(part.predict(backbone), part.target) for part in parts]
    return torch.cat(errors).view(loaded.text_of.shape)


def _draws(config: FitConfig, shape: torch.Size, bucket: int, positions: range) -> Draws:
    noise, share = [], []
    for position in positions:
        generator = torch_generator(config.seed, "calibration", bucket, position)
        noise.append(torch.randn(shape, generator=generator))
        share.append(torch.rand(1, generator=generator))
    timestep = (bucket + torch.cat(share)) * _NUM_TIMESTEPS / NUM_BUCKETS
    return Draws(torch.stack(noise), timestep, torch.ones(len(positions)))
