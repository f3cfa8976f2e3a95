"""What can go wrong while a training runs, done for real: each ends as it should, and nothing is lost."""

from __future__ import annotations

import errno
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disks import fill, small_files
from torch import Tensor
from training_settings import CONFIG, EXECUTION

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig
from softrepa_pipeline.training import ExecutionConfig, FitConfig, Observer, Record, TrainingSet, device, fit
from softrepa_pipeline.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from softrepa_pipeline.training.device import is_out_of_memory, within_memory
from softrepa_pipeline.training.distributed import Group
from softrepa_pipeline.training.guards import Guard
from softrepa_pipeline.training.methods import METHODS
from softrepa_pipeline.training.records import append, read
from softrepa_pipeline.training.validation import Validation

# One image a step, so that a fault has a step of its own.
ONE = replace(CONFIG, batch_size=1, num_steps=12)
# Without temperatures as small as a random model's gaps, rounding stays rounding.
SMOOTH = replace(CONFIG, batch_size=2, num_steps=3, calibrated=False, temperature=0.07)
RARELY = replace(EXECUTION, checkpoint_steps=5)


def many(data: TrainingSet, count: int) -> TrainingSet:
    """As many images as that, with random latents and the captions of the five."""
    rows = [index % len(data) for index in range(count)]
    columns = [[column[row] for row in rows] for column in (data.captions, data.edits, data.negatives)]
    latents = torch.randn(count, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    ids = [f"image-{index}" for index in range(count)]
    return replace(
        data,
        latents=latents,
        image_ids=ids,
        captions=columns[0],
        edits=columns[1],
        negatives=columns[2],
        members=np.arange(count),
    )


def row_at(data: TrainingSet, config: FitConfig, step: int) -> int:
    """The one image of a step."""
    return int(data.candidates(config, range(step, step + 1)).rows)


def run(
    backbone: Backbone, data: TrainingSet, config: FitConfig, folder: Path, execution: ExecutionConfig = RARELY
) -> tuple[SoftTokens, list[Record]]:
    records: list[Record] = []
    return fit(backbone, data, config, folder, execution, Observer(records.append)), records


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def loaded(tokens: SoftTokens, folder: Path) -> tuple[Progress, torch.optim.AdamW]:
    """The newest checkpoint, read into tokens of this one's shape."""
    method = METHODS["softrepa"](SoftTokens(tokens.config), CONFIG)
    optimizer = torch.optim.AdamW(method.trainable)
    progress = load_checkpoint(folder, method, optimizer)
    assert progress is not None
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())
    return progress, optimizer


def assert_equal(first: SoftTokens, second: SoftTokens) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize(("value", "first_met"), [(math.nan, 3), (math.inf, 3), (math.nan, 0)])
def test_steps_of_an_image_that_is_not_finite_never_reach_the_tokens(
    sd3: Backbone, data: TrainingSet, tmp_path: Path, value: float, first_met: int
) -> None:
    bad = row_at(data, ONE, first_met)
    steps = [step for step in range(12) if row_at(data, ONE, step) == bad]
    data.latents[bad, 5, 2, 3] = value
    tokens, records = run(sd3, data, ONE, tmp_path)
    wanted = [{"step": step, "reason": "not finite", "image_ids": [data.image_ids[bad]]} for step in steps]
    assert lines(tmp_path / "skipped.jsonl") == wanted
    assert [record["step"] for record in records] == [step for step in range(12) if step not in steps]
    assert all(torch.isfinite(parameter).all() for parameter in tokens.parameters())
    progress, optimizer = loaded(tokens, tmp_path)
    assert progress.step == 12
    assert {int(state["step"]) for state in optimizer.state.values()} == {12 - len(steps)}


@dataclass
class Flaky:
    """Latents of which some cannot be read at first."""

    latents: Tensor
    failing: set[int]

    @property
    def shape(self) -> torch.Size:
        return self.latents.shape

    def __getitem__(self, rows: Tensor) -> Tensor:
        now = set(rows.tolist()) & self.failing
        self.failing -= now
        return torch.stack([self.latents[row] * (math.nan if row in now else 1) for row in rows.tolist()])


