"""Soft tokens published by SoftREPA and AGSM (pickled `.pth` tables), read without running what is in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig

_FILES = {"softrepa": ("dc_tokens.pth", "dc_t_tokens.pth"), "agsm": ("soft_tokens.pth", "soft_t_tokens.pth")}
# What a pickled nn.Embedding is made of; anything else that a file names is refused.
_ALLOWED: list[Any] = [nn.Embedding, set]
_UNET_LAYERS = {
    ("softrepa", "sd15"): ("down",),
    ("softrepa", "sdxl"): ("down", "mid"),
    ("agsm", "sd15"): ("down", "mid"),
    ("agsm", "sdxl"): ("down", "mid"),
}


def read_published(family: str, folder: Path, objective: str = "softrepa") -> SoftTokens:
    """Tokens of a folder of published tables: a base and, where they depend on the timestep, a time table.

    SD3's base has shape (layers, tokens, width), for its first layers; the UNets' (tokens, width), shared by the blocks
    that the public code gives them to. AGSM's has two banks in front, of which the first, ψ⁺, is taken; its time table
    belongs to both.

    Raises:
        FileNotFoundError: there is no base.
        ValueError: a file holds anything but a table of numbers, or its shape is another family's.
    """
    base_file, time_file = (folder / name for name in _FILES[objective])
    base = _read(base_file)
    shared = family != "sd3"
    if base.ndim != 3 - shared + (objective == "agsm"):
        raise ValueError(f"{base_file} has shape {tuple(base.shape)}, which is not that of {objective} for {family}")
    if objective == "agsm":
        base = base[0]
    time = _read(time_file) if time_file.is_file() else None
    base = base[None] if shared else base
    layers = _UNET_LAYERS[objective, family] if shared else tuple(map(str, range(len(base))))
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
