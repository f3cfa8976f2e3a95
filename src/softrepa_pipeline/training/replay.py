"""What a training that goes on from trained tokens reads: what is new, and some of what is old."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from softrepa_pipeline.randomness import numpy_generator

logger = logging.getLogger(__name__)


def write_replay(
    negatives: Path, new: Collection[str], held_out: Collection[str], replay: float, seed: int, file: Path
) -> int:
    """Write those rows of mining's table that are of new images, and `replay` old images for each new one.

    `held_out` images are of neither kind; what mining left out as a misfit is in no row. Returns the number of rows.
    """
    table = pq.read_table(negatives)
    ids = table["image_id"].to_pylist()
    kept = [row for row, image_id in enumerate(ids) if image_id not in held_out]
    own, old = ([row for row in kept if (ids[row] in new) is wanted] for wanted in (True, False))
    drawn = numpy_generator(seed, "replay").choice(old, min(len(old), round(replay * len(own))), replace=False)
    rows = np.sort(np.concatenate([own, drawn]).astype(int))
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    pq.write_table(table.take(pa.array(rows)), partial)
    partial.replace(file)
    logger.info("to train on: %d images, of them %d old ones", len(rows), len(drawn))
    return len(rows)
