from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.soft_tokens import SoftTokens
from softrepa_pipeline.training import FitConfig, Observer, Record, TrainingSet, fit
from softrepa_pipeline.training.initial import initial_tokens

CONFIG = FitConfig(
    layers=(0, 1),
    num_tokens=2,
    num_buckets=4,
    num_steps=6,
    batch_size=4,
    num_negatives=2,
    edited_share=0.5,
    mined_share=0.5,
    learning_rate=1e-2,
    weight_decay=1e-4,
    logits="calibrated",
    scale=4.0,
    temperature=1.0,
    denoising_weight=1.0,
    seed=3,
    checkpoint_steps=2,
)


@pytest.fixture
def data(tmp_path: Path) -> TrainingSet:
    captions = [
        ["a red circle", "two blue squares"],
        ["a green triangle"],
        ["a blue square"],
        ["a disc"],
        ["two boxes"],
    ]
    edits = [[["a blue circle"], ["three blue squares", "two red squares"]], [["a red triangle"]], [["a red square"]]]
    edits += [[[]], [["three boxes"]]]
    table = pa.table({"captions": captions, "edits": edits, "negatives": [["a red square"]] * 4 + [[]]})
    pq.write_table(table, tmp_path / "negatives.parquet")
    latents = torch.randn(5, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    return TrainingSet(latents, tmp_path / "negatives.parquet")


class Killed(BaseException):
    """As abrupt as a kill can be inside one process: nothing of ours catches it."""


def run(
    backbone: Backbone, data: TrainingSet, config: FitConfig, folder: Path, kill_at: int | None = None
) -> SoftTokens:
    def on_record(record: Record) -> None:
        if record["step"] == kill_at:
            raise Killed

    return fit(backbone, data, config, folder, Observer(on_record))


def assert_equal(first: SoftTokens, second: SoftTokens) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("logits", ["calibrated", "constant"])
def test_killed_twice_and_resumed_ends_with_the_same_tokens(
    sd3: Backbone, data: TrainingSet, tmp_path: Path, logits: str
) -> None:
    config = replace(CONFIG, logits=logits, temperature=0.07 if logits == "constant" else 1.0)
    whole = run(sd3, data, config, tmp_path / "whole")
    for kill_at in (3, 4):
        with pytest.raises(Killed):
            run(sd3, data, config, tmp_path / "killed", kill_at)
    steps: list[float] = []
    resumed = fit(sd3, data, config, tmp_path / "killed", Observer(lambda record: steps.append(record["step"])))
    assert_equal(whole, resumed)
    assert steps == list(range(6))
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    curves = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert curves[0] == curves[1]


def test_micro_batches_change_nothing_but_rounding(sd3: Backbone, data: TrainingSet, tmp_path: Path) -> None:
    whole = run(sd3, data, CONFIG, tmp_path / "whole")
    small = run(sd3, data, replace(CONFIG, max_pairs_in_memory=3), tmp_path / "small")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_and_leaves_the_base_alone(sd3: Backbone, data: TrainingSet, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in sd3.denoiser.state_dict().items()}
    losses: list[float] = []
    observer = Observer(lambda record: losses.append(record["loss"]))
    fit(sd3, data, replace(CONFIG, num_steps=60, checkpoint_steps=60), tmp_path, observer)
    assert sum(losses[-15:]) < 0.95 * sum(losses[:15])
    assert all(torch.equal(value, before[name]) for name, value in sd3.denoiser.state_dict().items())


def test_damaged_checkpoint_is_named_and_deleting_it_goes_on(sd3: Backbone, data: TrainingSet, tmp_path: Path) -> None:
    whole = run(sd3, data, CONFIG, tmp_path / "whole")
    with pytest.raises(Killed):
        run(sd3, data, CONFIG, tmp_path / "run", kill_at=5)
    newest = sorted((tmp_path / "run").glob("step-*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step-0000004\.safetensors is damaged .* delete it to go on"):
        run(sd3, data, CONFIG, tmp_path / "run")
    newest.unlink()
    assert_equal(whole, run(sd3, data, CONFIG, tmp_path / "run"))


def test_candidates_are_a_function_of_seed_and_step_and_never_repeat_the_own_caption(data: TrainingSet) -> None:
    seen = []
    for step in range(10):
        candidates = data.candidates(CONFIG, step)
        assert data.candidates(CONFIG, step).captions == candidates.captions
        for row, captions in zip(candidates.rows.tolist(), candidates.captions, strict=True):
            assert captions[0] in data.captions[row]
            assert not set(captions[1:]) & set(data.captions[row])
            assert len(captions) == 3
        seen += candidates.rows.tolist()
    assert [sorted(seen[epoch * 5 : epoch * 5 + 5]) for epoch in range(8)] == [[0, 1, 2, 3, 4]] * 8


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = replace(CONFIG, num_steps=100, learning_rate=1.0, warmup_steps=10, decay_share=0.5)
    rates = [config.learning_rate_at(step) for step in (0, 9, 50, 75, 99)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.02])
    assert replace(config, decay_share=0.0).learning_rate_at(99) == 1.0


def test_structured_negatives_contradict_the_caption_that_was_drawn(data: TrainingSet) -> None:
    config = replace(CONFIG, edited_share=1.0, mined_share=0.0, num_negatives=1)
    edits_of = {"a red circle": {"a blue circle"}, "two blue squares": {"three blue squares", "two red squares"}}
    seen = [captions for step in range(20) for captions in data.candidates(config, step).captions]
    drawn = {own: {negative for first, negative in seen if first == own} for own in edits_of}
    assert drawn == edits_of


def test_tokens_from_an_empty_caption_are_the_states_that_blocks_see(sd3: Backbone, data: TrainingSet) -> None:
    sites = sd3.sites((0, 2))
    config = replace(CONFIG, layers=(0, 2), initial="null_text", num_buckets=0)
    tokens = initial_tokens(sd3, sites, config, data.latents.shape[1:])
    states = sd3.denoiser.context_embedder(sd3.encode_prompts([""]).states)
    torch.testing.assert_close(tokens.base[0], states[0, :2], atol=0.2, rtol=0)
    # The first block sees them without noise, later ones after the blocks before.
    assert (tokens.base[1] - states[0, :2]).abs().max() > 0.2
    random = initial_tokens(sd3, sites, replace(config, initial="normal"), data.latents.shape[1:])
    torch.testing.assert_close(tokens.base[0] - random.base[0], states[0, :2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": "linear"}, r"fit\.logits must be one of constant, calibrated, not 'linear'"),
        ({"mined_share": 0.7}, r"fit\.edited_share and fit\.mined_share must be shares of one whole"),
        ({"timestep_range": (500.0, 500.0)}, r"fit\.timestep_range must lie in \[0, 1000\], low before high"),
        ({"initial": "zeros"}, r"fit\.initial must be normal or null_text, not 'zeros'"),
        ({"batch_size": 0}, r"fit\.batch_size must be at least 1"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)  # type: ignore[arg-type]
