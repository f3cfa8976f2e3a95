from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_settings import BATCH, CONFIG, EXECUTION

from softrepa_pipeline.backbones import Backbone, inject
from softrepa_pipeline.training import TrainingSet, fit
from softrepa_pipeline.training.calibration import Calibration, calibrate
from softrepa_pipeline.training.config import FitConfig
from softrepa_pipeline.training.distributed import Group
from softrepa_pipeline.training.draws import draw_noise, place, uniform_mass
from softrepa_pipeline.training.initial import initial_tokens
from softrepa_pipeline.training.loading import Loader, StepData, load_step
from softrepa_pipeline.training.methods import METHODS
from softrepa_pipeline.training.validation import Validation

SHAPE = torch.Size((16, 8, 8))
RANGES = [(0.0, 1000.0), (250.0, 730.0), (120.0, 180.0)]
WHOLE = slice(None)
UNIFORM = torch.ones(1)


def shares(count: int = 100_000) -> Tensor:
    """The middles of equal parts of [0, 1): means over them are integrals."""
    return (torch.arange(count) + 0.5) / count


def densities(config: FitConfig, seed: int) -> Tensor:
    """A density over deciles that is positive exactly where the range is."""
    weights = torch.rand(10, generator=torch.Generator().manual_seed(seed)) + 0.05
    density = uniform_mass(config, 10) * weights
    return density / density.sum()


@pytest.mark.parametrize("limits", RANGES)
def test_uniform_timesteps_fill_the_range_evenly(limits: tuple[float, float]) -> None:
    low, high = limits
    timestep, weight = place(replace(CONFIG, timestep_range=limits), shares(1000), UNIFORM)
    assert low <= timestep.min() < timestep.max() <= high
    torch.testing.assert_close(timestep, torch.linspace(low, high, 2001)[1::2])
    assert (weight == 1).all()


@pytest.mark.parametrize("limits", RANGES)
def test_logit_normal_timesteps_have_the_normal_s_quantiles(limits: tuple[float, float]) -> None:
    low, high = limits
    config = replace(CONFIG, timesteps="logit_normal", timestep_range=limits)
    # What a standard normal exceeds with these probabilities, from any table.
    normal = torch.tensor([-1.959964, -1.0, 0.0, 1.0, 1.959964])
    probability = torch.tensor([0.025, 0.158655, 0.5, 0.841345, 0.975])
    timestep, weight = place(config, probability, UNIFORM)
    torch.testing.assert_close(timestep, low + (high - low) / (1 + torch.exp(-normal)), rtol=1e-4, atol=0)
    assert (weight == 1).all()
    ends, _ = place(config, torch.tensor([0.0, 1 - 2**-24]), UNIFORM)
    assert low <= ends[0] < ends[1] <= high


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limits", RANGES)
def test_importance_keeps_the_mean_of_every_function_of_the_timestep(limits: tuple[float, float], seed: int) -> None:
    config = replace(CONFIG, timesteps="importance", timestep_range=limits)
    drawn, weight = place(config, shares(), densities(config, seed))
    uniform, _ = place(replace(config, timesteps="uniform"), shares(), UNIFORM)
    assert limits[0] <= drawn.min() < drawn.max() <= limits[1]
    for function in (torch.ones_like, torch.square, lambda t: torch.exp(-t / 200), lambda t: (t > 333).float()):
        mean, wanted = (weight * function(drawn)).mean(), function(uniform).mean()
        torch.testing.assert_close(mean, wanted, rtol=2e-4, atol=1e-5)


def test_importance_draws_each_bucket_as_often_as_its_density_says_and_never_an_empty_one() -> None:
    density = torch.tensor([0.0, 0.0, 0.5, 0.0, 0.2, 0.3, 0.0, 0.0])
    config = replace(CONFIG, timesteps="importance")
    ends = torch.tensor([0.0, 1 - 2**-24])
    timestep, weight = place(config, torch.cat([ends, shares(10_000)]), density)
    found = torch.bincount((timestep / 125).long(), minlength=8) / len(timestep)
    torch.testing.assert_close(found, density, rtol=0, atol=2e-3)
    assert timestep.max() <= 750
    torch.testing.assert_close(weight.unique(), torch.tensor([0.25, 0.125 / 0.3, 0.625]))


