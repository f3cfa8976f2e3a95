"""Pairs of images and captions: each image is noised once, each caption encoded once, every pair predicted."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softrepa_pipeline.backbones.base import Backbone, Noised, Prompt
from softrepa_pipeline.backbones.sharing import sharing

if TYPE_CHECKING:
    from jaxtyping import Int


@dataclass(frozen=True)
class Pairs:
    """Pair k is image `image_of[k]` of `noised` with caption `text_of[k]` of `prompt`; both indices are on the CPU.

    With `share` what a pair has in common with others of its image or caption is computed once (backbones/sharing.py).
    """

    noised: Noised
    prompt: Prompt
    image_of: Int[Tensor, " pairs"]
    text_of: Int[Tensor, " pairs"]
    share: bool = True

    def __len__(self) -> int:
        return len(self.image_of)

    def __getitem__(self, index: slice | Tensor) -> Pairs:
        return replace(self, image_of=self.image_of[index], text_of=self.text_of[index])

    @property
    def target(self) -> Tensor:
        """What the denoiser should predict, one entry a pair."""
        return self.noised.target[self.image_of.to(self.noised.target.device)]

    def predict(self, backbone: Backbone, bank: Tensor | None = None, share: Tensor | None = None) -> Tensor:
        """The denoiser's prediction for every pair, with the tokens that are injected (`Backbone.predict`)."""
        device = self.noised.sample.device
        noised, prompt = self.noised[self.image_of.to(device)], self.prompt[self.text_of.to(device)]
        with self._sharing(backbone):
            return backbone.predict(noised, prompt, bank, share)

    def _sharing(self, backbone: Backbone) -> AbstractContextManager[None]:
        if not self.share:
            return nullcontext()
        device = self.noised.sample.device
        image_of, text_of = (
            torch.unique(of, return_inverse=True)[1].to(device) for of in (self.image_of, self.text_of)
        )
        return sharing(backbone.shareable, image_of, text_of, self.prompt.states.shape[1])


def grid(noised: Noised, prompt: Prompt, text_of: Int[Tensor, "images captions"], share: bool = True) -> Pairs:
    """Every image with its own captions, image by image; `text_of` says which captions of `prompt` those are."""
    images, captions = text_of.shape
    return Pairs(noised, prompt, torch.arange(images).repeat_interleave(captions), text_of.flatten(), share)
