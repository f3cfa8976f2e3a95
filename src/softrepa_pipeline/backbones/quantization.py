"""Frozen weights in fewer bits: the denoiser and the text encoders, never the autoencoder or the soft tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import BitsAndBytesConfig as DenoiserNF4
from diffusers import PipelineQuantizationConfig
from diffusers import TorchAoConfig as DenoiserTorchAo
from transformers import BitsAndBytesConfig as TextNF4
from transformers import TorchAoConfig as TextTorchAo

QUANTIZATIONS = ("int8", "nf4")
_DENOISERS = ("unet", "transformer")


def quantization_config(kind: str, components: Iterable[str], dtype: torch.dtype) -> PipelineQuantizationConfig:
    """What diffusers is told when it loads a pipeline: `int8` by torchao on any device, `nf4` by bitsandbytes on CUDA.

    Raises:
        ImportError: the `quantization` extra is not installed.
    """
    quantized = [name for name in components if name in _DENOISERS or name.startswith("text_encoder")]
    mapping = {name: _component_config(kind, name in _DENOISERS, dtype) for name in quantized}
    return PipelineQuantizationConfig(quant_mapping=mapping)


def _component_config(kind: str, is_denoiser: bool, dtype: torch.dtype) -> Any:
    if kind == "nf4":
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        return DenoiserNF4(**options) if is_denoiser else TextNF4(**options)
    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError as error:
        raise ImportError("model.quantization needs `pip install 'softrepa_pipeline[quantization]'`") from error
    weights = Int8WeightOnlyConfig(version=2)
    return DenoiserTorchAo(weights) if is_denoiser else TextTorchAo(weights)
