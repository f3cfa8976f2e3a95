"""Exact nearest neighbours as matrix products: block by block, so that memory does not grow with the corpus."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

QUERIES_AT_ONCE = 512
VECTORS_AT_ONCE = 1 << 16
_GROUP = 64


def exact_neighbors(vectors: np.ndarray, queries: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of queries in turn: scores and row numbers (queries, count) of the highest inner products, best first.

    `vectors` and `queries` are float32 or float16 of the same width, memory-mapped or not. Beyond them about 256 MiB
    are taken, and what the neighbours of one block of queries need.
    """
    count = min(count, len(vectors))
    # One buffer for every product, so that it bounds the memory.
    buffer = torch.empty(min(QUERIES_AT_ONCE, len(queries)) * min(VECTORS_AT_ONCE, len(vectors)))
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        block = _tensor(queries[start : start + QUERIES_AT_ONCE])
        best, rows = torch.empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.int64)
        for first in range(0, len(vectors), VECTORS_AT_ONCE):
            part = _tensor(vectors[first : first + VECTORS_AT_ONCE])
            scores = torch.mm(block, part.T, out=buffer[: len(block) * len(part)].view(len(block), len(part)))
            found, places = _top(scores, count)
            united, united_rows = torch.cat([best, found], 1), torch.cat([rows, places + first], 1)
            best, kept = united.topk(min(count, united.shape[1]), dim=1)
            rows = united_rows.gather(1, kept)
        yield best.numpy(), rows.numpy()


def _tensor(part: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        return torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest of each row of scores (queries, vectors), and where they are.

    The best `count` lie in the `count` groups with the highest maxima: finding those reads every score once, in order,
    and leaves few to sort.
    """
    num_groups = scores.shape[1] // _GROUP
    if num_groups <= 2 * count:
        top = scores.topk(min(count, scores.shape[1]), dim=1)
        return top.values, top.indices
    grouped = scores[:, : num_groups * _GROUP].unflatten(1, (num_groups, _GROUP))
    groups = grouped.amax(dim=2).topk(count, dim=1, sorted=False).indices
    inside = grouped.gather(1, groups[..., None].expand(-1, -1, _GROUP)).flatten(1)
    rows = (groups[..., None] * _GROUP + torch.arange(_GROUP)).flatten(1)
    rest = torch.arange(num_groups * _GROUP, scores.shape[1]).expand(len(scores), -1)
    candidates, rows = torch.cat([inside, scores[:, num_groups * _GROUP :]], 1), torch.cat([rows, rest], 1)
    top = candidates.topk(count, dim=1)
    return top.values, rows.gather(1, top.indices)
