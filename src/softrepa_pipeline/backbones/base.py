"""What a frozen text-to-image model must offer to be aligned: four things differ between families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from softrepa_pipeline.backbones.injection import Sites
from softrepa_pipeline.backbones.sharing import Shareable

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Prompt:
    """Encoded captions: text states (captions, length, width); pooled (captions, width) where the family has them."""

    states: Tensor
    pooled: Tensor | None

    def __getitem__(self, rows: Tensor) -> Prompt:
        return Prompt(self.states[rows], None if self.pooled is None else self.pooled[rows])


@dataclass(frozen=True)
class Noised:
    """Noised latents x_t, what the denoiser should predict from them, and their timesteps in [0, 1000]."""

    sample: Float[Tensor, "batch channels height width"]
    target: Float[Tensor, "batch channels height width"]
    timestep: Float[Tensor, " batch"]

    def __getitem__(self, rows: Tensor) -> Noised:
        return Noised(self.sample[rows], self.target[rows], self.timestep[rows])


@torch.no_grad()
def encode_images(vae: Any, pixels: Float[Tensor, "images 3 height width"]) -> Tensor:
    """Latents as a denoiser takes them, from pixels in [−1, 1]: posterior means, shifted and scaled."""
    stored = vae.dtype
    with safe_precision(vae):
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
    return ((latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor).to(stored)


@contextmanager
def safe_precision(vae: Any) -> Iterator[Any]:
    """The autoencoder in a precision that is safe: SDXL's own overflows in half, and its config says so."""
    stored = vae.dtype
    overflows = stored == torch.float16 and vae.config.force_upcast
    if overflows:
        vae.to(torch.float32)
    try:
        yield vae
    finally:
        if overflows:
            vae.to(stored)


class Backbone(ABC):
    """A frozen diffusion model; its weights never receive a gradient.

    `pipeline` is the stock diffusers pipeline, `call_options` what this model always needs in a call of it.

    Raises:
        ValueError: a component that training needs is missing, or the architecture is not supported.
    """

    family: ClassVar[str]
    components: ClassVar[tuple[str, ...]]

    def __init__(self, pipeline: Any, call_options: dict[str, Any] | None = None) -> None:
        self.pipeline = pipeline
        self.call_options = call_options or {}
        for name in self.components:
            if getattr(pipeline, name, None) is None:
                raise ValueError(f"this {type(pipeline).__name__} has no {name}, which family {self.family} needs")
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def encode_images(self, pixels: Float[Tensor, "images 3 height width"]) -> Tensor:
        """As the function of this name, with this model's autoencoder."""
        return encode_images(self.pipeline.vae, pixels)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "images channels height width"]) -> Tensor:
        """Pixels in [−1, 1] (images, 3, height, width), float32, from latents as the denoiser gives them."""
        config = self.pipeline.vae.config
        with safe_precision(self.pipeline.vae) as vae:
            stored = latents / config.scaling_factor + (config.shift_factor or 0.0)
            return vae.decode(stored.to(vae.dtype)).sample.float().clamp(-1, 1)

    @abstractmethod
    def encode_prompts(self, captions: list[str]) -> Prompt:
        """Text states as the stock pipeline makes them."""

    @abstractmethod
    def noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Noised:
        """Noise latents to timesteps in [0, 1000]; ε has the latents' shape."""

    @abstractmethod
    def predict(
        self, noised: Noised, prompt: Prompt, bank: Tensor | None = None, share: Tensor | None = None
    ) -> Tensor:
        """The denoiser's prediction of `noised.target`, with the tokens that are injected.

        `bank` names each pair's; `share` is that of the strength which each pair gets, 0 for the base's prediction.
        """

    @property
    def shareable(self) -> Shareable:
        """What need not be computed anew for each pair of an image and a caption."""
        return Shareable()

    @abstractmethod
    def sites(self, layers: Sequence[str | int]) -> Sites:
        """The blocks and, of them, those that receive tokens.

        Raises:
            ValueError: a layer does not exist or is named twice.
        """


def choose(names: Sequence[str], layers: Sequence[str | int]) -> tuple[int, ...]:
    """Indices of the layers in `names`; a stage's name stands for all of its layers (`down` for `down.0`, `down.1` …).

    Raises:
        ValueError: a layer does not exist or is named twice.
    """
    chosen: list[int] = []
    for layer in layers:
        found = [i for i, name in enumerate(names) if str(layer) in (name, name.rpartition(".")[0])]
        if not found:
            raise ValueError(f"layers: there is no layer {layer}; this denoiser has {names[0]} to {names[-1]}")
        chosen += found
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"layers: {list(layers)} names a layer twice")
    return tuple(chosen)
