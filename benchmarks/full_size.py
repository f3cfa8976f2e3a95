"""The public architectures at full size: their configurations, as far as they differ from diffusers' defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import nn

from softrepa_pipeline.backbones import BACKBONES, Backbone, ModelConfig, load_backbone
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig
from softrepa_pipeline.training import PRESETS
from softrepa_pipeline.training.methods import METHODS, Method

LATENT_CHANNELS = {"sd15": 4, "sdxl": 4, "sd3": 16}
TEXT = {"sd15": (77, 768), "sdxl": (77, 2048), "sd3": (77, 4096)}
POOLED = {"sdxl": 1280, "sd3": 2048}

CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "sd15": (UNet2DConditionModel, {"sample_size": 64, "cross_attention_dim": 768}),
    "sdxl": (
        UNet2DConditionModel,
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "sd3": (
        SD3Transformer2DModel,
        {
            "sample_size": 128,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        },
    ),
}


def full_size(family: str, folder: Path) -> Backbone:
    """An embedded pipeline with a full-size denoiser in it, on the meta device."""
    model_class, config = CONFIGS[family]
    with torch.device("meta"):
        denoiser = model_class(**config)
    pipeline = load_backbone(ModelConfig(family, str(folder))).pipeline
    setattr(pipeline, "transformer" if family == "sd3" else "unet", denoiser)
    pipeline.vae.register_to_config(latent_channels=LATENT_CHANNELS[family])
    return BACKBONES[family][1](pipeline)


def fill(denoiser: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Give a denoiser from the meta device random weights."""
    denoiser.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for values in (*denoiser.parameters(), *denoiser.buffers()):
            values.normal_(0, 0.02)


def published_tokens(backbone: Backbone, objective: str = "softrepa") -> Method:
    """Tokens of the published layout, as the objective trains them."""
    settings = PRESETS["published", backbone.family, objective].settings
    sites = backbone.sites(settings.layers)
    layers = tuple(map(str, settings.layers)) if settings.shared else sites.names
    config = SoftTokensConfig(layers, settings.num_tokens, sites.width, settings.num_buckets, settings.shared)
    return METHODS[objective](SoftTokens(config), settings)
