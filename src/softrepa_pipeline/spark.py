"""The map over shards on Spark: `pip install 'softrepa_pipeline[spark]'`, and Java."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pyspark.sql import SparkSession

Shard = TypeVar("Shard")
Result = TypeVar("Result")


@dataclass(frozen=True)
class SparkRunner:
    """A Spark cluster, on each of whose machines this package is installed and the same folders are mounted."""

    master: str = "local[*]"

    def map(self, work: Callable[[Shard], Result], shards: Sequence[Shard]) -> Iterator[Result]:
        """As `runners.Runner.map`, one task a shard; results come when all are there.

        The session stays, for the next map.
        """
        if not shards:
            return
        builder = SparkSession.builder.master(self.master).appName("softrepa_pipeline")
        # Executors import what is imported here, also where it is not installed.
        builder = builder.config("spark.executorEnv.PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        session = builder.config("spark.pyspark.python", sys.executable).getOrCreate()
        yield from session.sparkContext.parallelize(shards, len(shards)).map(work).collect()