def test_three_bad_steps_in_a_row_go_back_to_the_last_checkpoint_at_half_the_learning_rate(
    sd3: Backbone, data: TrainingSet, tmp_path: Path
) -> None:
    data = many(data, 20)
    bad = [row_at(data, ONE, step) for step in (6, 7, 8)]
    flaky = replace(data, latents=Flaky(data.latents, set(bad)))  # type: ignore[arg-type]
    tokens, records = run(sd3, flaky, ONE, tmp_path / "run")
    assert [record["step"] for record in records] == [*range(6), *range(5, 12)]
    rates = [record["learning_rate"] / ONE.learning_rate_at(int(record["step"]), 12) for record in records]
    assert rates == pytest.approx([1.0] * 6 + [0.5] * 7)
    skipped = [(entry["step"], entry["image_ids"]) for entry in lines(tmp_path / "run" / "skipped.jsonl")]
    assert skipped == [(step, [f"image-{row}"]) for step, row in zip((6, 7, 8), bad, strict=True)]
    assert [entry["step"] for entry in lines(tmp_path / "run" / "metrics.jsonl")] == list(range(12))

    # The same as a training that stands at the checkpoint and has half the learning rate from there on.
    run(sd3, data, replace(ONE, num_steps=5), tmp_path / "half")
    manifest = tmp_path / "half" / "step-0000005.json"
    state = json.loads(manifest.read_text())
    state["guard"]["learning_rate_scale"] = 0.5
    manifest.write_text(json.dumps(state))
    assert_equal(tokens, run(sd3, data, ONE, tmp_path / "half")[0])


def test_a_training_that_is_never_usable_ends_and_names_the_images(
    sd3: Backbone, data: TrainingSet, tmp_path: Path
) -> None:
    data.latents.fill_(math.nan)
    named = ", ".join(data.image_ids[row_at(data, ONE, step)] for step in (0, 1))
    with pytest.raises(ValueError, match=rf"is finite on the first images \({named}\)"):
        run(sd3, data, ONE, tmp_path)


@pytest.mark.parametrize(("num_steps", "message"), [(12, "the first steps were not usable"), (2, "no step was usable")])
@pytest.mark.parametrize("checkpoint_steps", [1, 5])
def test_a_training_whose_steps_are_all_unusable_ends_and_names_their_images(
    sd3: Backbone, data: TrainingSet, tmp_path: Path, num_steps: int, message: str, checkpoint_steps: int
) -> None:
    def break_model(_step: int, _tokens: SoftTokens) -> None:
        next(sd3.denoiser.parameters()).data.fill_(math.nan)

    config, execution = replace(ONE, num_steps=num_steps), replace(EXECUTION, checkpoint_steps=checkpoint_steps)
    with pytest.raises(ValueError, match=rf"{message}; {tmp_path}/skipped\.jsonl names their images"):
        fit(sd3, data, config, tmp_path, execution, Observer(on_milestone=break_model))
    skipped = [entry["image_ids"] for entry in lines(tmp_path / "skipped.jsonl")]
    assert skipped == [[data.image_ids[row_at(data, ONE, step)]] for step in range(min(3, num_steps))]


def test_a_training_that_stays_unusable_ends_after_three_rollbacks_and_keeps_its_checkpoint(
    sd3: Backbone, data: TrainingSet, tmp_path: Path
) -> None:
    data = many(data, 20)
    tokens, _ = run(sd3, data, replace(ONE, num_steps=5), tmp_path)
    data.latents[[row_at(data, ONE, step) for step in (6, 7, 8)]] = math.nan
    with pytest.raises(ValueError, match=r"3 steps in a row were not usable, after 3 rollbacks; skipped\.jsonl in the"):
        run(sd3, data, ONE, tmp_path)
    assert [entry["step"] for entry in lines(tmp_path / "skipped.jsonl")] == [6, 7, 8]
    progress, _ = loaded(tokens, tmp_path)
    assert progress.step == 5