def test_noise_and_timestep_of_an_image_depend_on_seed_and_position_alone() -> None:
    whole = draw_noise(CONFIG, range(8), SHAPE, UNIFORM, WHOLE)
    for size in (2, 3):
        parts = [draw_noise(CONFIG, range(8), SHAPE, UNIFORM, Group(rank, size).part(8)) for rank in range(size)]
        assert torch.equal(torch.cat([part.noise for part in parts]), whole.noise)
        assert torch.equal(torch.cat([part.timestep for part in parts]), whole.timestep)
    later = draw_noise(CONFIG, range(3, 5), SHAPE, UNIFORM, WHOLE)
    assert torch.equal(later.noise, whole.noise[3:5])
    assert len(whole.timestep.unique()) == 8
    other = draw_noise(replace(CONFIG, seed=4), range(8), SHAPE, UNIFORM, WHOLE)
    assert not (other.noise == whole.noise).any()
    assert not (other.timestep == whole.timestep).any()


def test_noise_is_standard_normal() -> None:
    noise = draw_noise(CONFIG, range(64), SHAPE, UNIFORM, WHOLE).noise
    assert noise.mean().abs() < 0.02
    assert 0.98 < noise.std() < 1.02


def test_shared_draws_give_every_image_the_first_position_s() -> None:
    alone = draw_noise(CONFIG, range(8, 9), SHAPE, UNIFORM, WHOLE)
    for part in (WHOLE, slice(2, 4)):
        shared = draw_noise(BATCH, range(8, 12), SHAPE, UNIFORM, part)
        assert torch.equal(shared.noise, alone.noise.expand_as(shared.noise))
        assert torch.equal(shared.timestep, alone.timestep.expand_as(shared.timestep))


def calibrated(sd3: Backbone, data: TrainingSet, config: FitConfig, pairs_at_once: int = 64) -> Calibration:
    sites = sd3.sites(config.layers)
    method = METHODS[config.objective](initial_tokens(sd3, sites, config, data.latents.shape[1:]), config)
    with inject(sd3.denoiser, sites, method.injected):
        return calibrate(sd3, data, method, pairs_at_once, Group())


@pytest.mark.parametrize("limits", RANGES)
def test_a_calibrated_density_is_never_below_a_quarter_of_the_uniform_one(
    sd3: Backbone, data: TrainingSet, limits: tuple[float, float]
) -> None:
    config = replace(CONFIG, timesteps="importance", timestep_range=limits, batch_size=2)
    found = calibrated(sd3, data, config)
    uniform = uniform_mass(config, 10)
    torch.testing.assert_close(uniform.sum(), torch.tensor(1.0))
    torch.testing.assert_close(found.density.sum(), torch.tensor(1.0))
    assert (found.density >= 0.25 * uniform).all()
    assert ((found.density > 0) == (uniform > 0)).all()
    assert (found.temperatures > 0).all()
    # Above the quarter it follows the weights.
    extra = (found.density - 0.25 * uniform)[uniform > 0] / uniform[uniform > 0]
    weights = found.profile.weight[uniform > 0]
    torch.testing.assert_close(extra / extra.sum(), weights / weights.sum())


def test_calibration_is_the_same_in_any_micro_batch(sd3: Backbone, data: TrainingSet) -> None:
    whole, parts = (calibrated(sd3, data, replace(CONFIG, batch_size=2), count) for count in (64, 5))
    # Gaps between captions are small differences of the errors, so that rounding is larger in them.
    torch.testing.assert_close(parts.temperatures, whole.temperatures, rtol=1e-3, atol=0)
    torch.testing.assert_close(parts.density, whole.density, rtol=1e-3, atol=0)


def test_a_training_writes_down_the_profile_that_it_found(sd3: Backbone, data: TrainingSet, tmp_path: Path) -> None:
    config = replace(CONFIG, num_steps=1, batch_size=2)
    found = calibrated(sd3, data, config)
    fit(sd3, data, config, tmp_path, EXECUTION)
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert sorted(profile) == ["error", "gap", "weight"]
    for name, values in profile.items():
        torch.testing.assert_close(torch.tensor(values), getattr(found.profile, name), rtol=1e-3, atol=0)


