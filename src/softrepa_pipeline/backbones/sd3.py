"""Stable Diffusion 3 (MMDiT, flow matching): tokens are prepended to the text stream before chosen joint blocks."""

from __future__ import annotations

from typing import final

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from softrepa_pipeline.backbones.base import Backbone, Noised, Prompt
from softrepa_pipeline.backbones.injection import Sites

_NUM_TIMESTEPS = 1000
_BLOCK_ARGUMENTS = {"hidden_states": 0, "encoder_hidden_states": 1, "temb": 2, "joint_attention_kwargs": 3}


@final
class SD3Backbone(Backbone):
    """SD3 medium and models of its shape, T5 optional."""

    family = "sd3"

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        self.pipeline = pipeline
        for component in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            component.requires_grad_(False).eval()
        # Without T5 the stock pipeline would add 256 zero tokens to every caption.
        self.call_options = {"max_sequence_length": 256 if pipeline.text_encoder_3 is not None else 0}

    @property
    def denoiser(self) -> nn.Module:
        return self.pipeline.transformer

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mean
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    @torch.no_grad()
    def encode_prompts(self, captions: list[str]) -> Prompt:
        states, _, pooled, _ = self.pipeline.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False, **self.call_options
        )
        return Prompt(states, pooled)

    def noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Noised:
        """x_t = (1 − σ) x_0 + σ ε with σ = t / 1000; target ε − x_0 (rectified flow)."""
        sigma = (timestep / _NUM_TIMESTEPS).to(latents.dtype)[:, None, None, None]
        return Noised((1 - sigma) * latents + sigma * noise, noise - latents, timestep)

    def predict(self, noised: Noised, prompt: Prompt) -> Tensor:
        output = self.denoiser(
            hidden_states=noised.sample,
            timestep=noised.timestep,
            encoder_hidden_states=prompt.states,
            pooled_projections=prompt.pooled,
            return_dict=False,
        )
        return output[0]

    def sites(self, layers: tuple[int, ...]) -> Sites:
        blocks = tuple(self.pipeline.transformer.transformer_blocks)
        for layer in layers:
            if not 0 <= layer < len(blocks):
                raise ValueError(f"layers: this SD3 has blocks 0 to {len(blocks) - 1}, so there is no layer {layer}")
        width = self.pipeline.transformer.config.caption_projection_dim
        return Sites(blocks, layers, width, "joint_attention_kwargs", _BLOCK_ARGUMENTS, text_persists=True)
