"""Work on pairs that only the image or only the caption decides, done once for each of them.

A pair engine runs the denoiser on images × captions, so that each image and each caption stands in many pairs. What a
module makes of the image before it has met the text, and the keys and values of a caption, are the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Forward = Callable[..., Tensor]


@dataclass(frozen=True)
class Shareable:
    """Modules of a denoiser that see only the image, and linear maps of the text states (tokens in front of them)."""

    image_modules: tuple[nn.Module, ...] = ()
    text_maps: tuple[nn.Module, ...] = ()


@contextmanager
def sharing(shareable: Shareable, image_of: Tensor, text_of: Tensor, text_length: int) -> Iterator[None]:
    """Within it a forward on pairs, k with image `image_of[k]` and text `text_of[k]`, computes what is shared once.

    Exact up to rounding. Text states must not need a gradient; tokens in front of them may, and stay one set a pair.
    The modules' forwards are replaced, so nothing may be recomputed after it ends: no gradient checkpointing.
    """
    first_of_image, first_of_text = _first(image_of), _first(text_of)
    with ExitStack() as stack:
        for module in shareable.image_modules:
            stack.enter_context(_replaced(module, _once(module.forward, first_of_image, image_of)))
        for module in shareable.text_maps:
            forward = _once_a_text(module.forward, first_of_text, text_of, text_length)
            stack.enter_context(_replaced(module, forward))
        yield


def _first(group_of: Tensor) -> Tensor:
    """The first pair of each group (groups,), for groups 0, 1, … that all have one."""
    pairs = torch.arange(len(group_of), device=group_of.device).flip(0)
    first = torch.empty(int(group_of.max()) + 1, dtype=torch.long, device=group_of.device)
    return first.scatter_(0, group_of.flip(0), pairs)


def _once(forward: Forward, first: Tensor, group_of: Tensor) -> Forward:
    def reduced(value: Any) -> Any:
        is_by_pair = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(group_of)
        return value[first] if is_by_pair else value

    def once(*args: Any, **kwargs: Any) -> Tensor:
        args, kwargs = tree_map(reduced, (args, kwargs))
        return forward(*args, **kwargs)[group_of]

    return once


def _once_a_text(forward: Forward, first: Tensor, text_of: Tensor, length: int) -> Forward:
    def once(states: Tensor) -> Tensor:
        num_tokens = states.shape[1] - length
        texts = forward(states[first, num_tokens:].detach())[text_of]
        return torch.cat([forward(states[:, :num_tokens]), texts], dim=1) if num_tokens else texts

    return once


@contextmanager
def _replaced(module: nn.Module, forward: Forward) -> Iterator[None]:
    """`module.forward` replaced on the instance, and what stood there before (accelerate's hooks, too) put back."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.forward = before
