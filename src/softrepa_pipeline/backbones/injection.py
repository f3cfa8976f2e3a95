"""Soft tokens enter a frozen denoiser through torch hooks and travel in the call's own arguments.

No hook keeps state: the denoiser's pre-hook turns the call's timestep into tokens and puts them under a private key of
the attention kwargs; each block's pre-hook takes them out and, on chosen blocks, prepends its layer to the text stream.
So interleaved forwards and gradient checkpointing, which calls blocks again and with positional arguments, stay exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from softrepa_pipeline.soft_tokens import SoftTokens

_KEY = "softrepa_tokens"


@dataclass(frozen=True)
class Sites:
    """Where tokens enter: the denoiser's blocks in order, the chosen ones' indices and how they take their text.

    `kwargs_name` names the dict argument that reaches every block; `positions` maps a block's arguments to their
    place in a positional call; with `text_persists` a block returns the text stream first, and it must lose the tokens.
    """

    blocks: tuple[nn.Module, ...]
    chosen: tuple[int, ...]
    width: int
    kwargs_name: str
    positions: dict[str, int]
    text_persists: bool


class Injection:
    """Handle of tokens in a denoiser; `remove()` or leaving the context restores it bit for bit."""

    def __init__(self, handles: list[RemovableHandle]) -> None:
        self._handles = handles

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Injection:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def inject(denoiser: nn.Module, sites: Sites, tokens: SoftTokens) -> Injection:
    """Put soft tokens into every later forward of the denoiser until the handle is removed.

    Raises:
        ValueError: the tokens' width or number of layers does not fit the sites.
    """
    config = tokens.config
    if config.width != sites.width:
        raise ValueError(f"soft tokens are {config.width} wide, but this denoiser's text stream is {sites.width} wide")
    if config.num_layers != len(sites.chosen):
        raise ValueError(f"soft tokens have {config.num_layers} layers, but {len(sites.chosen)} sites were chosen")
    handles = [denoiser.register_forward_pre_hook(_make_tokens(sites, tokens), with_kwargs=True)]
    layer_of = {block: layer for layer, block in enumerate(sites.chosen)}
    for index, block in enumerate(sites.blocks):
        layer = layer_of.get(index)
        # A tensor, not an int: dynamo would compile every block anew for each constant.
        row = None if layer is None else torch.tensor(layer)
        handles.append(block.register_forward_pre_hook(_prepend(sites, row), with_kwargs=True))
        if row is not None and sites.text_persists:
            handles.append(block.register_forward_hook(_strip(config.num_tokens)))
    return Injection(handles)


def _make_tokens(sites: Sites, tokens: SoftTokens) -> Callable[..., tuple[tuple, dict]]:
    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        text: Tensor = kwargs["encoder_hidden_states"]
        if not isinstance(text, Tensor) or kwargs.get("encoder_attention_mask") is not None:
            raise ValueError(
                "soft tokens need one text tensor without an attention mask (no IP-Adapter, no padding mask)"
            )
        timestep = torch.as_tensor(kwargs["timestep"], device=text.device).expand(text.shape[0])
        states = tokens(timestep.float()).to(text.device)
        carried = {**(kwargs.get(sites.kwargs_name) or {}), _KEY: states}
        return args, {**kwargs, sites.kwargs_name: carried}

    return hook


def _prepend(sites: Sites, row: Tensor | None) -> Callable[..., tuple[tuple, dict]]:
    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        arguments = dict(kwargs)
        for name, position in sites.positions.items():
            if name not in arguments:
                arguments[name] = args[position]
        carried = dict(arguments[sites.kwargs_name])
        states = carried.pop(_KEY)
        arguments[sites.kwargs_name] = carried or None
        if row is not None:
            text = arguments["encoder_hidden_states"]
            layer = states.index_select(0, row.to(states.device)).squeeze(0).to(text.dtype)
            arguments["encoder_hidden_states"] = torch.cat([layer, text], dim=1)
        return (), arguments

    return hook


def _strip(num_tokens: int) -> Callable[..., tuple]:
    def hook(_: nn.Module, __: tuple, output: tuple[Tensor | None, Tensor]) -> tuple[Tensor | None, Tensor]:
        text, image = output
        return (None if text is None else text[:, num_tokens:], image)

    return hook
