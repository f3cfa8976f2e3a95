"""What the tests of encoding and embedding run in processes of their own, which can import this module."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from store_work import keys, read
from torch import Tensor

from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.mining import Embeddings, embeddings
from softrepa_pipeline.runners import LocalRunner
from softrepa_pipeline.tensor_store import TensorStore
from softrepa_pipeline.training import encode_latents, latents

CLIP = Path(__file__).parents[1] / "data/06_models/embedded/clip"


def encoded(model: ModelConfig, numbers: list[int], store: TensorStore, num_processes: int = 1) -> Tensor:
    runner, reading = LocalRunner(num_processes), partial(read, numbers)
    found = encode_latents(model, keys(*numbers), reading, 32, store, runner)
    return found[torch.arange(len(found))]


def encode(folder: Path, model: ModelConfig) -> None:
    """Twelve shards of four latents."""
    torch.set_num_threads(1)
    latents._SHARD_IMAGES = 4
    encoded(model, list(range(48)), TensorStore(folder / "store"))


def embed(folder: Path) -> None:
    """Eight shards of eight images, then as many of captions."""
    torch.set_num_threads(1)
    embeddings._SHARD_ROWS = 8
    numbers = list(range(64))
    kept = Embeddings(str(CLIP), folder, partial(read, numbers))
    kept.of_images(keys(*numbers))
    kept.of_captions([f"a circle and {number} squares" for number in numbers])


def files(folder: Path) -> list[str]:
    """Names of all shards under a folder; each is the checksum of its content."""
    return sorted(file.name for file in folder.glob("*/*.safetensors"))


def killed_at_random(
    processes: multiprocessing.context.ForkServerContext,
    work: Callable[[Path], None],
    folder: Path,
    num_kills: int,
    num_shards: int,
) -> None:
    """kill -9 at random moments, half of them while a shard is written: run again, `work` ends with the same files."""

    def started(name: str) -> multiprocessing.context.ForkServerProcess:
        process = processes.Process(target=work, args=(folder / name,))
        process.start()
        return process

    def finished(name: str) -> list[str]:
        process = started(name)
        process.join()
        assert process.exitcode == 0
        assert not any(TensorStore(store).verify() for store in (folder / name).iterdir())
        return files(folder / name)

    whole = finished("whole")
    assert len(whole) == num_shards
    chance, kills, trial = random.Random(0), 0, 0
    while kills < num_kills:
        trial += 1
        kills += _killed(started(str(trial)), folder / str(trial), chance.randrange(num_shards), chance)
        assert finished(str(trial)) == whole, f"trial {trial}"


def _killed(process: Any, folder: Path, num_shards: int, chance: random.Random) -> bool:
    """Once so many shards are there; whether it was still running."""
    while process.is_alive() and len(files(folder)) < num_shards:
        time.sleep(0.001)
    if chance.random() < 0.5:
        while process.is_alive() and not any(folder.glob("*/*.partial")):
            time.sleep(0.0002)
    else:
        time.sleep(chance.uniform(0, 0.05))
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL
