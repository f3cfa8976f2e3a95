"""What an ingestion found new, changed, removed and unchanged against the one before."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from softrepa_pipeline.ingestion.tables import iter_rows

_STATE = np.dtype([("image", "S16"), ("content", "S16"), ("name", "S16")])


def count_changes(before: Path, after: Path) -> dict[str, int]:
    """Images by what became of them between two tables of pairs, whose order and names do not matter.

    An image is changed if its captions are others, or if another image has come in its place under its name. Without
    a table before, all images are new.
    """
    old = _states(before) if before.is_file() else np.empty(0, _STATE)
    new = _states(after)
    is_same = np.isin(new["content"], old["content"])
    is_edited = ~is_same & np.isin(new["image"], old["image"])
    come = new[~is_same & ~is_edited]
    gone = old[~np.isin(old["image"], new["image"])]
    replacing, replaced = np.isin(come["name"], gone["name"]), np.isin(gone["name"], come["name"])
    return {
        "new": int((~replacing).sum()),
        "changed": int(is_edited.sum() + replacing.sum()),
        "removed": int((~replaced).sum()),
        "unchanged": int(is_same.sum()),
    }


def new_images(before: Path, after: Path) -> list[str]:
    """Identities, in order, of the images of a table of pairs that another has not, or not with the same captions.

    Without a table before, all are new.
    """
    old = _states(before)["content"] if before.is_file() else np.empty(0, "S16")
    is_new = ~np.isin(_states(after)["content"], old)
    ids = (row["image_id"] for row in iter_rows(after, ("image_id",)))
    return [image_id for image_id, new in zip(ids, is_new, strict=True) if new]


def _states(pairs: Path) -> np.ndarray:
    rows = iter_rows(pairs, ("image_id", "captions", "source"))
    states = [(_hash(row["image_id"]), _hash(row["image_id"], *row["captions"]), _hash(row["source"])) for row in rows]
    return np.array(states, _STATE)


def _hash(*texts: str) -> bytes:
    # In hexadecimal, since NumPy takes zero bytes off a string's end.
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest().encode()
