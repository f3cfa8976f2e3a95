"""What earlier retrainings have seen, and the lock that keeps them apart."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from softrepa_pipeline.ingestion import new_images
from softrepa_pipeline.stage import write_json

PAIRS = "pairs.parquet"
_CONSIDERED, _LOCK = "considered.json", "lock"
_NOTHING = {"pairs": "none", "num_quarantined": 0}

_held: dict[Path, FileLock] = {}  # a lock that nobody refers to lets go


@dataclass(frozen=True)
class Memory:
    """The folder of a data set's retrainings; each has a folder in it, by the digest of the pairs that it saw."""

    folder: Path

    def lock(self) -> None:
        """Keep every other retraining of this folder out, until this process ends.

        Raises:
            ValueError: one is running.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            _held.setdefault(self.folder, FileLock(self.folder / _LOCK, timeout=0)).acquire()
        except Timeout as error:
            raise ValueError(f"another retraining is running: it holds {self.folder / _LOCK}") from error

    def new_images(self, pairs: dict[str, Any]) -> list[str]:
        """Images that are new, or have other captions, since the last retraining looked, whatever it decided."""
        return new_images(Path(self._considered["pairs"]), Path(pairs["folder"]) / PAIRS)

    def new_quarantined(self, pairs: dict[str, Any]) -> int:
        """Samples that ingestion has taken out since then."""
        return max(0, pairs["num_quarantined"] - self._considered["num_quarantined"])

    def consider(self, pairs: dict[str, Any]) -> None:
        """Take these pairs as looked at."""
        copy = self.folder / pairs["digest"] / "considered.parquet"
        shutil.copyfile(Path(pairs["folder"]) / PAIRS, copy)
        write_json(self.folder / _CONSIDERED, {"pairs": str(copy), "num_quarantined": pairs["num_quarantined"]})

    @property
    def _considered(self) -> dict[str, Any]:
        file = self.folder / _CONSIDERED
        return json.loads(file.read_text()) if file.is_file() else _NOTHING


def known_to(tokens: str | None) -> Path:
    """The pairs that the training of these tokens knew; a file that is not there if it was no retraining."""
    return Path("none") if tokens is None else Path(tokens).parents[1] / PAIRS
