"""What the tests of encoding, embedding and mining run in processes of their own, which can import this module."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
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
    found = encode_latents(model, keys(*numbers), reading, (32, 32), store, runner)
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


def mine(folder: Path, pairs: dict[str, Any]) -> None:
    """The mine stage on an ingested folder, with approximate indexes, which are kept in files."""
    from softrepa_pipeline.pipelines.mine.nodes import mine_negatives

    torch.set_num_threads(1)
    embeddings._SHARD_ROWS = 32
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # a stage's result names its folder
    policy = {"num_negatives": 4, "relative_margin": None}
    parameters = {"caption_to_caption": policy, "image_to_image": policy, "index": {"factory": "IVF2,Flat"}}
    clip = {"model": str(CLIP), "device": "cpu"}
    folders = {"negatives": "mined", "clip": "clip", "latents": "latents", "texts": "texts"}
    mine_negatives(pairs, parameters, clip, folders, {}, {}, force=False)


def outputs(folder: Path) -> dict[str, str]:
    """The checksum of every whole file under a folder, by its path."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.endswith(".partial"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def killed_at_random(
    processes: multiprocessing.context.ForkServerContext,
    work: Callable[[Path], None],
    folder: Path,
    num_kills: int,
    num_files: int,
) -> None:
    """kill -9 at random moments, half of them while a file is written: run again, `work` ends with the same files.

    What stands under its name when the kill comes is whole.
    """

    def started(name: str) -> multiprocessing.context.ForkServerProcess:
        process = processes.Process(target=work, args=(folder / name,))
        process.start()
        return process

    def finished(name: str) -> dict[str, str]:
        process = started(name)
        process.join()
        assert process.exitcode == 0
        return outputs(folder / name)

    whole = finished("whole")
    assert len(whole) == num_files
    chance, kills, trial = random.Random(0), 0, 0
    while kills < num_kills:
        trial += 1
        kills += _killed(started(str(trial)), folder / str(trial), chance.randrange(num_files), chance)
        assert outputs(folder / str(trial)).items() <= whole.items(), f"trial {trial}"
        assert finished(str(trial)) == whole, f"trial {trial}"


def _killed(process: Any, folder: Path, num_files: int, chance: random.Random) -> bool:
    """Once so many files are there; whether it was still running."""
    while process.is_alive() and sum(file.suffix != ".partial" for file in folder.glob("*/*.*")) < num_files:
        time.sleep(0.001)
    if chance.random() < 0.5:
        while process.is_alive() and not any(folder.glob("*/*.partial")):
            time.sleep(0.0002)
    else:
        time.sleep(chance.uniform(0, 0.05))
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL
