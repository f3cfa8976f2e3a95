from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_settings import CONFIG, EXECUTION

from softrepa_pipeline.backbones import Backbone, grid, inject
from softrepa_pipeline.soft_tokens import SoftTokens
from softrepa_pipeline.training import FitConfig, Observer, Record, TrainingSet, fit
from softrepa_pipeline.training.initial import initial_tokens
from softrepa_pipeline.training.loading import load_step
from softrepa_pipeline.training.methods import METHODS, Method
from softrepa_pipeline.training.regularisers import pull_to_base, some_silent


def train(backbone: Backbone, data: TrainingSet, config: FitConfig, folder: Path) -> tuple[SoftTokens, list[Record]]:
    records: list[Record] = []
    tokens = fit(backbone, data, config, folder, EXECUTION, Observer(records.append))
    return tokens, records


def method_of(backbone: Backbone, config: FitConfig) -> Method:
    sites = backbone.sites(config.layers)
    return METHODS[config.objective](initial_tokens(backbone, sites, config, torch.Size((16, 8, 8))), config)


@pytest.mark.parametrize("objective", ["softrepa", "agsm", "dsm"])
def test_a_base_weight_keeps_tokens_near_the_base_where_nothing_is_asked_for(
    sd3: Backbone, data: TrainingSet, tmp_path: Path, objective: str
) -> None:
    config = replace(CONFIG, objective=objective, num_steps=12)
    distances = {}
    for weight in (1e-6, 30.0):
        _, records = train(sd3, data, replace(config, base_weight=weight), tmp_path / str(weight))
        distances[weight] = sum(record["base_distance"] for record in records[-4:])
    assert distances[30.0] < 0.8 * distances[1e-6]


@pytest.mark.parametrize("images_at_once", [1, 3, 4])
def test_the_pull_to_the_base_is_the_gradient_of_its_distance(
    sd3: Backbone, data: TrainingSet, images_at_once: int
) -> None:
    config = replace(CONFIG, base_weight=2.0, calibrated=False)
    method, sites = method_of(sd3, config), sd3.sites(config.layers)
    loaded = load_step(sd3, data, config, torch.ones(1), 0, slice(None))
    rows = loaded.rows_at(torch.arange(4), torch.ones(1), share=True)
    null = sd3.encode_prompts([""])
    alone = grid(loaded.noised, null, torch.zeros(4, 1, dtype=torch.long), share=False)
    base = alone.predict(sd3)
    with inject(sd3.denoiser, sites, method.injected):
        found = pull_to_base(sd3, method, rows, null, images_at_once, divisor=4)
        gradients = [parameter.grad.clone() for parameter in method.trainable]  # type: ignore[union-attr]
        wanted = (alone.predict(sd3) - base).square().mean(dim=(1, 2, 3))
        expected = torch.autograd.grad(2.0 * wanted.mean(), method.trainable)
    torch.testing.assert_close(found, wanted.detach())
    for gradient, one in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, one, rtol=1e-4, atol=1e-8)


def test_another_share_of_tokens_is_silent_in_each_step_and_none_afterwards(sd3: Backbone) -> None:
    method = method_of(sd3, replace(CONFIG, objective="agsm", num_tokens=16, token_dropout=0.25))
    timestep, silent = torch.tensor([100.0, 900.0]), []
    for step in range(20):
        with some_silent(method, step):
            tokens = method.tokens(timestep)
            is_zero = (tokens == 0).all(dim=-1)
            assert torch.equal(is_zero, is_zero[:, :1].expand_as(is_zero)), "the same for all samples"
            silent.append(is_zero[:, 0])
    share = torch.stack(silent).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.07)
    assert not torch.equal(silent[0], silent[1])
    assert method.tokens(timestep).all(dim=-1).any()
    assert (method.tokens(timestep) != 0).all()


def test_tokens_stay_as_short_as_they_must(sd3: Backbone, data: TrainingSet, tmp_path: Path) -> None:
    free, _ = train(sd3, data, CONFIG, tmp_path / "free")
    limit = free.base.norm(dim=-1).max().item() * 0.8
    limited, _ = train(sd3, data, replace(CONFIG, max_token_norm=limit), tmp_path / "limited")
    norms = limited.base.norm(dim=-1)
    assert norms.max() <= limit * (1 + 1e-5)
    assert (norms > 0).all()
