"""Loading of a frozen base model from a local diffusers folder or a hub id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from softrepa_pipeline.backbones.base import Backbone
from softrepa_pipeline.backbones.quantization import QUANTIZATIONS, quantization_config
from softrepa_pipeline.backbones.sd3 import SD3Backbone
from softrepa_pipeline.backbones.unet import SD15Backbone, SDXLBackbone

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MAX_T5_LENGTH = 512

BACKBONES: dict[str, tuple[type[DiffusionPipeline], type[Backbone]]] = {
    "sd15": (StableDiffusionPipeline, SD15Backbone),
    "sdxl": (StableDiffusionXLPipeline, SDXLBackbone),
    "sd3": (StableDiffusion3Pipeline, SD3Backbone),
}


@dataclass(frozen=True)
class ModelConfig:
    """Which base model: a local folder or a hub id, with the hub's revision and variant where wanted.

    `vae` replaces the base's autoencoder, as one that is safe in half precision for SDXL. `t5` and
    `max_sequence_length` are SD3's: whether its third text encoder is loaded, and how many tokens that one adds to a
    caption (77, 256 or 512; without T5 that many zeros, and 0 for a base that was trained without them). With
    `quantization` the denoiser's and text encoders' weights take 8 bits (`int8`) or, on CUDA, 4 (`nf4`). `licence` is
    what tokens trained on this base are marked with.
    """

    family: str
    base: str
    dtype: str = "float32"
    device: str = "cpu"
    revision: str | None = None
    variant: str | None = None
    local_files_only: bool = False
    vae: str | None = None
    t5: bool = True
    max_sequence_length: int = 256
    quantization: str | None = None
    licence: str = "unknown"

    def __post_init__(self) -> None:
        if self.family not in BACKBONES:
            raise ValueError(f"model.family must be one of {', '.join(BACKBONES)}, not {self.family!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ValueError(
                f"model.quantization must be null, {' or '.join(QUANTIZATIONS)}, not {self.quantization!r}"
            )
        if self.quantization == "nf4" and not self.device.startswith("cuda"):
            raise ValueError(f"model.quantization nf4 needs a CUDA device, not {self.device}; int8 runs everywhere")
        if not 0 <= self.max_sequence_length <= _MAX_T5_LENGTH:
            raise ValueError(f"model.max_sequence_length must be in [0, {_MAX_T5_LENGTH}]")


def load_backbone(config: ModelConfig) -> Backbone:
    """Load and freeze a base model.

    Raises:
        FileNotFoundError: `base` looks like a folder and is not there, or the hub does not give it.
        ValueError: the folder holds another kind of pipeline, or one whose architecture is not supported.
    """
    pipeline_class, backbone_class = BACKBONES[config.family]
    index = model_index(config.base)
    dtype = DTYPES[config.dtype]
    options: dict[str, Any] = {"dtype": dtype, "revision": config.revision, "variant": config.variant}
    options["local_files_only"] = config.local_files_only or index is not None
    if index is not None and not any(Path(config.base).rglob(f"*.{config.variant}.*")):
        options["variant"] = None
    if index is not None:
        check_family(index, config.base, config.family)
    if config.family == "sd3" and (not config.t5 or (index or {}).get("text_encoder_3") == [None, None]):
        # A pipeline saved without T5 opens only when told again that there is none.
        options |= {"text_encoder_3": None, "tokenizer_3": None}
    if config.quantization is not None:
        names = (*backbone_class.components, "text_encoder_3") if config.family == "sd3" else backbone_class.components
        parts = [name for name in names if name not in options]
        options["quantization_config"] = quantization_config(config.quantization, parts, dtype)
    if config.vae is not None:
        options["vae"] = load_vae(config)
    with _named(config.base, "base"):
        pipeline = pipeline_class.from_pretrained(config.base, **options)
    pipeline.set_progress_bar_config(disable=True)
    return backbone_class(pipeline.to(config.device), call_options(config))


def load_vae(config: ModelConfig) -> AutoencoderKL:
    """The autoencoder alone, frozen: all that encoding images needs.

    Raises:
        FileNotFoundError: as `load_backbone`.
    """
    options: dict[str, Any] = {"dtype": DTYPES[config.dtype], "local_files_only": config.local_files_only}
    source = config.vae
    if source is None:
        source = config.base
        folder = None if model_index(source) is None else Path(source) / "vae"
        is_varied = folder is None or any(folder.glob(f"*.{config.variant}.*"))
        options |= {"subfolder": "vae", "revision": config.revision, "variant": config.variant if is_varied else None}
    with _named(source, "base" if config.vae is None else "vae"):
        vae = AutoencoderKL.from_pretrained(source, **options)
    return vae.requires_grad_(False).eval().to(config.device)


@contextmanager
def _named(source: str, parameter: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())[:300]
        raise FileNotFoundError(
            f"cannot load {source}; set model.{parameter} to a diffusers folder or a hub id within reach ({reason})"
        ) from error


def call_options(config: ModelConfig) -> dict[str, Any]:
    """What this model always needs in a call of its pipeline."""
    return {"max_sequence_length": config.max_sequence_length} if config.family == "sd3" else {}


def check_family(index: dict[str, Any], base: str, family: str) -> None:
    """Raises ValueError where a diffusers folder's index is that of another family's pipeline."""
    found, needed = index.get("_class_name"), BACKBONES[family][0].__name__
    if found != needed:
        raise ValueError(f"{base} holds a {found}; family {family} needs a {needed}")


def model_index(base: str) -> dict[str, Any] | None:
    """The index of a local diffusers folder; None for what can only be a hub id.

    Raises:
        FileNotFoundError: it looks like a folder and is not one that diffusers wrote.
    """
    folder = Path(base)
    if folder.is_dir():
        index = folder / "model_index.json"
        if not index.is_file():
            raise FileNotFoundError(
                f"model folder {folder} has no model_index.json; point model.base at a diffusers folder"
            )
        return json.loads(index.read_text())
    if folder.is_absolute() or base.startswith(".") or len(folder.parts) != 2:
        raise FileNotFoundError(f"no model folder at {folder}; set model.base to a diffusers folder or a hub id")
    return None
