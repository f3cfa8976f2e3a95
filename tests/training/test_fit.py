from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_settings import BATCH, CONFIG, EXECUTION

from softrepa_pipeline.backbones import Backbone, grid, inject
from softrepa_pipeline.inference import add_tokens
from softrepa_pipeline.soft_tokens import SoftTokens
from softrepa_pipeline.training import (
    PRESETS,
    ExecutionConfig,
    FitConfig,
    Observer,
    Record,
    TrainingSet,
    fit,
    fit_config,
)
from softrepa_pipeline.training.calibration import calibrate
from softrepa_pipeline.training.checkpoint import load_checkpoint
from softrepa_pipeline.training.distributed import Group
from softrepa_pipeline.training.draws import draw_noise
from softrepa_pipeline.training.initial import initial_tokens
from softrepa_pipeline.training.loading import load_step
from softrepa_pipeline.training.methods import METHODS, Rows
from softrepa_pipeline.training.pair_engine import accumulate, choose_plan


class Killed(BaseException):
    """As abrupt as a kill can be inside one process: nothing of ours catches it."""


def run(
    backbone: Backbone,
    data: TrainingSet,
    config: FitConfig,
    folder: Path,
    kill_at: int | None = None,
    execution: ExecutionConfig = EXECUTION,
) -> SoftTokens:
    def on_record(record: Record) -> None:
        if record["step"] == kill_at:
            raise Killed

    return fit(backbone, data, config, folder, execution, Observer(on_record))


def positions(step: int) -> range:
    return range(step * CONFIG.batch_size, (step + 1) * CONFIG.batch_size)


def assert_equal(first: SoftTokens, second: SoftTokens) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(BATCH, symmetric=True),
        replace(CONFIG, objective="agsm"),
        replace(CONFIG, objective="dsm"),
        replace(CONFIG, base_weight=1.0, token_dropout=0.5, max_token_norm=0.2),
    ],
    ids=["softrepa", "symmetric", "agsm", "dsm", "regularised"],
)
def test_killed_twice_and_resumed_ends_with_the_same_tokens(
    sd3: Backbone, data: TrainingSet, tmp_path: Path, config: FitConfig
) -> None:
    whole = run(sd3, data, config, tmp_path / "whole")
    for kill_at in (3, 4):
        with pytest.raises(Killed):
            run(sd3, data, config, tmp_path / "killed", kill_at)
    steps: list[float] = []
    resumed = fit(
        sd3, data, config, tmp_path / "killed", EXECUTION, Observer(lambda record: steps.append(record["step"]))
    )
    assert_equal(whole, resumed)
    assert steps == list(range(6))
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    curves = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert curves[0] == curves[1]


METHOD_CONFIGS = {
    "softrepa": CONFIG,
    "batch": BATCH,
    "some of the batch": replace(BATCH, num_negatives=2),
    "symmetric": replace(BATCH, symmetric=True),
    "agsm": replace(CONFIG, objective="agsm"),
    "agsm, one bank": replace(CONFIG, objective="agsm", dual_banks=False),
    "dsm": replace(CONFIG, objective="dsm"),
}


@pytest.mark.parametrize("pairs_at_once", [12, 4, 3, 2, 1])
@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_every_plan_of_the_pair_engine_has_the_same_gradient(
    backbone: Backbone, data: TrainingSet, name: str, pairs_at_once: int
) -> None:
    config = replace(METHOD_CONFIGS[name], layers=CONFIG.layers if backbone.family == "sd3" else ("down", "mid"))
    sites = backbone.sites(config.layers)
    method = METHODS[config.objective](initial_tokens(backbone, sites, config, data.latents.shape[1:]), config)
    loaded = load_step(backbone, data, config, torch.ones(1), 0, slice(None))
    gradients, losses = [], []
    with inject(backbone.denoiser, sites, method.injected):
        for most in (256, pairs_at_once):
            plan = choose_plan(config, 4, most)
            assert plan.pairs_at_once <= most
            method.zero_grad()
            results = [
                accumulate(backbone, method, loaded.rows_at(rows, torch.tensor([0.07]), share=most < 256), plan, 4)
                for rows in torch.arange(4).split(plan.rows_at_once)
            ]
            losses.append(torch.cat([result.losses.loss for result in results]))
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in method.trainable]))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    # Sums in another order: float32 was found to differ by up to 1.06e-5, by processor.
    assert (gradients[1] - gradients[0]).norm() <= 3e-5 * gradients[0].norm()


