"""Checkpoints of a training run: tensors and step in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from softrepa_pipeline.training.methods import Method

_KEPT = 2


@dataclass(frozen=True)
class Progress:
    """What a run has done: optimiser steps, and the temperatures (buckets,)."""

    step: int
    temperatures: Tensor


def save_checkpoint(folder: Path, method: Method, optimizer: torch.optim.AdamW, progress: Progress) -> None:
    """Write `step-<n>.safetensors`, fsynced and renamed, and drop all but the last two."""
    tensors = {f"method.{name}": value.detach().clone() for name, value in method.state_dict().items()}
    for index, parameter in enumerate(method.trainable):
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{name}"] = value.detach().clone()
    tensors["temperatures"] = progress.temperatures.clone()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{progress.step:07d}.safetensors"
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"step": json.dumps(progress.step)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in _checkpoints(folder)[:-_KEPT]:
        old.unlink()


def load_checkpoint(folder: Path, method: Method, optimizer: torch.optim.AdamW) -> Progress | None:
    """Restore tokens, averages and optimiser from the newest checkpoint; None where there is none.

    Raises:
        ValueError: the newest checkpoint is damaged; the message names it and says how to go on.
    """
    files = _checkpoints(folder)
    if not files:
        return None
    try:
        with safe_open(files[-1], framework="pt") as file:
            step = int(json.loads((file.metadata() or {})["step"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"checkpoint {files[-1]} is damaged ({error}); delete it to go on from the one before, or from the start"
        ) from error
    method.load_state_dict({name: tensors[f"method.{name}"] for name in method.state_dict()})
    optimizer.load_state_dict(_optimizer_state(optimizer, tensors))
    return Progress(step, tensors["temperatures"])


def _optimizer_state(optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    return {**optimizer.state_dict(), "state": state}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))
