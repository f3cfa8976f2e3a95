"""A map over shards, on this machine's cores or on Spark: the one shape that long data work has."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

Shard = TypeVar("Shard")
Result = TypeVar("Result")


class Runner(Protocol):
    """Where a map runs."""

    def map(self, work: Callable[[Shard], Result], shards: Sequence[Shard]) -> Iterator[Result]:
        """`work` of every shard, in the order of the shards; both must be picklable.

        A process unpickles `work` once, so that a model which it loads at its first shard serves all of them. Work
        writes its own files, whole or not at all, and returns something small.
        """
        ...


@dataclass(frozen=True)
class LocalRunner:
    """Processes of this machine, which share its cores; with one, the work runs in the calling process."""

    num_processes: int = 1

    def __post_init__(self) -> None:
        if self.num_processes < 1:
            raise ValueError(f"runner.num_processes must be at least 1, not {self.num_processes}")

    def map(self, work: Callable[[Shard], Result], shards: Sequence[Shard]) -> Iterator[Result]:
        """As `Runner.map`; the first exception ends it."""
        if self.num_processes == 1 or len(shards) < 2:
            yield from map(work, shards)
            return
        num_processes = min(self.num_processes, len(shards))
        # Spawned: a fork would copy the threads' locks of torch and Arrow in whatever state they are.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, context, _start, (work, num_processes)) as pool:
            try:
                yield from pool.map(_run, shards)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def in_fresh_process(work: Callable[[Shard], Result], shard: Shard) -> Result:
    """`work` of a shard in a process that has done nothing before; both must be picklable."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start, (work, 1)) as pool:
        return pool.submit(_run, shard).result()


_work: Callable[[Any], Any]


def _start(work: Callable[[Any], Any], num_processes: int) -> None:
    """Make this process a worker."""
    global _work
    _work = work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch = sys.modules.get("torch")  # imported with work that computes; other work need not wait for it
    if torch is not None:
        cores = len(os.sched_getaffinity(0)) // num_processes
        torch.set_num_threads(max(1, min(cores, torch.get_num_threads())))


def _run(shard: Any) -> Any:
    return _work(shard)


def _end_with_parent() -> None:
    # A worker whose parent was killed would wait for its next shard for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@dataclass(frozen=True)
class RunnerConfig:
    """Where maps run: `local` in processes, or `spark` on the cluster that `master` names."""

    engine: str = "local"
    num_processes: int = 1
    master: str = "local[*]"

    def __post_init__(self) -> None:
        if self.engine not in ("local", "spark"):
            raise ValueError(f"runner.engine must be local or spark, not {self.engine}")
        if self.num_processes < 1:
            raise ValueError(f"runner.num_processes must be at least 1, not {self.num_processes}")


def make_runner(config: RunnerConfig) -> Runner:
    """The runner of a configuration.

    Raises:
        ImportError: Spark is asked for and pyspark is not installed.
    """
    if config.engine == "local":
        return LocalRunner(config.num_processes)
    from softrepa_pipeline.spark import SparkRunner

    return SparkRunner(config.master)
