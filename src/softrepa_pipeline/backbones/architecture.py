"""A base model whose weights or device are not here: built from its configuration, shapes without numbers."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedModel

from softrepa_pipeline.backbones.base import Backbone
from softrepa_pipeline.backbones.load import (
    BACKBONES,
    DTYPES,
    ModelConfig,
    call_options,
    check_family,
    load_backbone,
    model_index,
)


def open_model(config: ModelConfig) -> Backbone:
    """The base model, or where its weights or its device are not here only its architecture, on the meta device.

    Nothing is downloaded: of a hub id the files count that are in the hub's cache on this machine.

    Raises:
        FileNotFoundError: the model's configuration is not here.
        ValueError: the folder holds another kind of pipeline, or one whose architecture is not supported.
    """
    folder = Path(config.base) if model_index(config.base) is not None else _cached(config.base, config.revision)
    has_device = torch.device(config.device).type != "cuda" or torch.cuda.is_available()
    if has_device and _has_weights(folder, config.t5):
        return load_backbone(replace(config, base=str(folder), local_files_only=True))
    return _architecture(config, folder)


def _cached(hub_id: str, revision: str | None = None) -> Path:
    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except OSError as error:
        raise FileNotFoundError(
            f"{hub_id} is not on this machine: set model.base to a diffusers folder, or download it with "
            f"`hf download {hub_id}`; its json and txt files are enough for all but the time"
        ) from error


def _has_weights(folder: Path, t5: bool) -> bool:
    parts = (file.parent for file in folder.glob("*/config.json") if t5 or file.parent.name != "text_encoder_3")
    return all(any(part.glob("*.safetensors")) or any(part.glob("*.bin")) for part in parts)


def _architecture(config: ModelConfig, folder: Path) -> Backbone:
    """The pipeline with its models on the meta device: shapes, but no numbers."""
    pipeline_class, backbone_class = BACKBONES[config.family]
    index = model_index(str(folder)) or {}
    check_family(index, str(folder), config.family)
    left_out = () if config.t5 else ("text_encoder_3", "tokenizer_3")
    options = {name: value for name, value in index.items() if not isinstance(value, list) and name[0] != "_"}
    for name, source in index.items():
        if isinstance(source, list):
            library, class_name = source
            is_used = library is not None and name not in left_out
            options[name] = _component(library, class_name, folder / name, DTYPES[config.dtype]) if is_used else None
    if config.vae is not None:
        vae = Path(config.vae) if Path(config.vae).is_dir() else _cached(config.vae)
        options["vae"] = _component("diffusers", "AutoencoderKL", vae, DTYPES[config.dtype])
    return backbone_class(pipeline_class(**options), call_options(config))


def _component(library: str, class_name: str, folder: Path, dtype: torch.dtype) -> Any:
    """A part of a pipeline as its index names it; libraries that are not packages are diffusers' own folders."""
    packages = ("diffusers", "transformers")
    found = getattr(import_module(library if library in packages else f"diffusers.pipelines.{library}"), class_name)
    with torch.device("meta"):
        if issubclass(found, ModelMixin):
            # Not its own `to`, which warns of a model that has numbers.
            return nn.Module.to(found.from_config(found.load_config(folder)), dtype)
        if issubclass(found, PreTrainedModel):
            return found(found.config_class.from_pretrained(folder)).to(dtype)
    return found.from_pretrained(folder)
