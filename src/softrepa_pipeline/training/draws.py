"""A step's random draws: noise and timestep of an image are a pure function of the seed and its place in the order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softrepa_pipeline.randomness import torch_generator
from softrepa_pipeline.training.config import FitConfig

if TYPE_CHECKING:
    from jaxtyping import Float

_NUM_TIMESTEPS = 1000


@dataclass(frozen=True)
class Draws:
    """Noise (images, channels, height, width), timesteps in [0, 1000] and 1/q weights (images,) of some images."""

    noise: Tensor
    timestep: Float[Tensor, " images"]
    weight: Float[Tensor, " images"]


def draw_noise(config: FitConfig, positions: range, shape: torch.Size, density: Tensor, part: slice) -> Draws:
    """Noise for latents of `shape` (channels, height, width) at the `part` of these positions.

    With `shared_draws` all images have the first position's. `density` (buckets,) says how often `importance` looks at
    each equal bucket of timesteps.
    """
    origins = [positions[0] if config.shared_draws else position for position in positions[part]]
    noise = torch.stack([_noise(config, position, shape) for position in origins])
    share = torch.cat([torch.rand(1, generator=torch_generator(config.seed, "timestep", p)) for p in origins])
    return Draws(noise, *place(config, share, density))


def place(config: FitConfig, share: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Timesteps in the configured range for uniform shares in [0, 1), with the weights that keep the mean's value.

    `logit_normal` is σ(N(0, 1)) (Stable Diffusion 3, arXiv 2403.03206), a choice of what to train on and so weighted 1.
    """
    low, high = config.timestep_range
    if config.timesteps == "importance":
        return _by_density(low, high, share, density)
    if config.timesteps == "logit_normal":
        share = torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6)).sigmoid()
    return low + share * (high - low), torch.ones_like(share)


def uniform_mass(config: FitConfig, num_buckets: int) -> Tensor:
    """The share (buckets,) of the configured range of timesteps that each equal bucket of [0, 1000] covers."""
    low, high = config.timestep_range
    edges = torch.arange(num_buckets + 1) * _NUM_TIMESTEPS / num_buckets
    return (edges[1:].clamp(low, high) - edges[:-1].clamp(low, high)) / (high - low)


def _by_density(low: float, high: float, share: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    edges = (torch.arange(len(density) + 1) * _NUM_TIMESTEPS / len(density)).clamp(low, high)
    widths = edges[1:] - edges[:-1]
    ends = density.cumsum(0)
    bucket = torch.searchsorted(ends, share, right=True).clamp(max=int(density.nonzero().max()))
    within = ((share - (ends - density)[bucket]) / density[bucket]).clamp(0, 1)
    uniform = widths / (high - low)
    return edges[bucket] + within * widths[bucket], uniform[bucket] / density[bucket]


def _noise(config: FitConfig, position: int, shape: torch.Size) -> Tensor:
    noise = torch.randn(shape, generator=torch_generator(config.seed, "noise", position))
    if config.noise_offset:
        generator = torch_generator(config.seed, "noise offset", position)
        noise += config.noise_offset * torch.randn((shape[0], 1, 1), generator=generator)
    return noise
