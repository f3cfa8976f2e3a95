"""Several processes on one training: which images are whose, and the one sum a step that they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(hours=1)  # rank 0 draws samples while the others wait for its gradient


@dataclass(frozen=True)
class Group:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    def part(self, count: int) -> slice:
        """Which of `count` images fall to this process; the first ones have one more where they do not divide."""
        bounds = [count * rank // self.size for rank in (self.rank, self.rank + 1)]
        return slice(*bounds)

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, number: int) -> int:
        """Rank 0's number."""
        if self.size == 1:
            return number
        held = torch.tensor([number if self.rank == 0 else 0])
        return int(self.add(held.to(_device())).item())


@contextmanager
def joined() -> Iterator[Group]:
    """The group that torch's launcher put this process into; alone without one. CUDA speaks nccl, CPUs gloo."""
    if "RANK" not in os.environ:
        yield Group()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        share_cores(int(os.environ["LOCAL_WORLD_SIZE"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def share_cores(num_processes: int) -> None:
    """Give torch this process's share of the cores, where so many processes compute on one machine."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_processes))


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
