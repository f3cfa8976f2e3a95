"""What denoising errors tell of image and text, without drawing: by noise level and by how many layers have tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from softrepa_pipeline.backbones import Backbone, Sites
from softrepa_pipeline.evaluation.retrieval import Candidates, caption_errors, encode_candidates, is_own_lowest
from softrepa_pipeline.evaluation.statistics import paired_intervals
from softrepa_pipeline.inference import add_tokens
from softrepa_pipeline.objectives import mutual_information_bound, raw_logits
from softrepa_pipeline.soft_tokens import SoftTokens

if TYPE_CHECKING:
    from jaxtyping import Float

# The middles of equal parts of the schedule, clean to noisy.
LEVELS = tuple((part + 0.5) / 8 for part in range(8))
# Errors of one image differ between captions by 10⁻⁴ (clean) to 10⁻¹ (noisy); the highest makes all captions alike.
_TEMPERATURES = torch.logspace(-5, 3, 65, dtype=torch.float64)


@dataclass(frozen=True)
class LevelMeasures:
    """One model by noise level, with one value an image: means over images are what is reported.

    `levels` are shares of the schedule (levels,), clean to noisy; `hits` (images, levels) says whether the own caption
    has the lowest error; `information` (images, levels) is log K − L in nats at `temperatures` (levels,).
    """

    levels: np.ndarray
    hits: np.ndarray
    information: np.ndarray
    temperatures: np.ndarray


@dataclass(frozen=True)
class DepthMeasures:
    """The base with tokens in its first k layers alone, k = 0 … L: `depths[0]` is the base, `depths[-1]` has them all.

    `layers` are their names in the order in which the base runs them.
    """

    layers: tuple[str, ...]
    depths: tuple[LevelMeasures, ...]


def measure_by_depth(
    backbone: Backbone, tokens: SoftTokens, images: np.ndarray, captions: list[list[str]], seed: int
) -> DepthMeasures:
    """Tokens in only the first k of their layers, for every k, on images (images, height, width, 3), uint8.

    `captions[i][0]` is image i's own. All see the same noise. See `level_measures` for the numbers.
    """
    candidates = encode_candidates(backbone, images, captions, LEVELS, seed)
    prefixes = first_layers(tokens, backbone.sites(tokens.config.layers))
    depths = [
        _measure(backbone, kept, candidates) for kept in tqdm((None, *prefixes), desc="depth by depth", leave=False)
    ]
    return DepthMeasures(prefixes[-1].config.layers, tuple(depths))


def summarise_depths(measured: DepthMeasures) -> dict[str, Any]:
    """Means with the 95 % intervals of their difference to the base: by level with all tokens, and by depth."""
    base, *_, soft = measured.depths
    return {
        "levels": base.levels.tolist(),
        "layers": list(measured.layers),
        "by_level": {
            name: [
                _against(getattr(base, name)[:, level], getattr(soft, name)[:, level]) for level in range(len(LEVELS))
            ]
            for name in ("hits", "information")
        },
        "by_depth": {
            name: [
                _against(getattr(base, name).mean(axis=1), getattr(own, name).mean(axis=1)) for own in measured.depths
            ]
            for name in ("hits", "information")
        },
    }


def _against(base: Float[np.ndarray, " images"], soft: Float[np.ndarray, " images"]) -> dict[str, Any]:
    before, after = base[:, None].astype(float), soft[:, None].astype(float)
    delta, _ = paired_intervals(before, after, ["images"] * len(base))
    return {"base": float(base.mean()), "soft": float(soft.mean()), "delta": asdict(delta)}


def first_layers(tokens: SoftTokens, sites: Sites) -> list[SoftTokens]:
    """Copies of the tokens for only the first 1, 2, …, L of their layers, in the order in which the base runs them."""
    rows = sorted(range(len(sites.chosen)), key=sites.chosen.__getitem__)
    return [_restricted(tokens, rows[:depth], sites.names) for depth in range(1, len(rows) + 1)]


@torch.no_grad()
def _restricted(tokens: SoftTokens, rows: Sequence[int], names: Sequence[str]) -> SoftTokens:
    """The layers in `rows` alone; those of shared tokens are all the same."""
    kept = SoftTokens(replace(tokens.config, layers=tuple(names[row] for row in rows))).to(tokens.base)
    own = [0] if tokens.config.shared else list(rows)
    kept.base.copy_(tokens.base[own])
    if tokens.time is not None and kept.time is not None:
        kept.time.copy_(tokens.time.unflatten(1, (tokens.config.num_layers, -1))[:, own].flatten(1))
    return kept


def level_measures(errors: Float[Tensor, "images captions levels"], levels: Sequence[float]) -> LevelMeasures:
    """Retrieval, and log K − L with L_i = CE(softmax_j(−err[i, j] / τ), 0), at every single level.

    log K − L is InfoNCE's lower bound (van den Oord et al. 2018, arXiv 1807.03748; Poole et al. 2019, arXiv 1905.06922)
    of what an image tells about which of its K captions is its own, at most log K. It holds for any τ, so each level
    takes the τ of a fixed grid that makes it highest on these very errors: one number from a grid, by the same rule for
    every model. It bounds the mutual information of images and texts where the other captions were drawn at random.
    """
    by_level = [_information(errors[:, :, level]) for level in range(len(levels))]
    return LevelMeasures(
        np.array(levels),
        is_own_lowest(errors).numpy(),
        torch.stack([information for _, information in by_level], dim=1).numpy(),
        np.array([temperature for temperature, _ in by_level]),
    )


def _information(errors: Float[Tensor, "images captions"]) -> tuple[float, Float[Tensor, " images"]]:
    """The temperature that makes log K − L highest, and its value for each image."""
    losses = [-raw_logits(errors.double(), 1.0, temperature).log_softmax(dim=1)[:, 0] for temperature in _TEMPERATURES]
    best = int(torch.stack(losses).mean(dim=1).argmin())
    num_candidates = errors.isfinite().sum(dim=1).double()
    return float(_TEMPERATURES[best]), mutual_information_bound(losses[best], num_candidates)


def _measure(backbone: Backbone, tokens: SoftTokens | None, candidates: list[Candidates]) -> LevelMeasures:
    with nullcontext() if tokens is None else add_tokens(backbone, tokens):
        return level_measures(caption_errors(backbone, candidates), LEVELS)
