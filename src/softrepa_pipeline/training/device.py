"""What a device can do: how many pairs fit, measured on the model itself; how much it used; its peak."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch
from torch import Tensor

from softrepa_pipeline.backbones import Backbone, Pairs

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SHARE = 0.7  # of what is free: the backward's own buffers, and whatever else runs
ENOUGH_PAIRS = 64  # more at once is not faster, on CPUs and on GPUs, and the result should not depend on the machine
_PEAK_TERAFLOP = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165}
_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory")


@dataclass(frozen=True)
class Room:
    """How many pairs a forward and backward can hold at once; `recompute` where not even a row would fit otherwise.

    Then the backward computes each block anew from its input, which costs a third of the speed; a second pass over the
    pairs would cost half.
    """

    pairs_at_once: int
    recompute: bool = False


def room_for(backbone: Backbone, pairs: Pairs, row: int) -> Room:
    """Room for such pairs, which are evaluated in rows of `row`: no more than are enough, and at least one."""
    fitting = int(_SHARE * free_bytes(backbone.device) / bytes_per_pair(backbone, pairs))
    if fitting < row and hasattr(backbone.denoiser, "enable_gradient_checkpointing"):
        return Room(row, recompute=True)
    return Room(max(1, min(fitting, max(row, ENOUGH_PAIRS))))


def bytes_per_pair(backbone: Backbone, pairs: Pairs) -> int:
    """What autograd keeps of one more pair for the backward, with the tokens that are injected."""
    one, two = (_saved_bytes(backbone, pairs[:count]) for count in (1, 2))
    return max(1, two - one) if len(pairs) > 1 else max(1, one)


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


def peak_flop(device: torch.device, dtype: torch.dtype) -> float | None:
    """Dense half-precision operations a second by the maker's data sheet; None for other devices and precisions."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for part, peak in _PEAK_TERAFLOP.items() if part in name), None)


def used_gib(device: torch.device) -> float:
    """The process's peak on the device, or its resident memory on a CPU."""
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return used / 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, on any device, could not get memory."""
    is_memory_error = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_memory_error or any(message in str(error).lower() for message in _MESSAGES)


def within_memory(work: Callable[[int], T], pairs_at_once: int) -> tuple[T, int]:
    """`work(pairs_at_once)`, again with half as many as often as memory does not suffice; and how many it took."""
    while True:
        try:
            return work(pairs_at_once), pairs_at_once
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or pairs_at_once == 1:
                raise
        # Outside the handler, whose traceback would hold the tensors that must go.
        pairs_at_once //= 2
        logger.warning("out of memory: going on with %d pairs at once", pairs_at_once)


def _saved_bytes(backbone: Backbone, pairs: Pairs) -> int:
    # By the storages themselves: on the meta device they have no address to be told apart by.
    frozen = {parameter.untyped_storage()._cdata for parameter in backbone.denoiser.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        pairs.predict(backbone)
    return sum(storage.nbytes() for key, storage in saved.items() if key not in frozen)
