"""Retrieval and information by noise level and depth, against computations written out pair by pair."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import nn

from softrepa_pipeline.backbones import Backbone, inject
from softrepa_pipeline.evaluation.intrinsic import (
    LEVELS,
    first_layers,
    level_measures,
    measure_by_depth,
    summarise_depths,
)
from softrepa_pipeline.evaluation.pixels import to_pixels
from softrepa_pipeline.evaluation.retrieval import (
    caption_errors,
    draw_distractors,
    encode_candidates,
    retrieval_hits,
)
from softrepa_pipeline.inference import add_tokens
from softrepa_pipeline.randomness import torch_generator
from softrepa_pipeline.shapes.dataset import read_images
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig

_LAYERS = {"sd15": ("down.0", "mid.0", "up.0"), "sdxl": ("down.0", "mid.0", "up.0"), "sd3": ("0", "1", "3")}


@pytest.fixture
def images(world: Path) -> np.ndarray:
    return read_images(world, "test", 3)[0]


@pytest.fixture
def captions(world: Path, images: np.ndarray) -> list[list[str]]:
    """Four captions an image, but the last has three."""
    prompts = read_images(world, "test", 3)[1]
    others = draw_distractors(images, prompts * 4, 3, 0)
    found = [[prompt.text, *(rest * 3)[:3]] for prompt, rest in zip(prompts, others, strict=True)]
    return [*found[:-1], found[-1][:3]]


def tokens_for(backbone: Backbone, shared: bool = False, num_buckets: int = 5) -> SoftTokens:
    """Random tokens that are far from nothing."""
    layers = _LAYERS[backbone.family]
    config = SoftTokensConfig(layers, 2, backbone.sites(layers).width, num_buckets, shared)
    tokens = SoftTokens(config, torch_generator(0, "test"))
    return tokens.requires_grad_(False).apply(lambda bank: [value.mul_(20) for value in bank.parameters()])


@torch.no_grad()
def pair_by_pair(backbone: Backbone, images: np.ndarray, captions: list[list[str]], levels: tuple) -> np.ndarray:
    """Errors (images, captions, levels), every pair by itself; NaN where an image has fewer captions."""
    errors = np.full((len(images), max(map(len, captions)), len(levels)), np.nan)
    for row, own in enumerate(captions):
        latent = backbone.encode_images(to_pixels(images[row : row + 1]))
        noises = torch.randn(len(levels), *latent.shape[1:], generator=torch_generator(0, "retrieval", row))
        for level, share in enumerate(levels):
            noised = backbone.noise(latent, noises[level : level + 1], torch.tensor([1000 * share]))
            for column, caption in enumerate(own):
                predicted = backbone.predict(noised, backbone.encode_prompts([caption]))
                errors[row, column, level] = np.mean((predicted - noised.target).numpy() ** 2)
    return errors


def test_errors_are_those_of_every_pair_by_itself(
    backbone: Backbone, images: np.ndarray, captions: list[list[str]]
) -> None:
    with add_tokens(backbone, tokens_for(backbone)):
        expected = pair_by_pair(backbone, images, captions, LEVELS)
        errors = caption_errors(backbone, encode_candidates(backbone, images, captions, LEVELS, 0)).numpy()
    np.testing.assert_allclose(errors[np.isfinite(errors)], expected[~np.isnan(expected)], rtol=2e-4)
    assert (np.isinf(errors) == np.isnan(expected)).all()
    assert np.isinf(errors[-1, 3]).all()


def test_retrieval_means_the_errors_of_four_levels(
    backbone: Backbone, images: np.ndarray, captions: list[list[str]]
) -> None:
    errors = pair_by_pair(backbone, images, captions, (0.35, 0.55, 0.75, 0.9)).mean(axis=2)
    assert retrieval_hits(backbone, images, captions, 0).tolist() == (np.nanargmin(errors, axis=1) == 0).tolist()


def test_information_is_the_highest_bound_of_a_plain_computation() -> None:
    errors = torch.rand(6, 5, 2, generator=torch_generator(0, "errors"))
    errors[:, 0] -= torch.tensor([0.4, 0.05])
    errors[4, 3:] = torch.inf
    found = level_measures(errors, (0.25, 0.75))
    assert found.hits.tolist() == [[row[:, k].argmin().item() == 0 for k in range(2)] for row in errors]
    for level in range(2):
        by_image = {
            temperature: [
                np.log(len(kept)) - (logsumexp(-kept / temperature) + kept[0] / temperature)
                for row in errors[:, :, level].double().numpy()
                for kept in [row[np.isfinite(row)]]
            ]
            for temperature in np.logspace(-5, 3, 65)
        }
        best = max(by_image, key=lambda temperature: np.mean(by_image[temperature]))
        assert found.temperatures[level] == pytest.approx(best)
        np.testing.assert_allclose(found.information[:, level], by_image[best], atol=1e-9)


def test_information_is_all_of_log_k_where_the_caption_is_certain_and_none_where_it_says_nothing() -> None:
    certain, alike = torch.ones(3, 4), torch.full((3, 4), 0.5)
    certain[:, 0] = 0
    found = level_measures(torch.stack([certain, alike], dim=2), (0.25, 0.75))
    np.testing.assert_allclose(found.information[:, 0], np.log(4))
    np.testing.assert_allclose(found.information[:, 1], 0, atol=1e-12)
    assert found.hits.tolist() == [[True, False]] * 3  # a tie is a miss


def test_on_a_source_of_known_information_the_bound_stays_below_it_and_comes_near() -> None:
    # x = y + ε, y and ε standard normal; err = (x − y)² is the log-likelihood ratio's part that knows both, with τ = 2.
    rng = np.random.default_rng(0)
    y = rng.normal(size=(20000, 64))
    x = y[:, :1] + rng.normal(size=(20000, 1))
    errors = torch.from_numpy((x - y) ** 2)[:, :, None]
    found = level_measures(errors, (0.5,))
    truth = 0.5 * np.log(2)
    deviation = found.information.std() / np.sqrt(len(y))
    assert truth - 0.02 < found.information.mean() < truth + 3 * deviation
    assert found.temperatures[0] == pytest.approx(2, rel=0.35)


@pytest.mark.parametrize("shared", [False, True])
def test_depths_have_tokens_in_the_first_layers_alone(
    backbone: Backbone, images: np.ndarray, captions: list[list[str]], shared: bool
) -> None:
    tokens = tokens_for(backbone, shared)
    found = measure_by_depth(backbone, tokens, images, captions, 0)
    assert found.layers == _LAYERS[backbone.family]
    assert len(found.depths) == 4
    sites = backbone.sites(tokens.config.layers)
    candidates = encode_candidates(backbone, images, captions, LEVELS, 0)
    for depth, measured in enumerate(found.depths):
        first = replace(sites, chosen=sites.chosen[:depth], names=sites.names[:depth])
        with inject(backbone.denoiser, first, Prefix(tokens, depth)) if depth else nullcontext():  # type: ignore[arg-type]
            expected = level_measures(caption_errors(backbone, candidates), LEVELS)
        np.testing.assert_array_equal(measured.hits, expected.hits)
        np.testing.assert_array_equal(measured.information, expected.information)
    summary = summarise_depths(found)
    gain = found.depths[-1].information.mean(axis=0) - found.depths[0].information.mean(axis=0)
    assert [point["delta"]["mean"] for point in summary["by_level"]["information"]] == pytest.approx(list(gain))
    assert summary["by_depth"]["information"][-1]["delta"]["mean"] == pytest.approx(gain.mean())
    assert summary["by_depth"]["hits"][0]["delta"]["mean"] == 0
    information = [measured.information for measured in found.depths]
    assert all(not np.array_equal(less, more) for less, more in pairwise(information))


def test_the_first_layers_are_those_that_the_base_runs_first(sd3: Backbone) -> None:
    tokens = SoftTokens(SoftTokensConfig(("3", "0", "1"), 2, 128, 4), torch_generator(0, "test"))
    first, two, all_of_them = first_layers(tokens, sd3.sites(("3", "0", "1")))
    assert [bank.config.layers for bank in (first, two, all_of_them)] == [("0",), ("0", "1"), ("0", "1", "3")]
    timestep = torch.tensor([10.0, 990.0])
    torch.testing.assert_close(all_of_them(timestep), tokens(timestep)[[1, 2, 0]], rtol=0, atol=0)
    torch.testing.assert_close(two(timestep), tokens(timestep)[[1, 2]], rtol=0, atol=0)


class Prefix(nn.Module):
    """The whole tokens, of which a denoiser is given the first layers alone."""

    def __init__(self, tokens: SoftTokens, depth: int) -> None:
        super().__init__()
        self.tokens, self.depth = tokens, depth
        self.config = replace(tokens.config, layers=tokens.config.layers[:depth]) if depth else tokens.config

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        return self.tokens(timestep)[: self.depth]
