"""Shared fixtures: a tiny random SD3 and a small rendered world."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softrepa_pipeline.backbones import Backbone, ModelConfig, load_backbone
from softrepa_pipeline.shapes.base_models import write_sd3_folder
from softrepa_pipeline.shapes.dataset import WorldConfig, write_world
from softrepa_pipeline.shapes.tiny_models import (
    build_autoencoder,
    build_sd3_transformer,
    build_text_encoder,
    build_tokenizer,
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD3-shaped diffusers folder with random weights."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["a red circle", "two blue squares left of a green triangle"])
    modules = torch.nn.ModuleDict(
        {
            "transformer": build_sd3_transformer(),
            "text_encoder": build_text_encoder(tokenizer),
            "text_encoder_2": build_text_encoder(tokenizer),
        }
    )
    # A fresh MMDiT's last layer is zero: without noise in the weights nothing would depend on the text.
    with torch.no_grad():
        for parameter in modules["transformer"].parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path_factory.mktemp("models") / "sd3"
    write_sd3_folder(modules, build_autoencoder(), tokenizer, folder)
    return folder


@pytest.fixture
def sd3(sd3_folder: Path) -> Backbone:
    return load_backbone(ModelConfig("sd3", str(sd3_folder)))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded world on disk."""
    folder = tmp_path_factory.mktemp("world")
    write_world(WorldConfig(48, 4, 6), folder)
    return folder
