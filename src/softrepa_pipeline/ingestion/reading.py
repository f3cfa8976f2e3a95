"""Parts of an ingested folder: what work on a column, or on some of its images, reads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from softrepa_pipeline.ingestion.tables import PAIRS_FILE, iter_rows
from softrepa_pipeline.ingestion.validation import load_rgb


def image_ids(folder: Path) -> list[str]:
    """Identities of all images, in the order of the table."""
    return pq.read_table(folder / PAIRS_FILE, columns=["image_id"])["image_id"].to_pylist()


def iter_captions(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Stream identity and captions of every image, in the order of the table."""
    for row in iter_rows(folder / PAIRS_FILE, ("image_id", "captions")):
        yield row["image_id"], tuple(row["captions"])


def read_images(folder: Path, places: list[int]) -> Iterator[Image.Image]:
    """RGB images at these places of the table, one after the other; neighbours are read together."""
    # With the default read-ahead Arrow keeps every row group that it has read until the file is closed.
    with pq.ParquetFile(folder / PAIRS_FILE, pre_buffer=False) as table:
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        ends = np.cumsum(sizes)
        for group, within in groupby(places, key=lambda place: int(np.searchsorted(ends, place, side="right"))):
            images = table.read_row_group(group, columns=["image"])["image"]
            start = int(ends[group]) - sizes[group]
            for place in within:
                yield load_rgb(images[place - start].as_py())
