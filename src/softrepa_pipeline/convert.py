"""Soft tokens published by SoftREPA and AGSM (pickled `.pth` tables), read without running what is in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig

_TOKENS, _TIME_TABLE = "dc_tokens.pth", "dc_t_tokens.pth"
# What a pickled nn.Embedding is made of; anything else that a file names is refused.
_ALLOWED: list[Any] = [nn.Embedding, set]
_UNET_LAYERS = {"sd15": ("down",), "sdxl": ("down", "mid")}


def read_published(family: str, folder: Path) -> SoftTokens:
    """Tokens of a folder with `dc_tokens.pth` and, where they depend on the timestep, `dc_t_tokens.pth`.

    SD3's have shape (layers, tokens, width), for its first layers; the UNets' (tokens, width), shared by the blocks
    that the public code gives them to: down for SD1.5, down and mid for SDXL.

    Raises:
        FileNotFoundError: there is no `dc_tokens.pth`.
        ValueError: a file holds anything but a table of numbers, or its shape is another family's.
    """
    base = _read(folder / _TOKENS)
    if base.ndim != (3 if family == "sd3" else 2):
        raise ValueError(f"{folder / _TOKENS} has shape {tuple(base.shape)}, which is not that of family {family}")
    time = _read(folder / _TIME_TABLE) if (folder / _TIME_TABLE).is_file() else None
    shared = family != "sd3"
    base = base[None] if shared else base
    layers = _UNET_LAYERS[family] if shared else tuple(map(str, range(len(base))))
    config = SoftTokensConfig(layers, base.shape[1], base.shape[2], 0 if time is None else len(time), shared)
    tokens = SoftTokens(config)
    tensors = {"base": base} if time is None else {"base": base, "time": time}
    for name, parameter in tokens.named_parameters():
        if parameter.shape != tensors[name].shape:
            raise ValueError(f"{folder}: {name} is {tuple(tensors[name].shape)} where {tuple(parameter.shape)} fits")
    tokens.load_state_dict(tensors)
    return tokens


def _read(path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}; name a folder of published soft tokens")
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError) as error:
        reason = str(error).replace("\n", " ")[-300:]
        raise ValueError(
            f"{path} is refused: it is damaged, or holds more than a table of numbers ({reason})"
        ) from None
    table = getattr(loaded, "weight", None) if isinstance(loaded, nn.Embedding) else loaded
    if not isinstance(table, Tensor) or not table.is_floating_point():
        raise ValueError(f"{path} is refused: it holds a {type(loaded).__name__}, not a table of numbers")
    return table.detach().float()