def test_the_guard_knows_spikes_only_after_64_good_steps() -> None:
    guard = Guard()
    for step in range(64):
        assert guard.fault(1e6, 1.0) is None
        guard = guard.after_good(1.0 + step % 2)
    # The median is 1.5.
    assert guard.fault(29.9, 1.0) is None
    assert guard.fault(30.1, 1.0) == "loss spike"
    assert guard.fault(-30.1, 1.0) == "loss spike"
    for loss, norm in ((math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)):
        assert guard.fault(loss, norm) == "not finite"
    for _ in range(64):
        guard = guard.after_good(10.0)
    assert guard.fault(199.0, 1.0) is None
    assert guard.fault(201.0, 1.0) == "loss spike"


def test_the_guard_asks_for_a_rollback_after_three_bad_steps_in_a_row_only() -> None:
    guard = Guard().after_bad().after_bad().after_good(1.0).after_bad().after_bad()
    assert not guard.must_roll_back
    guard = guard.after_bad()
    for rollback in (1, 2, 3):
        assert guard.must_roll_back
        guard = guard.rolled_back()
        assert (guard.rollbacks, guard.learning_rate_scale, guard.must_roll_back) == (rollback, 0.5**rollback, False)
        guard = guard.after_bad().after_bad().after_bad()
    with pytest.raises(ValueError, match=r"skipped\.jsonl in the run's folder names their images; lower fit\.learning"):
        guard.rolled_back()


def test_an_image_with_a_spike_of_the_loss_is_skipped_and_named(
    sd3: Backbone, data: TrainingSet, tmp_path: Path
) -> None:
    data = many(data, 80)
    config = replace(ONE, objective="dsm", num_steps=70)
    good, bad = (row_at(data, config, step) for step in (65, 67))
    data.latents[good] *= 2
    data.latents[bad] *= 1e3
    tokens, records = run(sd3, data, config, tmp_path)
    (skipped,) = lines(tmp_path / "skipped.jsonl")
    assert skipped == {"step": 67, "reason": "loss spike", "image_ids": [f"image-{bad}"]}
    assert len(records) == 69
    assert max(record["loss"] for record in records) < 20
    assert {int(state["step"]) for state in loaded(tokens, tmp_path)[1].state.values()} == {69}


def allocate_absurdly() -> None:
    torch.empty(2**48)


def test_torch_s_own_failure_to_allocate_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        allocate_absurdly()
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("shapes do not fit"))


def too_small(backbone: Backbone, is_too_much: Callable[[int], bool], with_gradient: bool = True) -> list[int]:
    """A real allocation fails in passes of one kind where `is_too_much` of so many pairs; returns their sizes."""
    sizes: list[int] = []

    def check(_module: object, _arguments: object, named: dict[str, Tensor]) -> None:
        if torch.is_grad_enabled() == with_gradient:
            sizes.append(len(named["hidden_states"]))
            if is_too_much(sizes[-1]):
                allocate_absurdly()

    backbone.denoiser.register_forward_pre_hook(check, with_kwargs=True)
    return sizes


@pytest.mark.parametrize("most", [3, 2])
def test_memory_that_does_not_suffice_halves_the_micro_batch_and_changes_nothing_else(
    sd3: Backbone, data: TrainingSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, most: int
) -> None:
    execution = replace(EXECUTION, max_pairs_in_memory=6)
    whole, _ = run(sd3, data, SMOOTH, tmp_path / "whole", execution)
    sizes = too_small(sd3, lambda size: size > most)
    halved, records = run(sd3, data, SMOOTH, tmp_path / "halved", execution)
    for name, value in whole.state_dict().items():
        assert (halved.state_dict()[name] - value).norm() <= 1e-5 * value.norm(), name
    assert [record["step"] for record in records] == [0, 1, 2]
    # A row has three pairs: below, there are two passes.
    wanted = {3: [3], 2: [3, 1]}[most]
    messages = [record.getMessage() for record in caplog.records if "out of memory" in record.message]
    assert messages == [f"out of memory: going on with {count} pairs at once" for count in wanted]
    # What it has learned is in the checkpoint: it does not run out of memory again.
    progress, _ = loaded(halved, tmp_path / "halved")
    assert progress.pairs_at_once == wanted[-1]
    sizes.clear()
    run(sd3, data, replace(SMOOTH, num_steps=4), tmp_path / "halved", execution)
    assert 0 < max(sizes) <= most


