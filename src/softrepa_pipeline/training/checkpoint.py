"""Checkpoints of a training run: the tensors in one safetensors file, and beside it a manifest with its checksum.

The manifest is written last, so that a checkpoint counts only when all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from softrepa_pipeline.config import build
from softrepa_pipeline.files import write_whole
from softrepa_pipeline.training.guards import Guard
from softrepa_pipeline.training.methods import Method

logger = logging.getLogger(__name__)

NUM_KEPT = 2
_PLAIN = ("step", "pairs_at_once", "recompute")


@dataclass(frozen=True)
class Best:
    """The best validation so far, and how many came after it."""

    accuracy: float = -1.0
    loss: float = float("inf")
    step: int = -1
    worse_since: int = 0

    def after(self, accuracy: float, loss: float, step: int) -> Best:
        if (accuracy, -loss) > (self.accuracy, -self.loss):
            return Best(accuracy, loss, step)
        return Best(self.accuracy, self.loss, self.step, self.worse_since + 1)


@dataclass(frozen=True)
class Progress:
    """What a run has done: optimiser steps, how timesteps are treated (buckets,), what guards and validation saw.

    All randomness is a function of the seed and the step, so the data's place and the generators' state are in `step`.
    """

    step: int
    temperatures: Tensor
    density: Tensor
    pairs_at_once: int
    guard: Guard = field(default_factory=Guard)
    best: Best = field(default_factory=Best)
    recompute: bool = False


def save_checkpoint(folder: Path, method: Method, optimizer: torch.optim.AdamW, progress: Progress) -> None:
    """Write a checkpoint, and drop all but the last two and the best.

    Raises:
        OSError: it could not be written; those before it are whole.
    """
    tensors = {f"method.{name}": value.detach().clone() for name, value in method.state_dict().items()}
    for index, parameter in enumerate(method.trainable):
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{index}.{name}"] = value.detach().clone()
    tensors |= {"temperatures": progress.temperatures.clone(), "density": progress.density.clone()}
    content = save(tensors)
    state = {"guard": asdict(progress.guard), "best": asdict(progress.best)}
    state |= {name: getattr(progress, name) for name in _PLAIN}
    manifest = {"sha256": hashlib.sha256(content).hexdigest(), **state}
    folder.mkdir(parents=True, exist_ok=True)
    file = _file(folder, progress.step)
    write_whole(file, content)
    write_whole(file.with_suffix(".json"), json.dumps(manifest).encode())
    _drop_others(folder, file.stem, _file(folder, progress.best.step).stem)


def load_checkpoint(
    folder: Path, method: Method, optimizer: torch.optim.AdamW, step: int | None = None
) -> Progress | None:
    """Restore tokens, averages and optimiser from the newest whole checkpoint, or that of `step`; None without one.

    A damaged one is skipped with a warning, and the one before it taken.
    """
    for manifest_file in _newest_first(folder):
        if step is not None and manifest_file.stem != _file(folder, step).stem:
            continue
        try:
            manifest, tensors = _read(manifest_file)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("checkpoint %s is damaged and left out (%s)", manifest_file.with_suffix(""), error)
            continue
        method.load_state_dict({name: tensors[f"method.{name}"] for name in method.state_dict()})
        optimizer.load_state_dict(_optimizer_state(optimizer, tensors))
        return Progress(
            temperatures=tensors["temperatures"],
            density=tensors["density"],
            guard=build(Guard, manifest["guard"], "guard"),
            best=build(Best, manifest["best"], "best"),
            **{name: manifest[name] for name in _PLAIN},
        )
    return None


def _read(manifest_file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    manifest = json.loads(manifest_file.read_text())
    file = manifest_file.with_suffix(".safetensors")
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != manifest["sha256"]:
            raise ValueError("its checksum is not the manifest's")
    with safe_open(file, framework="pt") as opened:
        return manifest, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict


def _drop_others(folder: Path, last: str, best: str) -> None:
    """All but `best` and the two up to `last`: later ones were damaged when it began, and kills left parts of some."""
    stems = [manifest_file.stem for manifest_file in _newest_first(folder) if manifest_file.stem <= last]
    for file in sorted(folder.glob("step-*")):  # a manifest before its tensors
        if file.stem not in {*stems[:NUM_KEPT], best}:
            file.unlink()


def _optimizer_state(optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    return {**optimizer.state_dict(), "state": state}


def _file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.safetensors"


def _newest_first(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.glob("step-*.json"), reverse=True))