def test_training_lowers_the_error_and_leaves_the_base_alone(sd3: Backbone, data: TrainingSet, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in sd3.denoiser.state_dict().items()}
    config = replace(CONFIG, objective="dsm", num_steps=60, learning_rate=0.03)
    initial = initial_tokens(sd3, sd3.sites(config.layers), config, data.latents.shape[1:])
    trained = run(sd3, data, config, tmp_path)
    errors = []
    for tokens in (initial, trained):
        noise = torch.randn(5, 16, 8, 8, generator=torch.Generator().manual_seed(5))
        with torch.no_grad(), add_tokens(sd3, tokens):
            noised = sd3.noise(data.latents, noise, torch.linspace(100, 900, 5))
            prediction = sd3.predict(noised, sd3.encode_prompts([captions[0] for captions in data.captions]))
        errors.append(F.mse_loss(prediction, noised.target).item())
    assert errors[1] < 0.99 * errors[0]
    assert all(torch.equal(value, before[name]) for name, value in sd3.denoiser.state_dict().items())


def test_damaged_checkpoint_is_left_out_with_a_warning(
    sd3: Backbone, data: TrainingSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(sd3, data, CONFIG, tmp_path / "whole")
    with pytest.raises(Killed):
        run(sd3, data, CONFIG, tmp_path / "run", kill_at=5)
    newest = sorted((tmp_path / "run").glob("step-*.safetensors"))[-1]
    content = newest.read_bytes()
    for damaged in (content[:100], content[:-1] + bytes([content[-1] ^ 1]), b""):
        newest.write_bytes(damaged)
        caplog.clear()
        method = METHODS["softrepa"](initial_tokens(sd3, sd3.sites((0, 1)), CONFIG, data.latents.shape[1:]), CONFIG)
        progress = load_checkpoint(tmp_path / "run", method, torch.optim.AdamW(method.trainable))
        assert progress is not None
        assert progress.step == 2
        assert "step-0000004 is damaged and left out" in caplog.text
    assert_equal(whole, run(sd3, data, CONFIG, tmp_path / "run"))


def test_candidates_are_a_function_of_seed_and_step_and_never_repeat_the_own_caption(data: TrainingSet) -> None:
    seen = []
    for step in range(10):
        candidates = data.candidates(CONFIG, positions(step))
        assert data.candidates(CONFIG, positions(step)).captions == candidates.captions
        parts = [data.candidates(CONFIG, positions(step), part) for part in (slice(0, 1), slice(1, 4))]
        assert parts[0].captions + parts[1].captions == candidates.captions
        for row, captions in zip(candidates.rows.tolist(), candidates.captions, strict=True):
            assert captions[0] in data.captions[row]
            assert not set(captions[1:]) & set(data.captions[row])
            assert len(captions) == 3
        seen += candidates.rows.tolist()
    assert [sorted(seen[epoch * 5 : epoch * 5 + 5]) for epoch in range(8)] == [[0, 1, 2, 3, 4]] * 8


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = replace(CONFIG, num_steps=100, learning_rate=1.0, warmup_steps=10, decay_share=0.5)
    rates = [config.learning_rate_at(step, 100) for step in (0, 9, 50, 75, 99)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.02])
    assert replace(config, decay_share=0.0).learning_rate_at(99, 100) == 1.0


def test_structured_negatives_contradict_the_caption_that_was_drawn(data: TrainingSet) -> None:
    config = replace(CONFIG, edited_share=1.0, mined_share=0.0, num_negatives=1)
    edits_of = {"a red circle": {"a blue circle"}, "two blue squares": {"three blue squares", "two red squares"}}
    seen = [captions for step in range(20) for captions in data.candidates(config, positions(step)).captions]
    drawn = {own: {negative for first, negative in seen if first == own} for own in edits_of}
    assert drawn == edits_of


def test_a_curriculum_goes_from_random_to_structured_negatives(data: TrainingSet) -> None:
    config = replace(CONFIG, edited_share=(0.0, 1.0), mined_share=0.0, num_negatives=1, num_steps=400)
    row = 2  # a blue square: its only edit is a red square, which is no caption of the set
    thirds = []
    for steps in (range(133), range(133, 266), range(266, 400)):
        seen = [data.candidates(config, config.positions_of(step)) for step in steps]
        negatives = [
            captions[1] for step in seen for at, captions in zip(step.rows, step.captions, strict=True) if at == row
        ]
        thirds.append(sum(negative == "a red square" for negative in negatives) / len(negatives))
    assert thirds == pytest.approx([1 / 6, 1 / 2, 5 / 6], abs=0.1)


def test_a_share_of_less_than_one_negative_is_drawn_as_often(data: TrainingSet) -> None:
    config = replace(CONFIG, edited_share=0.3, mined_share=0.0, num_negatives=1, num_steps=400)
    seen = [data.candidates(config, config.positions_of(step)) for step in range(400)]
    negatives = [captions[1] for step in seen for at, captions in zip(step.rows, step.captions, strict=True) if at == 2]
    assert sum(negative == "a red square" for negative in negatives) / len(negatives) == pytest.approx(0.3, abs=0.08)


def test_tokens_from_an_empty_caption_are_the_states_that_blocks_see(sd3: Backbone, data: TrainingSet) -> None:
    sites = sd3.sites((0, 2))
    config = replace(CONFIG, layers=(0, 2), initial="null_text", num_buckets=0)
    tokens = initial_tokens(sd3, sites, config, data.latents.shape[1:])
    states = sd3.denoiser.context_embedder(sd3.encode_prompts([""]).states)
    torch.testing.assert_close(tokens.base[0], states[0, :1].expand(2, -1))
    # The first block sees them as they are, later ones after the blocks before.
    assert (tokens.base[1] - states[0, :1]).abs().max() > 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": "linear"}, r"fit\.logits must be one of exponential, relative, raw, not 'linear'"),
        ({"objective": "dpo"}, r"fit\.objective must be one of softrepa, agsm, dsm, not 'dpo'"),
        ({"symmetric": True}, r"fit\.symmetric compares images with each other: set candidates: batch"),
        ({"num_epochs": 2}, r"fit: set one of num_steps and num_epochs"),
        ({"num_steps": None}, r"fit: set one of num_steps and num_epochs"),
        ({"temperature": (0.1, 0.0)}, r"fit\.temperature must be above 0"),
        ({"mined_share": 0.7}, r"fit\.edited_share and fit\.mined_share must be shares of one whole"),
        ({"mined_share": (0.0, 0.7)}, r"fit\.edited_share and fit\.mined_share must be shares of one whole"),
        ({"timestep_range": (500.0, 500.0)}, r"fit\.timestep_range must lie in \[0, 1000\], low before high"),
        ({"initial": "zeros"}, r"fit\.initial must be one of normal, null_text, not 'zeros'"),
        ({"batch_size": 0}, r"fit\.batch_size must be at least 1"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)  # type: ignore[arg-type]


