"""Stable Diffusion 1.5 and XL (UNets): tokens join the cross-attention context of chosen transformer blocks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from softrepa_pipeline.backbones.base import Backbone, Noised, Prompt, choose
from softrepa_pipeline.backbones.injection import Sites, asking
from softrepa_pipeline.backbones.sharing import Shareable
from softrepa_pipeline.noising import mix_preserving_variance

_STAGES = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}


class UNetBackbone(Backbone):
    """What the two UNet families share: schedule, prediction target and layers."""

    addition: str | None

    def __init__(self, pipeline: Any, call_options: dict[str, Any] | None = None) -> None:
        super().__init__(pipeline, call_options)
        config = pipeline.unet.config
        if config.in_channels != pipeline.vae.config.latent_channels:
            raise ValueError(
                f"this UNet takes {config.in_channels} channels, but its autoencoder makes "
                f"{pipeline.vae.config.latent_channels} (an inpainting model?); a text-to-image UNet is needed"
            )
        if config.addition_embed_type != self.addition or config.encoder_hid_dim_type is not None:
            raise ValueError(
                f"this UNet has addition_embed_type {config.addition_embed_type!r} and encoder_hid_dim_type "
                f"{config.encoder_hid_dim_type!r}; family {self.family} has {self.addition!r} and None"
            )

    @property
    def denoiser(self) -> nn.Module:
        return self.pipeline.unet

    def noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Noised:
        """x_t at floor(t) of the scheduler's schedule, and the target of its prediction type."""
        table = self.pipeline.scheduler.alphas_cumprod
        # Departure: t = 1000 is the last step for its own sample only; the public code moves the whole batch.
        step = timestep.long().clamp(max=len(table) - 1)
        prediction_type = self.pipeline.scheduler.config.prediction_type
        sample, target = mix_preserving_variance(latents, noise, table[step.cpu()], prediction_type)
        return Noised(sample, target, step)

    @abstractmethod
    def added_conditions(self, noised: Noised, prompt: Prompt) -> dict[str, Tensor] | None:
        """What the UNet is told besides timestep and text states."""

    def predict(
        self, noised: Noised, prompt: Prompt, bank: Tensor | None = None, share: Tensor | None = None
    ) -> Tensor:
        output = self.denoiser(
            noised.sample,
            noised.timestep,
            prompt.states,
            cross_attention_kwargs=asking(bank, share),
            added_cond_kwargs=self.added_conditions(noised, prompt),
            return_dict=False,
        )
        return output[0]

    @property
    @abstractmethod
    def image_modules(self) -> tuple[nn.Module, ...]:
        """What the UNet does before it meets the text."""

    @property
    def shareable(self) -> Shareable:
        attentions: list[Any] = [block.attn2 for block in transformer_blocks(self.denoiser).values()]
        text_maps = tuple(part for attention in attentions for part in (attention.to_k, attention.to_v))
        return Shareable(self.image_modules, text_maps)

    def sites(self, layers: Sequence[str | int]) -> Sites:
        named = transformer_blocks(self.pipeline.unet)
        names = list(named)
        chosen = choose(names, layers)
        width = self.pipeline.unet.config.cross_attention_dim
        chosen_names = tuple(names[index] for index in chosen)
        blocks = tuple(named.values())
        return Sites(blocks, chosen, chosen_names, width, "cross_attention_kwargs", text_persists=False)


@final
class SD15Backbone(UNetBackbone):
    """SD1.5 and models of its shape."""

    family = "sd15"
    components = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
    addition = None

    @torch.no_grad()
    def encode_prompts(self, captions: list[str]) -> Prompt:
        states, _ = self.pipeline.encode_prompt(captions, self.device, 1, do_classifier_free_guidance=False)
        return Prompt(states, None)

    def added_conditions(self, noised: Noised, prompt: Prompt) -> dict[str, Tensor] | None:
        return None

    @property
    def image_modules(self) -> tuple[nn.Module, ...]:
        unet = self.pipeline.unet
        stage = unet.down_blocks[0]
        modules = (unet.conv_in, stage.resnets[0])
        if not hasattr(stage, "attentions"):
            return modules
        attention = stage.attentions[0]
        block = attention.transformer_blocks[0]
        return (*modules, attention.norm, attention.proj_in, block.norm1, block.attn1, block.norm2, block.attn2.to_q)


@final
class SDXLBackbone(UNetBackbone):
    """SDXL base and models of its shape; images are told to have their own size and no crop, as in the public code."""

    family = "sdxl"
    components = ("unet", "vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    addition = "text_time"

    @torch.no_grad()
    def encode_prompts(self, captions: list[str]) -> Prompt:
        states, _, pooled, _ = self.pipeline.encode_prompt(
            captions, device=self.device, do_classifier_free_guidance=False
        )
        return Prompt(states, pooled)

    def added_conditions(self, noised: Noised, prompt: Prompt) -> dict[str, Tensor] | None:
        assert prompt.pooled is not None
        height, width = (side * self.pipeline.vae_scale_factor for side in noised.sample.shape[-2:])
        size = torch.tensor([height, width, 0, 0, height, width], device=noised.sample.device)
        time_ids = size.to(noised.sample.dtype).expand(len(noised.sample), -1)
        return {"text_embeds": prompt.pooled, "time_ids": time_ids}

    @property
    def image_modules(self) -> tuple[nn.Module, ...]:
        # The pooled text joins the time embedding, which enters every residual block after its first convolution.
        unet = self.pipeline.unet
        first = unet.down_blocks[0].resnets[0]
        return unet.conv_in, first.norm1, first.conv1


def transformer_blocks(unet: nn.Module) -> dict[str, nn.Module]:
    """Every block with cross-attention, in order: `down.0`, `down.1`, …, `mid.0`, …, `up.0`, …"""
    named: dict[str, nn.Module] = {}
    for stage, attribute in _STAGES.items():
        blocks = [module for module in getattr(unet, attribute).modules() if isinstance(module, BasicTransformerBlock)]
        named |= {f"{stage}.{index}": block for index, block in enumerate(blocks)}
    return named
