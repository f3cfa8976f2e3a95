"""kill -9 of the mine stage at any moment: run again it ends with the files of one that nobody disturbed."""

from __future__ import annotations

import multiprocessing
from functools import partial
from pathlib import Path

import pytest
from encoder_work import killed_at_random, mine
from ingestion_samples import ingest_folder

# Shards of 48 images and 144 captions, two indexes, negatives, misfits, report, and the stage's result.
NUM_FILES = 2 + 5 + 6


@pytest.mark.slow
def test_killed_at_any_moment_mining_ends_with_the_same_files(
    world: Path, tmp_path: Path, processes: multiprocessing.context.ForkServerContext
) -> None:
    pairs = ingest_folder(world / "train", tmp_path / "pairs")
    killed_at_random(processes, partial(mine, pairs=pairs), tmp_path / "trials", 20, NUM_FILES)
