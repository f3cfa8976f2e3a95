"""Soft tokens enter a frozen denoiser through torch hooks and travel in the call's own arguments.

No hook keeps state: the denoiser's pre-hook turns the call's timestep into tokens and puts them under a private key of
the attention kwargs; each block's pre-hook takes them out and, on chosen blocks, prepends its layer to the text stream.
So interleaved forwards and gradient checkpointing, which calls blocks again and with positional arguments, stay exact.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from softrepa_pipeline.soft_tokens import Tokens

_KEY = "softrepa_tokens"
_BANK = "softrepa_bank"
_SHARE = "softrepa_share"
_TEXT = "encoder_hidden_states"
ALL_TIMESTEPS = (0.0, 1000.0)


@dataclass(frozen=True)
class Sites:
    """Where tokens enter: the denoiser's blocks in order, the chosen ones' indices and how they take their text.

    `names` are the chosen blocks' names, `kwargs_name` the dict argument that reaches every block; with
    `text_persists` a block returns the text stream first, and it must lose the tokens again.
    """

    blocks: tuple[nn.Module, ...]
    chosen: tuple[int, ...]
    names: tuple[str, ...]
    width: int
    kwargs_name: str
    text_persists: bool


class Injection:
    """Soft tokens in a denoiser; `remove()` or leaving the context restores it bit for bit.

    `strength` 1 is the tokens as trained, 0 the base itself, bit-equal. In between and beyond, each chosen block's
    output is base + strength · (with tokens − base), so chosen blocks run twice. It may be set at any time. Outside of
    `timestep_range` the strength is 0; a call may give each of its samples a share of it (`asking`). A sample whose
    strength comes to 0 or 1 runs once.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        sites: Sites,
        tokens: Tokens,
        strength: float = 1.0,
        timestep_range: tuple[float, float] = ALL_TIMESTEPS,
    ) -> None:
        _check(sites, tokens)
        self._denoiser, self._sites, self._tokens, self._range = denoiser, sites, tokens, timestep_range
        self._handles: list[RemovableHandle] = []
        self.strength = strength

    @property
    def strength(self) -> float:
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not 0 <= value < float("inf"):
            raise ValueError(f"strength must be a number from 0 on, not {value}")
        self.remove()
        self._strength = value
        if value:
            self._handles = _register(self._denoiser, self._sites, self._tokens, value, self._range)

    def remove(self) -> None:
        """Leave the base as it was, as strength 0 does."""
        self._strength = 0.0
        for handle in self._handles:
            handle.remove()
        self._handles = []
        # Compiled code is not guarded on hooks: without this it would go on as it was traced.
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()

    def __enter__(self) -> Injection:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def inject(
    denoiser: nn.Module,
    sites: Sites,
    tokens: Tokens,
    strength: float = 1.0,
    timestep_range: tuple[float, float] = ALL_TIMESTEPS,
) -> Injection:
    """Put soft tokens into every later forward of the denoiser until the handle is removed.

    Raises:
        ValueError: the tokens' width or layers do not fit the sites, or `strength` is negative.
    """
    return Injection(denoiser, sites, tokens, strength, timestep_range)


def asking(bank: Tensor | None = None, share: Tensor | None = None) -> dict[str, Tensor] | None:
    """Attention kwargs of a call, where tokens are injected, whose samples (batch,) ask for something of their own.

    `bank` names each sample's of injected `TokenBanks`; `share` is that of the strength which it gets, 0 for the base.
    """
    asked = {_BANK: bank, _SHARE: share}
    return {name: value for name, value in asked.items() if value is not None} or None


def argument_binder(module: nn.Module) -> Callable[[tuple, dict[str, Any]], dict[str, Any]]:
    """A function that names a call's arguments, however they were passed."""
    names = tuple(inspect.signature(type(module).forward).parameters)[1:]
    return lambda args, kwargs: {**dict(zip(names, args, strict=False)), **kwargs}


def _check(sites: Sites, tokens: Tokens) -> None:
    config = tokens.config
    if config.width != sites.width:
        raise ValueError(f"soft tokens are {config.width} wide, but this denoiser's text stream is {sites.width} wide")
    if not config.shared and config.num_layers != len(sites.chosen):
        raise ValueError(f"soft tokens have {config.num_layers} layers, but {len(sites.chosen)} sites were chosen")


def _register(
    denoiser: nn.Module, sites: Sites, tokens: Tokens, strength: float, timestep_range: tuple[float, float]
) -> list[RemovableHandle]:
    make_tokens = _make_tokens(sites, tokens, strength, timestep_range, argument_binder(denoiser))
    handles = [denoiser.register_forward_pre_hook(make_tokens, with_kwargs=True)]
    layer_of = {block: 0 if tokens.config.shared else layer for layer, block in enumerate(sites.chosen)}
    for index, block in enumerate(sites.blocks):
        layer = layer_of.get(index)
        # A tensor, not an int: dynamo would compile every block anew for each constant.
        row = None if layer is None else torch.tensor(layer, device=next(denoiser.parameters()).device)
        prepend = _prepend(sites, row, argument_binder(block))
        handles.append(block.register_forward_pre_hook(prepend, with_kwargs=True))
        if row is not None:
            finish = _finish(sites, tokens.config.num_tokens, strength)
            handles.append(block.register_forward_hook(finish, with_kwargs=True))
    return handles


@dataclass(frozen=True)
class _Weights:
    """How strongly the tokens act on each sample of a call (batch,), and which samples run with and without them."""

    weight: Tensor
    soft: Tensor
    plain: Tensor


