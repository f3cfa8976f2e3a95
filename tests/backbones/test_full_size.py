"""The public architectures at full size with random weights: what is trained on them, and that published files fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from full_size import CONFIGS, LATENT_CHANNELS, POOLED, TEXT, fill, full_size, published_tokens
from torch import Tensor

from softrepa_pipeline.backbones import Backbone, Noised, Prompt
from softrepa_pipeline.convert import read_published
from softrepa_pipeline.inference import add_tokens

PUBLISHED = Path(__file__).parents[3] / "shared/data/softrepa_tokens/tokens"
FOLDERS = {"sd15": "sd1.5", "sdxl": "sdxl", "sd3": "sd3"}
MILLIONS = {"sd15": 859.5, "sdxl": 2567, "sd3": 2028}
TRAINABLE = {"sd15": 79_872, "sdxl": 8_192, "sd3": 798_720}
NUM_SITES = {"sd15": 6, "sdxl": 34, "sd3": 5}


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
    fill(backbone.denoiser, torch.bfloat16, "cpu")
    noised, prompt = call(backbone, torch.bfloat16, "cpu")
    with torch.no_grad():
        base: Tensor = backbone.predict(noised, prompt)
        with add_tokens(backbone, read_published(family, PUBLISHED / FOLDERS[family])):
            soft = backbone.predict(noised, prompt)
        assert torch.equal(backbone.predict(noised, prompt), base)
    assert torch.isfinite(soft).all()
    assert not torch.equal(soft, base)
