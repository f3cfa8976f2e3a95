"""What a denoiser predicts for captions, with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softrepa_pipeline.backbones import Backbone, Noised, Prompt
from softrepa_pipeline.evaluation.editing.config import Captions

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Latents = Float[Tensor, "batch channels height width"]
    Rows = Int[Tensor, " batch"]


@dataclass(frozen=True)
class Conditions:
    """Encoded captions of a batch of edits, and which rows of them are each edit's null, source and target caption."""

    text: Prompt
    null: Rows
    source: Rows
    target: Rows


def encode(backbone: Backbone, captions: Sequence[Captions]) -> Conditions:
    """Encode source and target captions, and the null caption as the stock pipeline makes it."""
    text = backbone.encode_prompts(["", *(own.source for own in captions), *(own.target for own in captions)])
    if backbone.pipeline.config.get("force_zeros_for_empty_prompt"):  # SDXL
        for states in (text.states, text.pooled):
            if states is not None:
                states[0] = 0
    source = torch.arange(1, len(captions) + 1, device=text.states.device)
    return Conditions(text, torch.zeros_like(source), source, source + len(captions))


def predict(backbone: Backbone, sample: Latents, timestep: float, conditions: Conditions, rows: Rows) -> Latents:
    """The prediction for each sample with its row of the captions, in the sample's precision."""
    moments = torch.full((len(sample),), timestep, device=sample.device)
    states = sample.to(conditions.text.states.dtype)
    # Nothing is trained here, so there is no target.
    return backbone.predict(Noised(states, states, moments), conditions.text[rows]).to(sample.dtype)


def guided(
    backbone: Backbone, sample: Latents, timestep: float, conditions: Conditions, rows: Rows, guidance: float
) -> Latents:
    """v_null + g (v − v_null) (arXiv 2207.12598); with g = 1 the null caption is left out."""
    if guidance == 1:
        return predict(backbone, sample, timestep, conditions, rows)
    both = torch.cat([conditions.null, rows])
    null, own = predict(backbone, torch.cat([sample, sample]), timestep, conditions, both).chunk(2)
    return null + guidance * (own - null)