def test_memory_that_runs_out_in_the_middle_of_a_step_leaves_no_half_gradient(
    sd3: Backbone, data: TrainingSet, tmp_path: Path
) -> None:
    execution = replace(EXECUTION, max_pairs_in_memory=3)
    whole, _ = run(sd3, data, SMOOTH, tmp_path / "whole", execution)
    sizes = too_small(sd3, lambda size: size == 3 and len(sizes) == 4)
    halved, _ = run(sd3, data, SMOOTH, tmp_path / "halved", execution)
    # The second image of the second step fails, so both begin anew, pair by pair in two passes of which one is seen.
    assert sizes == [3, 3, 3, 3] + [1] * 12
    for name, value in whole.state_dict().items():
        assert (halved.state_dict()[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.parametrize("starts_at", [-1, 1], ids=["calibrating", "validating"])
def test_memory_that_does_not_suffice_while_measuring_halves_the_micro_batch_too(
    sd3: Backbone, data: TrainingSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, starts_at: int
) -> None:
    config = replace(SMOOTH, held_out_images=2, validation_steps=2)
    execution = replace(EXECUTION, max_pairs_in_memory=6)
    whole, measured = run(sd3, data, config, tmp_path / "whole", execution)
    at: list[float] = [-1]
    sizes = too_small(sd3, lambda size: size > 3 and at[-1] >= starts_at, with_gradient=False)
    records: list[Record] = []
    observer = Observer(lambda record: at.append(record["step"]) or records.append(record))
    halved = fit(sd3, data, config, tmp_path / "halved", execution, observer)
    assert 3 in sizes
    messages = [record.getMessage() for record in caplog.records if "out of memory" in record.message]
    assert messages == ["out of memory: going on with 3 pairs at once"]
    assert loaded(halved, tmp_path / "halved")[0].pairs_at_once == 3
    for name, value in whole.state_dict().items():
        assert (halved.state_dict()[name] - value).norm() <= 1e-5 * value.norm(), name
    profiles = [json.loads((tmp_path / name / "profile.json").read_text()) for name in ("whole", "halved")]
    for name, values in profiles[0].items():
        assert profiles[1][name] == pytest.approx(values, rel=1e-5, abs=1e-6), name
    for found, wanted in zip(records, measured, strict=True):
        if "validation_loss" in wanted:
            # A gap is a difference of losses near 1, of tokens that differ by rounding: 4.8e-7 was found, by processor.
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_memory_that_runs_out_while_held_out_images_are_loaded_leaves_no_half_of_them(
    sd3: Backbone, data: TrainingSet
) -> None:
    method = METHODS["softrepa"](SoftTokens(SoftTokensConfig(("0",), 2, 64, 4)), SMOOTH)
    wanted = Validation(sd3, data, method, Group()).measure(torch.ones(10), 4)
    validation, seen = Validation(sd3, data, method, Group()), []

    def check(*_: object) -> None:
        seen.append(1)
        if len(seen) == 3:
            allocate_absurdly()

    sd3.pipeline.text_encoder.register_forward_pre_hook(check)
    assert within_memory(lambda count: validation.measure(torch.ones(10), count), 8) == (wanted, 4)


def test_rows_that_do_not_fit_have_their_blocks_computed_anew_and_the_same_result(
    sd3: Backbone, data: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    execution = replace(EXECUTION, max_pairs_in_memory=None)
    whole, _ = run(sd3, data, SMOOTH, tmp_path / "whole", execution)
    assert not sd3.denoiser.gradient_checkpointing
    with monkeypatch.context() as patched:
        patched.setattr(device, "free_bytes", lambda _device: 1)
        recomputed, _ = run(sd3, data, replace(SMOOTH, num_steps=2), tmp_path / "small", execution)
    assert "blocks computed anew for the backward" in caplog.text
    # The choice is in the checkpoint: the step that is left is computed so too, and then the model is as it was.
    caplog.clear()
    recomputed, _ = run(sd3, data, SMOOTH, tmp_path / "small", execution)
    assert "blocks computed anew for the backward" in caplog.text
    assert not sd3.denoiser.gradient_checkpointing
    for name, value in whole.state_dict().items():
        assert (recomputed.state_dict()[name] - value).norm() <= 1e-5 * value.norm(), name


def test_memory_for_less_than_one_pair_ends_the_training(sd3: Backbone, data: TrainingSet, tmp_path: Path) -> None:
    too_small(sd3, lambda size: True)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        run(sd3, data, ONE, tmp_path, replace(EXECUTION, max_pairs_in_memory=4))


def test_a_checkpoint_that_cannot_be_written_is_named_and_leaves_the_one_before(tmp_path: Path) -> None:
    method = METHODS["softrepa"](SoftTokens(SoftTokensConfig(("0",), 2, 64, 4)), CONFIG)
    optimizer = torch.optim.AdamW(method.trainable)
    progress = Progress(2, torch.ones(1), torch.ones(1), 4)
    save_checkpoint(tmp_path, method, optimizer, progress)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with small_files(1000), pytest.raises(OSError, match=rf"File too large: '{tmp_path}/step-0000004\.safe") as caught:
        save_checkpoint(tmp_path, method, optimizer, replace(progress, step=4))
    assert caught.value.errno == errno.EFBIG
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "skipped.jsonl"])
def test_a_line_that_cannot_be_written_names_its_log_and_leaves_no_part_of_itself(tmp_path: Path, name: str) -> None:
    log, record = tmp_path / name, {"step": 0.0, "text": "x" * 80}
    append(log, record)
    with small_files(150), pytest.raises(OSError, match=rf"File too large: '{log}'") as caught:
        append(log, record)
    assert caught.value.errno == errno.EFBIG
    append(log, {"step": 1.0})
    assert read(log) == lines(log) == [record, {"step": 1.0}]


def test_a_disk_that_is_full_when_a_step_is_logged_names_the_log_and_loses_no_step(
    sd3: Backbone, data: TrainingSet, tmp_path: Path, small_disk: Path
) -> None:
    config, log = replace(ONE, num_steps=40), small_disk / "run" / "metrics.jsonl"
    execution = replace(EXECUTION, checkpoint_steps=100)
    whole, _ = run(sd3, data, config, tmp_path / "whole", execution)

    def fill_before_the_next_page(_record: Record) -> None:
        content = log.read_text()
        if 4096 - len(content) % 4096 < len(content.splitlines()[-1]):
            fill(small_disk)

    with pytest.raises(OSError, match=rf"No space left on device: '{log}'") as caught:
        fit(sd3, data, config, log.parent, execution, Observer(fill_before_the_next_page))
    assert caught.value.errno == errno.ENOSPC
    assert 3 < len(lines(log)) < 40
    (small_disk / "ballast").unlink()
    resumed, records = run(sd3, data, config, log.parent, execution)
    assert_equal(whole, resumed)
    assert [record["step"] for record in records] == list(range(40))


def test_a_full_disk_stops_the_training_which_goes_on_when_there_is_space(
    sd3: Backbone, data: TrainingSet, tmp_path: Path, small_disk: Path
) -> None:
    config = replace(CONFIG, batch_size=2)
    whole, _ = run(sd3, data, config, tmp_path / "whole", EXECUTION)
    folder = small_disk / "run"
    observer = Observer(lambda record: fill(small_disk) if record["step"] == 3 else None)
    with pytest.raises(OSError, match=rf"No space left on device: '{folder}/step-0000004\.safetensors'") as caught:
        fit(sd3, data, config, folder, EXECUTION, observer)
    assert caught.value.errno == errno.ENOSPC
    progress, _ = loaded(whole, folder)
    assert progress.step == 2
    (small_disk / "ballast").unlink()
    resumed, records = run(sd3, data, config, folder, EXECUTION)
    assert_equal(whole, resumed)
    assert [record["step"] for record in records] == list(range(6))
