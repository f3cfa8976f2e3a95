"""The parts of all shards as one table of pairs, in which every image stands once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from softrepa_pipeline.ingestion.tables import PAIRS_SCHEMA, TableWriter, iter_rows

_COLUMNS = tuple(name for name in PAIRS_SCHEMA.names if name not in ("part", "row"))


def merge(parts: Sequence[Path], pairs: TableWriter) -> int:
    """Add the rows of the parts to the pairs; returns how many were merged into an earlier one with the same image.

    A merged row has the name of the first and the captions of all, each once, in order. No image is read; an image
    takes 64 bytes of memory.
    """
    first = _first_rows(parts)
    later = _captions_of_later(parts, first)
    row_of_all = 0
    for part in parts:
        for row, record in enumerate(iter_rows(part, _COLUMNS)):
            if first[row_of_all] == row_of_all:
                captions = dict.fromkeys([*record["captions"], *later.get(row_of_all, ())])
                pairs.add({**record, "captions": list(captions), "part": part.name, "row": row})
            row_of_all += 1
    return int((first != np.arange(len(first))).sum())


def _first_rows(parts: Sequence[Path]) -> np.ndarray:
    """For each row of all parts, (rows,), the first row with the same image."""
    ids = [_ids(part) for part in parts]
    _, first, image = np.unique(np.concatenate([np.empty(0, "S32"), *ids]), return_index=True, return_inverse=True)
    return first[image]


def _ids(part: Path) -> np.ndarray:
    return np.array([record["image_id"] for record in iter_rows(part, ("image_id",))], "S32")


def _captions_of_later(parts: Sequence[Path], first: np.ndarray) -> dict[int, list[str]]:
    """Captions that rows bring to the first row with their image."""
    captions: dict[int, list[str]] = {}
    rows = (record for part in parts for record in iter_rows(part, ("captions",)))
    for row, record in enumerate(rows):
        if first[row] != row:
            captions.setdefault(int(first[row]), []).extend(record["captions"])
    return captions
