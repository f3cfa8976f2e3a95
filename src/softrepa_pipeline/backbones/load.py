"""Loading of a frozen base model from a local diffusers folder or a hub id."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline

from softrepa_pipeline.backbones.base import Backbone
from softrepa_pipeline.backbones.sd3 import SD3Backbone

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelConfig:
    """Which base model: a local folder or a hub id, with the hub's revision and variant where wanted."""

    family: str
    base: str
    dtype: str = "float32"
    device: str = "cpu"
    revision: str | None = None
    variant: str | None = None
    local_files_only: bool = False

    def __post_init__(self) -> None:
        if self.family not in _BACKBONES:
            raise ValueError(f"model.family must be one of {', '.join(_BACKBONES)}, not {self.family!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")


_BACKBONES: dict[str, tuple[type[DiffusionPipeline], Callable[[Any], Backbone]]] = {
    "sd3": (StableDiffusion3Pipeline, SD3Backbone),
}


def load_backbone(config: ModelConfig) -> Backbone:
    """Load and freeze a base model.

    Raises:
        FileNotFoundError: `base` looks like a folder and is not there.
        ValueError: the folder holds another kind of pipeline.
    """
    pipeline_class, backbone_class = _BACKBONES[config.family]
    index = _model_index(config)
    options: dict[str, Any] = {}
    if index is not None:
        found = index.get("_class_name")
        if found != pipeline_class.__name__:
            raise ValueError(f"{config.base} holds a {found}; family {config.family} needs a {pipeline_class.__name__}")
        # A pipeline saved without T5 opens only when told again that there is none.
        absent = [name for name, value in index.items() if name.endswith("_3") and value == [None, None]]
        options = dict.fromkeys(absent)
    pipeline = pipeline_class.from_pretrained(
        config.base,
        dtype=DTYPES[config.dtype],
        revision=config.revision,
        variant=config.variant,
        local_files_only=config.local_files_only or index is not None,
        **options,
    )
    pipeline.set_progress_bar_config(disable=True)
    return backbone_class(pipeline.to(config.device))


def _model_index(config: ModelConfig) -> dict[str, Any] | None:
    folder = Path(config.base)
    if folder.is_dir():
        index = folder / "model_index.json"
        if not index.is_file():
            raise FileNotFoundError(
                f"model folder {folder} has no model_index.json; point model.base at a diffusers folder"
            )
        return json.loads(index.read_text())
    if folder.is_absolute() or config.base.startswith("."):
        raise FileNotFoundError(f"no model folder at {folder}; set model.base to a diffusers folder or a hub id")
    return None