def test_the_loader_gives_the_steps_in_order_as_they_would_be_loaded_alone(sd3: Backbone, data: TrainingSet) -> None:
    part = slice(1, 4)
    loader = Loader(sd3, data, CONFIG, UNIFORM, part)
    found = list(loader.steps(2, 6))
    assert [step for step, _ in found] == [2, 3, 4, 5]
    for step, loaded in found:
        assert_equal(loaded, load_step(sd3, data, CONFIG, UNIFORM, step, part))
    assert not torch.equal(found[0][1].noised.sample, found[1][1].noised.sample)


def assert_equal(first: StepData, second: StepData) -> None:
    for field in ("rows", "timestep", "weight", "text_of", "is_candidate"):
        assert torch.equal(getattr(first, field), getattr(second, field)), field
    for part in ("noised", "prompt"):
        mine, theirs = getattr(first, part), getattr(second, part)
        for field in fields(mine):
            value = getattr(mine, field.name)
            assert isinstance(value, Tensor) or value is None, field.name
            assert value is None or torch.equal(value, getattr(theirs, field.name)), field.name


def flipping(data: TrainingSet, captions: list[list[str]]) -> TrainingSet:
    """Mirrored latents that are the negatives of the others, and captions of one's own."""
    everything = sorted({caption for own in captions for caption in own})
    edits: list[list[list[str]]] = [[[] for _ in own] for own in captions]
    changes = {"captions": captions, "edits": edits, "negatives": [[]] * 5, "all_captions": everything}
    return replace(data, mirrored=-data.latents, **changes)  # type: ignore[operator, arg-type]


def mirrored(data: TrainingSet, config: FitConfig, positions: range, part: slice = slice(None)) -> list[bool]:
    candidates = data.candidates(config, positions, part)
    latents, plain = data.latents_at(config, candidates, positions[part]), data.latents[candidates.rows]
    return [torch.equal(-latent, other) for latent, other in zip(latents, plain, strict=True)]


def test_half_of_the_images_are_mirrored_by_their_position(data: TrainingSet) -> None:
    config = replace(CONFIG, flip=True)
    data = flipping(data, [[f"caption {number}"] for number in range(5)])
    found = mirrored(data, config, range(400))
    assert 160 < sum(found) < 240
    assert mirrored(data, config, range(100, 400), slice(50, 60)) == found[150:160]
    assert mirrored(data, replace(config, seed=9), range(400)) != found
    assert not any(mirrored(data, CONFIG, range(400)))


@pytest.mark.parametrize(
    ("word", "is_side"), [("Left", True), ("rightmost", True), ("counterclockwise", True), ("bright", False)]
)
def test_no_image_is_mirrored_of_which_a_candidate_names_a_side(data: TrainingSet, word: str, is_side: bool) -> None:
    config = replace(CONFIG, flip=True)
    data = flipping(data, [*([f"caption {number}"] for number in range(4)), [f"the {word} one"]])
    scored = data.candidates(config, range(400)).captions
    pairs = list(zip(mirrored(data, config, range(400)), scored, strict=True))
    named = [is_mirrored for is_mirrored, captions in pairs if f"the {word} one" in captions]
    others = [is_mirrored for is_mirrored, captions in pairs if f"the {word} one" not in captions]
    assert len(named) > 100
    assert any(named) != is_side
    assert any(others)


def test_flipping_without_mirrored_latents_is_refused(sd3: Backbone, data: TrainingSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fit\.flip needs the latents of the mirrored images"):
        fit(sd3, data, replace(CONFIG, flip=True), tmp_path, EXECUTION)


def test_validation_mirrors_nothing(sd3: Backbone, data: TrainingSet) -> None:
    data = replace(data, mirrored=-data.latents)  # type: ignore[operator]
    measured = []
    for config in (CONFIG, replace(CONFIG, flip=True)):
        sites = sd3.sites(config.layers)
        method = METHODS[config.objective](initial_tokens(sd3, sites, config, data.latents.shape[1:]), config)
        with inject(sd3.denoiser, sites, method.injected):
            measured.append(Validation(sd3, data, method, Group()).measure(torch.ones(1), 64))
    assert measured[0] == measured[1]