def test_the_step_s_own_captions_compete_unless_true_of_the_image(data: TrainingSet) -> None:
    for step in range(5):
        candidates = data.candidates(BATCH, positions(step))
        own = [captions[0] for captions in candidates.captions]
        for row, captions in enumerate(candidates.captions):
            assert captions == [own[row], *own[:row], *own[row + 1 :]]
            belongs = data.captions[int(candidates.rows[row])]
            assert candidates.is_candidate[row].tolist() == [True] + [
                caption not in belongs for caption in captions[1:]
            ]


def test_softrepa_step_equals_the_published_code_s(backbone: Backbone, data: TrainingSet) -> None:
    """The published training step, written out: every image with every caption, one timestep and one noise."""
    config = replace(BATCH, layers=(0, 1) if backbone.family == "sd3" else ("down",), denoising_weight=10.0)
    sites = backbone.sites(config.layers)
    method = METHODS["softrepa"](initial_tokens(backbone, sites, config, data.latents.shape[1:]), config)
    latents, noise = data.latents[:4], torch.randn(1, 16, 8, 8).expand(4, -1, -1, -1)
    captions = ["a red circle", "two boxes", "a blue square", "a disc"]
    timestep = torch.full((4,), 417.0)
    with inject(backbone.denoiser, sites, method.injected):
        errors = torch.stack(
            [
                torch.stack([_error(backbone, latents[i : i + 1], noise[:1], timestep[:1], text) for text in captions])
                for i in range(4)
            ]
        )
        published = F.cross_entropy(4 * torch.exp(-errors / 0.07), torch.eye(4)) + 10 * errors.diagonal().mean()
        wanted = torch.autograd.grad(published, method.trainable)
        own_first = torch.tensor([[i, *(j for j in range(4) if j != i)] for i in range(4)])
        pairs = grid(backbone.noise(latents, noise, timestep), backbone.encode_prompts(captions), own_first)
        rows = Rows(pairs, torch.full((4,), 0.07), torch.ones(4), torch.ones(4, 4, dtype=torch.bool))
        loss = accumulate(backbone, method, rows, choose_plan(config, 4, 16), 4).losses.loss.mean()
        found = [parameter.grad for parameter in method.trainable]
    torch.testing.assert_close(loss, published, rtol=1e-5, atol=0)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


def _error(backbone: Backbone, latent: Tensor, noise: Tensor, timestep: Tensor, caption: str) -> Tensor:
    noised = backbone.noise(latent, noise, timestep)
    prediction = backbone.predict(noised, backbone.encode_prompts([caption]))
    return F.mse_loss(prediction, noised.target)


def test_agsm_trains_two_banks_exports_the_positive_and_averages_both(
    sd3: Backbone, data: TrainingSet, tmp_path: Path
) -> None:
    config = replace(CONFIG, objective="agsm")
    sites = sd3.sites(config.layers)
    method = METHODS["agsm"](initial_tokens(sd3, sites, config, data.latents.shape[1:]), config)
    assert sum(parameter.numel() for parameter in method.trainable) == 2 * method.tokens.num_parameters
    positive, negative, *averages = method.injected.banks
    before = averages[0].base.clone()
    with torch.no_grad():
        positive.base.add_(1)
    method.after_step(5)
    torch.testing.assert_close(averages[0].base, before + 1 - 6 / 15)
    torch.testing.assert_close(averages[1].base, negative.base)
    trained = run(sd3, data, config, tmp_path)
    assert isinstance(trained, SoftTokens)
    assert not torch.equal(trained.base, before)


