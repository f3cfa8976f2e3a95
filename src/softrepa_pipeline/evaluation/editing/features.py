"""Plug-and-play features (PnP, arXiv 2211.12572): a UNet's decoder keeps what it computes for the source image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from softrepa_pipeline.evaluation.editing.config import EditConfig


def shared_modules(unet: Any, config: EditConfig, step: int) -> list[nn.Module]:
    """What the source decides at a step: residual features early on, queries and keys of self-attention earlier still.

    Of the decoder's stages with attention, as published for SD1.5: the first one's second residual block, and every
    self-attention but those of the first one's first transformer.
    """
    stages = [stage for stage in unet.up_blocks if hasattr(stage, "attentions")]
    modules: list[nn.Module] = []
    if step < config.feature_share * config.num_steps:
        modules.append(stages[0].resnets[1].conv2)
    if step < config.attention_share * config.num_steps:
        transformers = [part for stage in stages for part in stage.attentions][1:]
        for block in (block for transformer in transformers for block in transformer.transformer_blocks):
            modules += [block.attn1.to_q, block.attn1.to_k]
    return modules


@contextmanager
def first_for_all(modules: list[nn.Module], num_parts: int) -> Iterator[None]:
    """Within the context each module's output for the first of a batch's equal parts stands for all of them."""

    def copy(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        first = output[: len(output) // num_parts]
        return first.repeat(num_parts, *[1] * (output.dim() - 1))

    handles = [module.register_forward_hook(copy) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
