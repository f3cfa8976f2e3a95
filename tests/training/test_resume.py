from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_settings import CONFIG, EXECUTION

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, load_soft_tokens
from softrepa_pipeline.training import Job, Observer, Record, TrainingSet, fit
from softrepa_pipeline.training.checkpoint import Best, Progress, load_checkpoint, save_checkpoint
from softrepa_pipeline.training.guards import Guard
from softrepa_pipeline.training.job import run_job
from softrepa_pipeline.training.methods import METHODS, Method
from softrepa_pipeline.training.records import append, log_of, read

NUM_STEPS = 12
# Contrast alone on three images, at a hundred times the learning rate: it soon learns nothing but them.
EARLY = replace(CONFIG, held_out_images=2, validation_steps=1, patience=3, batch_size=1, denoising_weight=0.0)
EARLY = replace(EARLY, num_steps=14, learning_rate=1.0, warmup_steps=0, seed=2)


def killed(process: multiprocessing.context.ForkServerProcess, folder: Path, chance: random.Random) -> bool:
    """kill -9 some time after the next checkpoint, half of the times while one is being written."""
    present = set(folder.glob("step-*.json"))
    while process.is_alive() and set(folder.glob("step-*.json")) <= present:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.3))
    if chance.random() < 0.5:
        while process.is_alive() and not any(folder.glob("step-*.partial")):
            pass
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("num_kills", [3, pytest.param(24, marks=pytest.mark.slow)])
def test_killed_at_any_moment_twice_in_a_row_a_job_ends_with_the_same_tokens(
    job: Job, tmp_path: Path, processes: multiprocessing.context.ForkServerContext, num_kills: int
) -> None:
    settings = replace(EXECUTION, checkpoint_steps=1)
    job = replace(job, fit=replace(CONFIG, batch_size=2, num_steps=NUM_STEPS), execution=settings)

    def started(name: str) -> multiprocessing.context.ForkServerProcess:
        process = processes.Process(target=run_job, args=(replace(job, folder=str(tmp_path / name)).write(),))
        process.start()
        return process

    def finished(name: str) -> tuple[dict[str, Tensor], list[tuple[float, float]]]:
        process = started(name)
        process.join()
        assert process.exitcode == 0
        tokens, _ = load_soft_tokens(replace(job, folder=str(tmp_path / name)).tokens_file)
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return tokens.state_dict(), [(record["step"], record["loss"]) for record in records]

    whole, curve = finished("whole")
    assert [step for step, _ in curve] == list(range(NUM_STEPS))
    chance, kills, trial = random.Random(0), 0, 0
    while kills < num_kills:
        trial += 1
        for _ in range(2):
            kills += killed(started(str(trial)), tmp_path / str(trial), chance)
        tokens, resumed = finished(str(trial))
        assert all(torch.equal(tokens[name], value) for name, value in whole.items()), f"trial {trial}"
        assert resumed == curve


def training(seed: int) -> tuple[Method, torch.optim.AdamW]:
    """Tokens after one optimiser step, all of which depends on the seed."""
    generator = torch.Generator().manual_seed(seed)
    method = METHODS["softrepa"](SoftTokens(SoftTokensConfig(("0", "1"), 2, 64, 4), generator), CONFIG)
    optimizer = torch.optim.AdamW(method.trainable)
    for parameter in method.trainable:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return method, optimizer


def save(folder: Path, step: int, seed: int | None = None, best: int = -1) -> None:
    seed = step if seed is None else seed
    guard = Guard(rollbacks=1, recent=(seed / 10,))
    progress = Progress(step, torch.full((10,), float(seed)), torch.ones(10) / 10, 4, guard, Best(0.5, 1.0, best))
    save_checkpoint(folder, *training(seed), progress)


def restored(folder: Path, step: int | None = None) -> tuple[int, int] | None:
    """Step and seed of the checkpoint that is loaded, all of which must be the seed's."""
    method, optimizer = training(-1)
    progress = load_checkpoint(folder, method, optimizer, step)
    if progress is None:
        return None
    seed = int(progress.temperatures[0])
    wanted_method, wanted_optimizer = training(seed)
    for name, value in wanted_method.state_dict().items():
        assert torch.equal(method.state_dict()[name], value), name
    wanted, found = (each.state_dict()["state"] for each in (wanted_optimizer, optimizer))
    assert found.keys() == wanted.keys()
    for index, state in wanted.items():
        assert all(torch.equal(found[index][name], value) for name, value in state.items())
    assert (progress.temperatures == seed).all()
    assert progress.guard.recent == (seed / 10,)
    return progress.step, seed


def in_child(act: Callable[[], None]) -> int:
    """Run it in a forked process; returns how that ended."""
    process = os.fork()
    if process == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def save_until(folder: Path, step: int, seed: int, number: int) -> None:
    """Save a checkpoint, but die before the file operation of this number."""
    count = 0

    def count_one() -> None:
        nonlocal count
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in {"open", "os.rename", "os.remove", "os.mkdir"} and str(folder) in str(arguments[0]):
            count_one()

    sync = os.fsync

    def counted_sync(file: int) -> None:
        count_one()
        sync(file)

    os.fsync = counted_sync
    sys.addaudithook(audit)
    save(folder, step, seed)


