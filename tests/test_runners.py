"""A map over shards: in order, wherever it runs, with work that each process is given once."""

from __future__ import annotations

import os
from collections import defaultdict

import pytest
from store_work import Counting

from softrepa_pipeline.runners import LocalRunner


def test_a_process_is_given_its_work_once() -> None:
    counts = defaultdict(list)
    shards = list(range(12))
    for shard, (returned, process, count) in zip(shards, LocalRunner(2).map(Counting(), shards), strict=True):
        assert returned == shard
        counts[process].append(count)
    assert os.getpid() not in counts
    for found in counts.values():
        assert found == list(range(1, len(found) + 1))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_first_failure_ends_it(num_processes: int) -> None:
    results = LocalRunner(num_processes).map(Counting(), [0, -1, 2])
    assert next(results)[0] == 0
    with pytest.raises(ValueError, match="shard -1"):
        next(results)


def test_no_processes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"runner\.num_processes must be at least 1, not 0"):
        LocalRunner(0)
