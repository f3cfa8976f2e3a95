"""What a frozen text-to-image model must offer to be aligned: four things differ between families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softrepa_pipeline.backbones.injection import Sites


@dataclass(frozen=True)
class Prompt:
    """Encoded captions: text states (captions, length, width) and pooled states (captions, width)."""

    states: Tensor
    pooled: Tensor

    def __getitem__(self, rows: Tensor) -> Prompt:
        return Prompt(self.states[rows], self.pooled[rows])


@dataclass(frozen=True)
class Noised:
    """Noised latents x_t, what the denoiser should predict from them, and their timesteps in [0, 1000]."""

    sample: Float[Tensor, "batch channels height width"]
    target: Float[Tensor, "batch channels height width"]
    timestep: Float[Tensor, " batch"]

    def repeat_interleave(self, times: int) -> Noised:
        parts = (part.repeat_interleave(times, dim=0) for part in (self.sample, self.target, self.timestep))
        return Noised(*parts)


class Backbone(ABC):
    """A frozen diffusion model; its weights never receive a gradient.

    `pipeline` is the stock diffusers pipeline, `call_options` what this model always needs in a call of it.
    """

    family: str
    pipeline: Any
    call_options: dict[str, Any]

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @abstractmethod
    def encode_images(self, pixels: Float[Tensor, "images 3 height width"]) -> Tensor:
        """Latents as the denoiser takes them, from pixels in [−1, 1]."""

    @abstractmethod
    def encode_prompts(self, captions: list[str]) -> Prompt:
        """Text states as the stock pipeline makes them."""

    @abstractmethod
    def noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Noised:
        """Noise latents to timesteps in [0, 1000]; ε has the latents' shape."""

    @abstractmethod
    def predict(self, noised: Noised, prompt: Prompt) -> Tensor:
        """The denoiser's prediction of `noised.target`, with whatever tokens are injected."""

    @abstractmethod
    def sites(self, layers: tuple[int, ...]) -> Sites:
        """The blocks and, of them, those that receive tokens.

        Raises:
            ValueError: a layer does not exist.
        """
