"""Work for maps over shards; workers import it, so that it imports next to nothing."""

from __future__ import annotations

import os
import time


def process_of(shard: int) -> tuple[int, int]:
    time.sleep(0.05)
    return shard, os.getpid()


def refuse_three(shard: int) -> int:
    if shard == 3:
        raise ValueError(f"shard {shard} is bad")
    return shard