class _Attention(dict[str, Any]):
    """A block's attention kwargs, with what its forward must not see: the samples' weights, and all their arguments."""

    def __init__(self, values: dict[str, Any], weights: _Weights, whole: dict[str, Any]) -> None:
        super().__init__(values)
        self.weights, self.whole = weights, whole


def _make_tokens(
    sites: Sites, tokens: Tokens, strength: float, timestep_range: tuple[float, float], bind: Callable[..., dict]
) -> Callable[..., tuple[tuple, dict]]:
    low, high = timestep_range

    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        arguments = bind(args, kwargs)
        text = _text_of(arguments)
        # On the tokens' own device: a pipeline may have been moved, or move its parts, since they were injected.
        device = next(tokens.parameters()).device
        timestep = torch.as_tensor(arguments["timestep"], device=device).expand(text.shape[0]).float()
        carried = dict(arguments.get(sites.kwargs_name) or {})
        if _KEY in carried:
            raise ValueError("this denoiser has soft tokens already; remove them before others are injected")
        if any(name.startswith("ip_") for name in carried):
            raise ValueError("soft tokens cannot stand beside an IP-Adapter's image prompts")
        bank, share = carried.pop(_BANK, None), carried.pop(_SHARE, None)
        if timestep_range != ALL_TIMESTEPS:
            within = ((low <= timestep) & (timestep <= high)).float()
            share = within if share is None else within * share.to(device)
        states = tokens(timestep) if bank is None else tokens(timestep, bank.to(device))
        weights = None if share is None else _weigh(strength * share)
        return (), {**arguments, sites.kwargs_name: {**carried, _KEY: (states.to(text.device), weights)}}

    return hook


def _text_of(arguments: dict[str, Any]) -> Tensor:
    text = arguments[_TEXT]
    if not isinstance(text, Tensor):
        raise ValueError(f"soft tokens need one text tensor, not {type(text).__name__} (IP-Adapter's image prompts)")
    if arguments.get("encoder_attention_mask") is not None:
        raise ValueError("soft tokens need text without an attention mask; encode captions to a fixed length")
    return text


def _weigh(weight: Tensor) -> _Weights:
    return _Weights(weight, _rows(weight != 0), _rows(weight != 1))


def _prepend(sites: Sites, row: Tensor | None, bind: Callable[..., dict]) -> Callable[..., tuple[tuple, dict]]:
    """Before a block: its layer of the tokens in the text, of those samples that are to have them."""

    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        arguments = bind(args, kwargs)
        carried = dict(arguments[sites.kwargs_name])
        states, weights = carried.pop(_KEY)
        arguments[sites.kwargs_name] = carried or None
        if row is None:
            return (), arguments
        layer = states.index_select(0, row.to(states.device)).squeeze(0).to(_text_of(arguments))
        if weights is not None:
            whole = arguments
            arguments, layer = _of(whole, weights.soft), layer.index_select(0, weights.soft.to(layer.device))
            arguments[sites.kwargs_name] = _Attention(carried, weights, whole)
        arguments[_TEXT] = torch.cat([layer, arguments[_TEXT]], dim=1)
        return (), arguments

    return hook


def _finish(sites: Sites, num_tokens: int, strength: float) -> Callable[..., Any]:
    """After a chosen block: take the tokens out of the text it returns, and weigh its output against the base's."""

    def hook(block: nn.Module, _: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if sites.text_persists:
            text, image = output
            output = (None if text is None else text[:, num_tokens:], image)
        attention = kwargs[sites.kwargs_name]
        if isinstance(attention, _Attention):
            return _join(block, attention, output)
        if strength == 1:
            return output
        base = block.forward(**{**kwargs, _TEXT: kwargs[_TEXT][:, num_tokens:]})
        return _each(lambda b, o: torch.lerp(b, o, strength), base, output)

    return hook


def _join(block: nn.Module, attention: _Attention, output: Any) -> Any:
    """The block's output for all samples: each is run without tokens, with them, or both ways, as its weight needs."""
    weight, soft, plain = attention.weights.weight, attention.weights.soft, attention.weights.plain
    base = block.forward(**_of(attention.whole, plain))

    def between(base: Tensor, output: Tensor) -> Tensor:
        zeros = output.new_zeros(len(weight), *output.shape[1:])
        without = zeros.index_copy(0, plain.to(zeros.device), base)
        with_tokens = zeros.index_copy(0, soft.to(zeros.device), output)
        return torch.lerp(without, with_tokens, weight.to(zeros).view(-1, *[1] * (zeros.dim() - 1)))

    return _each(between, base, output)


def _rows(chosen: Tensor) -> Tensor:
    """The indices of chosen samples; the first where none is, as blocks cannot run none. Its weight leaves it out."""
    rows = chosen.nonzero().flatten()
    return rows if len(rows) else rows.new_zeros(1)


def _of(arguments: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """A block's arguments for some of its samples."""
    num_samples = len(arguments[_TEXT])
    return {
        name: value.index_select(0, rows.to(value.device))
        if isinstance(value, Tensor) and value.dim() and len(value) == num_samples
        else value
        for name, value in arguments.items()
    }


def _each(function: Callable[[Tensor, Tensor], Tensor], base: Any, output: Any) -> Any:
    """A function of a block's output without and with tokens, or of each part of it; the last has no text."""
    if isinstance(output, Tensor):
        return function(base, output)
    return tuple(None if b is None else function(b, o) for b, o in zip(base, output, strict=True))
