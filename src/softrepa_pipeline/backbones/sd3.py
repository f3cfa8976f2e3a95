"""Stable Diffusion 3 (MMDiT, flow matching): tokens are prepended to the text stream before chosen joint blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from softrepa_pipeline.backbones.base import Backbone, Noised, Prompt, choose
from softrepa_pipeline.backbones.injection import Sites, asking
from softrepa_pipeline.backbones.sharing import Shareable
from softrepa_pipeline.noising import mix_straight

_NUM_TIMESTEPS = 1000


@final
class SD3Backbone(Backbone):
    """SD3 and SD3.5 medium and models of their shape, T5 optional."""

    family = "sd3"
    components = ("transformer", "vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    @property
    def denoiser(self) -> nn.Module:
        return self.pipeline.transformer

    @torch.no_grad()
    def encode_prompts(self, captions: list[str]) -> Prompt:
        states, _, pooled, _ = self.pipeline.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False, **self.call_options
        )
        return Prompt(states, pooled)

    def noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Noised:
        """x_t = (1 − σ) x_0 + σ ε with σ = t / 1000; target ε − x_0 (rectified flow)."""
        sample, target = mix_straight(latents, noise, timestep / _NUM_TIMESTEPS)
        return Noised(sample, target, timestep)

    def predict(
        self, noised: Noised, prompt: Prompt, bank: Tensor | None = None, share: Tensor | None = None
    ) -> Tensor:
        output = self.denoiser(
            hidden_states=noised.sample,
            timestep=noised.timestep,
            encoder_hidden_states=prompt.states,
            pooled_projections=prompt.pooled,
            joint_attention_kwargs=asking(bank, share),
            return_dict=False,
        )
        return output[0]

    @property
    def shareable(self) -> Shareable:
        # The pooled text is in the modulation of every block, so only what stands before them is the image's alone.
        return Shareable((self.pipeline.transformer.pos_embed,), (self.pipeline.transformer.context_embedder,))

    def sites(self, layers: Sequence[str | int]) -> Sites:
        blocks = tuple(self.pipeline.transformer.transformer_blocks)
        names = [str(index) for index in range(len(blocks))]
        chosen = choose(names, layers)
        width = self.pipeline.transformer.config.caption_projection_dim
        chosen_names = tuple(names[index] for index in chosen)
        return Sites(blocks, chosen, chosen_names, width, "joint_attention_kwargs", text_persists=True)
