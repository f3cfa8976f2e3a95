"""The published algorithms written out on diffusers' own modules, without hooks: what the real thing must equal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softrepa_pipeline.backbones import Backbone, Noised, Prompt
from softrepa_pipeline.soft_tokens import SoftTokens


def plain_forward(backbone: Backbone, noised: Noised, prompt: Prompt, tokens: SoftTokens) -> Tensor:
    if backbone.family == "sd3":
        return _plain_sd3(backbone.denoiser, noised, prompt, tokens)
    return _plain_unet(backbone, noised, prompt, tokens)


def _plain_sd3(model: nn.Module, noised: Noised, prompt: Prompt, tokens: SoftTokens) -> Tensor:
    """Tokens before each chosen block, the former ones removed first."""
    image = model.pos_embed(noised.sample)
    embedding = model.time_text_embed(noised.timestep, prompt.pooled)
    text = model.context_embedder(prompt.states)
    soft, layers, size = tokens(noised.timestep).to(text.dtype), tokens.config.layers, tokens.config.num_tokens
    for index, block in enumerate(model.transformer_blocks):
        is_chosen = str(index) in layers
        if is_chosen:
            text = torch.cat([soft[layers.index(str(index))], text], dim=1)
        text, image = block(hidden_states=image, encoder_hidden_states=text, temb=embedding)
        if is_chosen and text is not None:
            text = text[:, size:]
    patches = model.proj_out(model.norm_out(image, embedding))
    size = model.config.patch_size
    height, width = (length // size for length in noised.sample.shape[2:])
    patches = patches.view(len(image), height, width, size, size, model.config.out_channels)
    return torch.einsum("nhwpqc->nchpwq", patches).reshape(noised.sample.shape)


def _plain_unet(backbone: Backbone, noised: Noised, prompt: Prompt, tokens: SoftTokens) -> Tensor:
    """Tokens right after BOS in the context of whole stages, the same for all their layers."""
    unet, text, batch = backbone.denoiser, prompt.states, len(noised.sample)
    embedding = unet.time_embedding(unet.time_proj(noised.timestep).to(text.dtype))
    if prompt.pooled is not None:
        side = float(noised.sample.shape[-1] * backbone.pipeline.vae_scale_factor)
        sizes = torch.tensor([[side, side, 0, 0, side, side]], device=text.device).repeat(batch, 1)
        embedding = embedding + unet.get_aug_embed(embedding, text, {"text_embeds": prompt.pooled, "time_ids": sizes})
    (soft,) = tokens(noised.timestep.float()).to(text.dtype)
    longer = torch.cat([text[:, :1], soft, text[:, 1:]], dim=1)
    context = {stage: longer if stage in tokens.config.layers else text for stage in ("down", "mid", "up")}
    image = unet.conv_in(noised.sample)
    kept = [image]
    for block in unet.down_blocks:
        image, states = block(image, embedding, encoder_hidden_states=context["down"])
        kept += states
    image = unet.mid_block(image, embedding, encoder_hidden_states=context["mid"])
    for block in unet.up_blocks:
        size = len(block.resnets)
        image = block(image, tuple(kept[-size:]), embedding, encoder_hidden_states=context["up"])
        kept = kept[:-size]
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(image)))
