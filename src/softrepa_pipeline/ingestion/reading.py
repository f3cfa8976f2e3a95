"""Parts of an ingested folder: what work on a column, or on some of its images, reads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from softrepa_pipeline.ingestion.tables import PAIRS_FILE, PARTS_FOLDER, iter_rows
from softrepa_pipeline.ingestion.validation import load_rgb


def image_ids(folder: Path) -> list[str]:
    """Identities of all images, in the order of the table."""
    return pq.read_table(folder / PAIRS_FILE, columns=["image_id"])["image_id"].to_pylist()


def aspect_ratios(folder: Path) -> np.ndarray:
    """Width / height of all images, in the order of the table."""
    table = pq.read_table(folder / PAIRS_FILE, columns=["width", "height"])
    return table["width"].to_numpy() / table["height"].to_numpy()


def iter_captions(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Stream identity and captions of every image, in the order of the table."""
    for row in iter_rows(folder / PAIRS_FILE, ("image_id", "captions")):
        yield row["image_id"], tuple(row["captions"])


def read_images(folder: Path, places: list[int]) -> Iterator[Image.Image]:
    """RGB images at these places of the table, one after the other; neighbours are read together."""
    stored = pq.read_table(folder / PAIRS_FILE, columns=["part", "row"]).take(pa.array(places, pa.int64()))
    found = zip(stored["part"].to_pylist(), stored["row"].to_pylist(), strict=True)
    for part, rows in groupby(found, key=itemgetter(0)):
        for image in _images_of(folder / PARTS_FOLDER / part, [row for _, row in rows]):
            yield load_rgb(image)


def _images_of(part: Path, rows: list[int]) -> Iterator[bytes]:
    # With the default read-ahead Arrow keeps every row group that it has read until the file is closed.
    with pq.ParquetFile(part, pre_buffer=False) as table:
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        ends = np.cumsum(sizes)
        for group, within in groupby(rows, key=lambda row: int(np.searchsorted(ends, row, side="right"))):
            images = table.read_row_group(group, columns=["image"])["image"]
            start = int(ends[group]) - sizes[group]
            for row in within:
                yield images[row - start].as_py()
