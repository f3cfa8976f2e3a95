from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_settings import BATCH

from softrepa_pipeline.soft_tokens import load_soft_tokens
from softrepa_pipeline.training import FitConfig, Job, launch
from softrepa_pipeline.training.distributed import Group
from softrepa_pipeline.training.job import run_job

AGSM = replace(BATCH, num_steps=20, objective="agsm", candidates="sampled", num_negatives=2)


def run(job: Job, folder: Path, num_processes: int, fit: FitConfig, **execution: object) -> dict[str, torch.Tensor]:
    settings = replace(job.execution, num_processes=num_processes, **execution)  # type: ignore[arg-type]
    launched = replace(job, folder=str(folder), fit=fit, execution=settings)
    launch(launched)
    return load_soft_tokens(launched.tokens_file)[0].state_dict()


def test_every_image_falls_to_one_process() -> None:
    for size in (1, 2, 3, 4):
        images = list(range(7))
        assert [image for rank in range(size) for image in images[Group(rank, size).part(7)]] == images


@pytest.mark.parametrize(
    "config",
    [
        replace(BATCH, num_steps=20, held_out_images=2),
        pytest.param(
            replace(BATCH, num_steps=20, objective="agsm", candidates="sampled", num_negatives=2),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["softrepa", "agsm"],
)
def test_two_processes_give_the_tokens_of_one(job: Job, tmp_path: Path, config: FitConfig) -> None:
    one, two = (run(job, tmp_path / str(size), size, config) for size in (1, 2))
    for name, value in one.items():
        assert (two[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_processes_and_another_micro_batch(job: Job, tmp_path: Path) -> None:
    whole = run(job, tmp_path / "whole", 1, replace(BATCH, num_steps=20))
    folder = tmp_path / "moved"
    for steps, processes, pairs in ((6, 2, 6), (12, 1, 3), (20, 2, 1)):
        # Only the length differs, which neither warm-up nor decay knows of before the end here.
        moved = run(job, folder, processes, replace(BATCH, num_steps=steps), max_pairs_in_memory=pairs)
    for name, value in whole.items():
        assert (moved[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.slow
def test_torchrun_runs_the_same_job(job: Job, tmp_path: Path) -> None:
    config = replace(BATCH, num_steps=4)
    whole = run(job, tmp_path / "whole", 2, config)
    launched = replace(job, folder=str(tmp_path / "torchrun"), fit=config)
    file = launched.write()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "softrepa_pipeline.training", str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert torch.equal(load_soft_tokens(launched.tokens_file)[0].base, whole["base"])


def test_a_job_for_other_machines_is_written_and_its_tokens_are_waited_for(job: Job, tmp_path: Path) -> None:
    file = tmp_path / "shared" / "job.json"
    job = replace(job, fit=replace(BATCH, num_steps=2), execution=replace(job.execution, job_file=str(file)))
    waiting = threading.Thread(target=launch, args=(job,), daemon=True)
    waiting.start()
    while not file.is_file():
        assert waiting.is_alive()
        time.sleep(0.01)
    assert not any(Path(job.folder).glob("*.safetensors"))
    run_job(file)  # as torchrun's processes do
    waiting.join(60)
    assert not waiting.is_alive()
    assert job.tokens_file.is_file()


def start(job: Job, folder: Path, num_processes: int) -> tuple[Job, subprocess.Popen]:
    settings = replace(job.execution, num_processes=num_processes, checkpoint_steps=1)
    launched = replace(job, folder=str(folder), fit=replace(BATCH, num_steps=60), execution=settings)
    file = launched.write()
    script = "import sys; from pathlib import Path; from softrepa_pipeline.training.job import launch, read_job\n"
    script += "if __name__ == '__main__': launch(read_job(Path(sys.argv[1])))"
    runner = folder / "runner.py"
    runner.write_text(script)
    return launched, subprocess.Popen([sys.executable, str(runner), str(file)], stderr=subprocess.PIPE, text=True)


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while not any(int(file.stem[5:]) >= step for file in folder.glob("step-*.json")):
        assert time.monotonic() < deadline, "training does not move"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_dead_worker_is_restarted_from_the_last_checkpoint(job: Job, tmp_path: Path) -> None:
    launched, process = start(job, tmp_path / "run", 2)
    wait_for_step(tmp_path / "run", 5)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    workers = [int(pid) for pid in children.stdout.split() if "spawn_main" in _command(int(pid))]
    os.kill(workers[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    whole = run(job, tmp_path / "whole", 1, replace(BATCH, num_steps=60))
    found = load_soft_tokens(launched.tokens_file)[0].state_dict()
    for name, value in whole.items():
        assert (found[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_terminated_training_leaves_a_checkpoint_and_goes_on(job: Job, tmp_path: Path, num_processes: int) -> None:
    folder = tmp_path / "run"
    launched, process = start(job, folder, num_processes)
    wait_for_step(folder, 5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not launched.tokens_file.is_file()
    done = max(int(file.stem[5:]) for file in folder.glob("step-*.json"))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert 5 <= done == len(lines) < 60


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
