"""A map over shards, on this machine's cores or on Spark: the one shape that long data work has."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Protocol, TypeVar

Shard = TypeVar("Shard")
Result = TypeVar("Result")


class Runner(Protocol):
    """Where a map runs."""

    def map(self, work: Callable[[Shard], Result], shards: Sequence[Shard]) -> Iterator[Result]:
        """`work` of every shard, in the order of the shards; both must be picklable.

        Work writes its own files, whole or not at all, and returns something small.
        """
        ...


@dataclass(frozen=True)
class LocalRunner:
    """Processes of this machine; with one, the work runs in the calling process."""

    num_processes: int = 1

    def map(self, work: Callable[[Shard], Result], shards: Sequence[Shard]) -> Iterator[Result]:
        """As `Runner.map`; the first exception ends it."""
        if self.num_processes == 1 or len(shards) < 2:
            yield from map(work, shards)
            return
        # Spawned: a fork would copy the threads' locks of torch and Arrow in whatever state they are.
        size, context = min(self.num_processes, len(shards)), get_context("spawn")
        with ProcessPoolExecutor(size, mp_context=context, initializer=_end_with_parent) as pool:
            try:
                yield from pool.map(work, shards)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _end_with_parent() -> None:
    """In a worker: end when the parent has, which cannot say so if it was killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