def test_agsm_with_one_bank_trains_the_exported_tokens_on_both_kinds_of_pairs(sd3: Backbone, data: TrainingSet) -> None:
    def gradients(dual_banks: bool) -> list[Tensor]:
        config = replace(CONFIG, objective="agsm", negative_shift=1.0, dual_banks=dual_banks)
        sites = sd3.sites(config.layers)
        method = METHODS["agsm"](initial_tokens(sd3, sites, config, data.latents.shape[1:]), config)
        loaded = load_step(sd3, data, config, torch.ones(1), 0, slice(None))
        rows = loaded.rows_at(torch.arange(4), torch.ones(1), share=False)
        with inject(sd3.denoiser, sites, method.injected):
            accumulate(sd3, method, rows, choose_plan(config, 4, 256), 4)
        return [parameter.grad for parameter in method.trainable]

    one, dual = gradients(dual_banks=False), gradients(dual_banks=True)
    for index, found in enumerate(one):
        positive, negative = dual[index], dual[len(one) + index]
        torch.testing.assert_close(found, positive + negative)
        assert negative.norm() > 0.01 * found.norm()


def test_the_control_has_no_negatives(sd3: Backbone, data: TrainingSet, tmp_path: Path) -> None:
    records: list[Record] = []
    fit(sd3, data, replace(CONFIG, objective="dsm"), tmp_path, EXECUTION, Observer(records.append))
    assert "error_negative" not in records[0]
    assert records[0]["loss"] == records[0]["error_positive"]


def test_a_temperature_schedule_follows_the_timestep(sd3: Backbone, data: TrainingSet) -> None:
    def temperatures(config: FitConfig) -> Tensor:
        method = METHODS["softrepa"](initial_tokens(sd3, sd3.sites((0, 1)), config, data.latents.shape[1:]), config)
        with inject(sd3.denoiser, sd3.sites((0, 1)), method.injected):
            return calibrate(sd3, data, method, 64, Group()).temperatures

    constant = temperatures(replace(CONFIG, calibrated=False, temperature=(0.1, 0.2, 0.4)))
    assert constant.tolist() == pytest.approx([0.1, 0.2, 0.4])
    measured = temperatures(replace(CONFIG, temperature=1.0))
    scaled = temperatures(replace(CONFIG, temperature=(1.0, 3.0)))
    torch.testing.assert_close(scaled / measured, torch.tensor([1.0] * 5 + [3.0] * 5))


def test_offset_noise_shifts_whole_channels(data: TrainingSet) -> None:
    def noise(config: FitConfig) -> Tensor:
        return draw_noise(config, positions(0), data.latents.shape[1:], torch.ones(1), slice(None)).noise

    offset = (noise(replace(CONFIG, noise_offset=0.1)) - noise(CONFIG)).flatten(2)
    torch.testing.assert_close(offset, offset[:, :, :1].expand_as(offset))
    assert 0.05 < offset[:, :, 0].std() < 0.2


@pytest.mark.parametrize("key", PRESETS, ids=" ".join)
def test_every_preset_can_be_changed_in_one_setting(key: tuple[str, str, str]) -> None:
    preset, family, objective = key
    config = fit_config(preset, family, objective, {"num_steps": 7})
    assert config == replace(PRESETS[key].settings, num_steps=7, num_epochs=None)
    assert config.objective == objective
    with pytest.raises(ValueError, match=r"unknown parameter fit\.steps; did you mean"):
        fit_config(preset, family, objective, {"steps": 7})


def test_an_unknown_preset_is_named() -> None:
    known = "presets: published, calibrated, embedded, embedded_t500; objectives"
    with pytest.raises(ValueError, match=rf"no preset 'fast' .* {known}"):
        fit_config("fast", "sd3", "softrepa", {})


def test_epochs_follow_the_size_of_the_data() -> None:
    config = replace(CONFIG, num_steps=None, num_epochs=3)
    assert [config.steps_for(size) for size in (5, 4, 118_287)] == [4, 3, 88_716]
    assert CONFIG.steps_for(5) == 6


def test_each_layer_starts_from_its_own_block_s_state_in_any_order(sd3: Backbone, data: TrainingSet) -> None:
    config = replace(CONFIG, initial="null_text")
    forth, back = (
        initial_tokens(sd3, sd3.sites(layers), config, data.latents.shape[1:]).base for layers in ((0, 2), (2, 0))
    )
    torch.testing.assert_close(forth, back.flip(0))
