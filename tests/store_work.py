"""What the tests of stores run in processes of their own, which can import this module and start fast."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from softrepa_pipeline.runners import LocalRunner
from softrepa_pipeline.tensor_store import TensorStore, fill


def keys(*numbers: int) -> list[str]:
    return [f"{number:032x}" for number in numbers]


def rows(numbers: list[int]) -> Tensor:
    """A (2, 3) tensor for each number, of random values that the number determines."""
    return torch.stack([torch.randn(2, 3, generator=torch.Generator().manual_seed(number)) for number in numbers])


def slow_rows(numbers: list[int]) -> Tensor:
    time.sleep(0.02)
    return rows(numbers)


def fill_slowly(folder: Path, num_processes: int) -> None:
    """20 shards of two rows."""
    items = {key: number for number, key in enumerate(keys(*range(40)))}
    fill(TensorStore(folder), items, slow_rows, LocalRunner(num_processes), 2, "rows")


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 32, 3), np.uint8))


def read(numbers: list[int], places: list[int]) -> Iterator[Image.Image]:
    """The pictures at some places of a data set of numbered ones."""
    return (picture(numbers[place]) for place in places)


@dataclass
class Counting:
    """Counts the shards that its process has had; refuses negative ones."""

    count: int = 0

    def __call__(self, shard: int) -> tuple[int, int, int]:
        if shard < 0:
            raise ValueError(f"shard {shard}")
        self.count += 1
        return shard, os.getpid(), self.count