def die_at_size(size: int) -> None:
    """From here on this process dies when a file has grown to this size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def save_until_size(folder: Path, step: int, seed: int, size: int) -> None:
    """Save a checkpoint, but die when a file has grown to this size."""
    die_at_size(size)
    save(folder, step, seed)


def cut_back_until_size(folder: Path, step: int, size: int) -> None:
    """Cut the log back, but die when a file has grown to this size."""
    die_at_size(size)
    log_of(folder, step, lambda record: None)


def prepare(folder: Path, earlier: list[int], new: int) -> set[tuple[int, int] | None]:
    """Earlier checkpoints, each with its step as its seed; returns what a save that does not end may leave."""
    for step in earlier:
        save(folder, step)
    # Where one of the same step is replaced, there is a moment at which that before it is the newest whole one.
    last = earlier[-2:] if new in earlier else earlier[-1:]
    return {(step, step) for step in last} or {None}


@pytest.mark.parametrize("earlier", [[], [2, 3], [2, 4]], ids=str)
def test_killed_before_any_of_its_file_operations_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, earlier: list[int]
) -> None:
    new = (4, 44)
    outcomes = []
    for number in range(100):
        folder = tmp_path / str(number)
        previous = prepare(folder, earlier, new[0])
        ended = in_child(lambda folder=folder, number=number: save_until(folder, *new, number))  # type: ignore[misc]
        outcomes.append(restored(folder))
        assert outcomes[-1] in previous | {new}
        # Whatever the kill left behind, the next save is whole and clears it away.
        save(folder, 5)
        assert restored(folder) == (5, 5)
        steps = sorted(int(file.stem[5:]) for file in folder.glob("step-*.json"))
        assert sorted(file.name for file in folder.iterdir()) == [
            f"step-{step:07d}.{kind}" for step in steps for kind in ("json", "safetensors")
        ]
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    # Two files, each opened, synced, renamed and its folder synced, after the folder was made or before old ones go.
    assert number >= 10
    assert outcomes[-1] == new
    # Once the new one is there it stays.
    assert outcomes == sorted(outcomes, key=lambda outcome: outcome == new)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_killed_within_a_write_a_save_leaves_the_checkpoint_before(tmp_path: Path, share: float) -> None:
    save(tmp_path, 2)
    size = next(tmp_path.glob("*.safetensors")).stat().st_size
    ended = in_child(lambda: save_until_size(tmp_path, 4, 44, int(share * size)))
    assert ended == -signal.SIGXFSZ
    assert (tmp_path / "step-0000004.safetensors.partial").stat().st_size == int(share * size)
    assert restored(tmp_path) == (2, 2)
    save(tmp_path, 4)
    assert restored(tmp_path) == (4, 4)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_killed_while_its_log_is_cut_back_a_training_keeps_all_its_curves(tmp_path: Path, share: float) -> None:
    records = [{"step": float(step), "loss": step / 3} for step in range(20)]
    for record in records:
        append(tmp_path / "metrics.jsonl", record)
    log_of(tmp_path, 16, lambda record: None)
    assert read(tmp_path / "metrics.jsonl") == records[:16]
    kept = len("".join(json.dumps(record) + "\n" for record in records[:12]))
    assert in_child(lambda: cut_back_until_size(tmp_path, 12, int(share * kept))) == -signal.SIGXFSZ
    assert read(tmp_path / "metrics.jsonl") == records[:16]


def test_the_last_two_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, best=2)
    assert [restored(tmp_path, step) for step in (1, 2, 3, 4, 5)] == [None, (2, 2), None, (4, 4), (5, 5)]


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(tmp_path: Path) -> None:
    for step in (2, 5, 6):
        save(tmp_path, step, best=2)
    for file in (tmp_path / "step-0000005.safetensors", tmp_path / "step-0000006.json"):
        file.write_bytes(file.read_bytes()[:-20])
    assert restored(tmp_path) == (2, 2)
    save(tmp_path, 3, best=2)
    assert restored(tmp_path) == (3, 3)
    save(tmp_path, 4, best=3)
    assert [restored(tmp_path, step) for step in (3, 4)] == [(3, 3), (4, 4)]


def test_a_training_that_ended_early_gives_the_best_step_s_tokens_again_and_again(
    sd3: Backbone, data: TrainingSet, tmp_path: Path
) -> None:
    records: list[Record] = []
    early = fit(sd3, data, EARLY, tmp_path / "early", EXECUTION, Observer(records.append))
    measured = [record for record in records if "validation_loss" in record]
    best = max(measured, key=lambda record: (record["validation_accuracy"], -record["validation_loss"]))
    assert 0 < best["step"] == measured[-1]["step"] - 3 < 10
    shorter = replace(EARLY, num_steps=int(best["step"]) + 1, patience=None)
    wanted = fit(sd3, data, shorter, tmp_path / "shorter", EXECUTION)
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in early.state_dict().items())

    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "early").glob("step-*")}
    sd3.denoiser.register_forward_pre_hook(lambda *_: pytest.fail("it trains"))
    again = fit(sd3, data, EARLY, tmp_path / "early", EXECUTION)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in early.state_dict().items())
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "early").glob("step-*")} == written


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:-20]), Path.unlink])
def test_a_best_checkpoint_that_cannot_be_read_at_the_end_leaves_the_last_tokens_and_a_warning(
    sd3: Backbone, data: TrainingSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    folder, measured = tmp_path / "early", []

    def damage_the_best(record: Record) -> None:
        # All checkpoints are there at each validation: at the last, which ends the training, the best one goes.
        if "validation_loss" in record:
            measured.append((record["validation_accuracy"], -record["validation_loss"]))
            best = measured.index(max(measured)) + 1
            if len(measured) - best == EARLY.patience:
                damage(folder / f"step-{best:07d}.safetensors")

    tokens = fit(sd3, data, EARLY, folder, EXECUTION, Observer(damage_the_best))
    last = len(measured)
    assert f"the best checkpoint, of step {last - 3}, cannot be read: the last tokens are taken instead" in caplog.text
    wanted = fit(sd3, data, replace(EARLY, num_steps=last, patience=None), tmp_path / "shorter", EXECUTION)
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in tokens.state_dict().items())
