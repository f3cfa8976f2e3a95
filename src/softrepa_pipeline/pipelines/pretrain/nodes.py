"""Node that trains the embedded models from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softrepa_pipeline.config import build
from softrepa_pipeline.shapes.base_models import PretrainConfig, pretrain


def pretrain_models(parameters: dict[str, Any], folders: dict[str, str]) -> dict[str, Any]:
    """Train the embedded autoencoder, CLIP and SD3-shaped base; hours on two cores, resumable."""
    config = build(PretrainConfig, parameters, "pretrain")
    return pretrain(config, Path(folders["pretraining"]) / config.family, Path(folders["embedded_models"]))
