"""The public architectures at full size with random weights: what is trained on them, and that published files fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from softrepa_pipeline.backbones import BACKBONES, Backbone, ModelConfig, Noised, Prompt, load_backbone
from softrepa_pipeline.convert import read_published
from softrepa_pipeline.inference import add_tokens
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig
from softrepa_pipeline.training import PRESETS
from softrepa_pipeline.training.methods import METHODS

PUBLISHED = Path(__file__).parents[3] / "shared/data/softrepa_tokens/tokens"
FOLDERS = {"sd15": "sd1.5", "sdxl": "sdxl", "sd3": "sd3"}
LATENT_CHANNELS = {"sd15": 4, "sdxl": 4, "sd3": 16}
TEXT = {"sd15": (77, 768), "sdxl": (77, 2048), "sd3": (77, 4096)}
POOLED = {"sdxl": 1280, "sd3": 2048}
MILLIONS = {"sd15": 859.5, "sdxl": 2567, "sd3": 2028}
TRAINABLE = {"sd15": 79_872, "sdxl": 8_192, "sd3": 798_720}
NUM_SITES = {"sd15": 6, "sdxl": 34, "sd3": 5}

# The configs of the public repositories, as far as they differ from diffusers' defaults.
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
    """The tiny pipeline with a full-size denoiser in it, on the meta device."""
    model_class, config = CONFIGS[family]
    with torch.device("meta"):
        denoiser = model_class(**config)
    pipeline = load_backbone(ModelConfig(family, str(folder))).pipeline
    setattr(pipeline, "transformer" if family == "sd3" else "unet", denoiser)
    pipeline.vae.register_to_config(latent_channels=LATENT_CHANNELS[family])
    return BACKBONES[family][1](pipeline)


def published_tokens(backbone: Backbone, objective: str = "softrepa") -> nn.Module:
    settings = PRESETS["published", backbone.family, objective].settings
    sites = backbone.sites(settings.layers)
    layers = tuple(map(str, settings.layers)) if settings.shared else sites.names
    config = SoftTokensConfig(layers, settings.num_tokens, sites.width, settings.num_buckets, settings.shared)
    return METHODS[objective](SoftTokens(config), settings)


def call(backbone: Backbone, dtype: torch.dtype, device: str) -> tuple[Noised, Prompt]:
    family = backbone.family
    sample = torch.randn(1, LATENT_CHANNELS[family], 16, 16, dtype=dtype, device=device)
    pooled = torch.randn(1, POOLED[family], dtype=dtype, device=device) if family in POOLED else None
    timestep = torch.tensor([500], device=device)
    return Noised(sample, sample, timestep), Prompt(torch.randn(1, *TEXT[family], dtype=dtype, device=device), pooled)


@pytest.mark.parametrize("family", CONFIGS)
def test_exactly_the_published_numbers_are_trained(family: str, model_folders: dict[str, Path]) -> None:
    backbone = full_size(family, model_folders[family])
    total = sum(parameter.numel() for parameter in backbone.denoiser.parameters()) / 1e6
    assert total == pytest.approx(MILLIONS[family], abs=0.5)
    for objective, times in (("softrepa", 1), ("agsm", 2), ("dsm", 1)):
        method = published_tokens(backbone, objective)
        trainable = [p for module in (backbone.denoiser, method) for p in module.parameters() if p.requires_grad]
        assert sum(parameter.numel() for parameter in trainable) == times * TRAINABLE[family]
        assert method.tokens.num_parameters == TRAINABLE[family] < 1_000_000
    tokens = method.tokens.to("meta")
    assert len(backbone.sites(tokens.config.layers).chosen) == NUM_SITES[family]
    with add_tokens(backbone, tokens):
        noised, prompt = call(backbone, torch.float32, "meta")
        assert backbone.predict(noised, prompt).shape == noised.sample.shape


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
@pytest.mark.parametrize("family", CONFIGS)
def test_published_tokens_change_what_a_full_size_model_predicts(family: str, model_folders: dict[str, Path]) -> None:
    backbone = full_size(family, model_folders[family])
    denoiser = backbone.denoiser.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(0, 0.02)
        for buffer in denoiser.buffers():
            buffer.normal_(0, 0.02)
    noised, prompt = call(backbone, torch.bfloat16, "cpu")
    with torch.no_grad():
        base: Tensor = backbone.predict(noised, prompt)
        with add_tokens(backbone, read_published(family, PUBLISHED / FOLDERS[family])):
            soft = backbone.predict(noised, prompt)
        assert torch.equal(backbone.predict(noised, prompt), base)
    assert torch.isfinite(soft).all()
    assert not torch.equal(soft, base)
