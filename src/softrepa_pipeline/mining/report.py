"""Mining as a person reads it: one HTML file that needs no network, and its figures."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from softrepa_pipeline.files import write_whole
from softrepa_pipeline.mining.corpus import Corpus
from softrepa_pipeline.mining.policy import RULES, Candidates, Choice
from softrepa_pipeline.mining.screen import Misfit

_SIDE = 192
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NUM_BINS = 60
_NUM_REJECTED = 4
_NUM_MISFITS = 12


class Report:
    """Counts and scores, added block by block, and what the contact sheet shows of the images `shown`."""

    def __init__(
        self,
        corpus: Corpus,
        num_negatives: int,
        shown: list[int],
        thumbnails: dict[int, str],
        misfits: Sequence[Misfit],
    ) -> None:
        self._corpus = corpus
        self._num_negatives = num_negatives
        self._shown = set(shown)
        self._thumbnails = thumbnails
        self._misfits = sorted(misfits, key=lambda misfit: misfit.fit)
        self._rejected: Counter[str] = Counter()
        self._edits: Counter[str] = Counter()
        self._counts: list[int] = []
        self._positives: list[float] = []
        self._negatives: list[np.ndarray] = []
        self._sheet: list[dict[str, Any]] = []

    def add(self, block: range, choices: list[list[Choice]], rows: list[dict[str, Any]]) -> None:
        """Take in the images `block`: what each policy chose for each of them, and their rows of the table."""
        for image, chosen, row in zip(block, choices, rows, strict=True):
            rejected = _united(chosen)
            self._rejected.update({rule: len(found.rows) for rule, found in rejected.items()})
            self._edits.update(kind for kinds in row["edit_kinds"] for kind in kinds)
            self._counts.append(len(row["negatives"]))
            self._positives.append(self._corpus.positive(image))
            self._negatives.append(np.array(row["scores"], np.float32))
            if image in self._shown:
                self._sheet.append(self._entry(image, rejected, row))

    def figures(self) -> dict[str, Any]:
        """Everything but the contact sheet, as JSON."""
        counts, rejected = (
            np.array(self._counts),
            {rule: self._rejected[rule] for rule in RULES if self._rejected[rule]},
        )
        negatives = np.concatenate(self._negatives)
        return {
            "num_images": len(counts),
            "num_distinct_captions": len(self._corpus.captions),
            "negatives_per_image": {"mean": float(counts.mean()), "min": int(counts.min()), "max": int(counts.max())},
            "num_misfits": len(self._misfits),
            "num_too_few": int((counts < self._num_negatives).sum()),
            "num_looked_at": int(counts.sum()) + sum(rejected.values()),
            "rejected": rejected,
            "scores": {"positive": _distribution(np.array(self._positives)), "negative": _distribution(negatives)},
            "structured": dict(self._edits.most_common()),
        }

    def write(self, path: Path, figures: dict[str, Any]) -> None:
        """Write the page under a temporary name, then rename it."""
        template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
            (files(__package__) / "report.html").read_text("utf-8")
        )
        page = template.render(
            figures=figures,
            wanted=self._num_negatives,
            has_images=self._corpus.images is not None,
            histogram=_histogram(np.array(self._positives), np.concatenate(self._negatives)),
            misfits=self._misfits[:_NUM_MISFITS],
            sheet=self._sheet,
        )
        write_whole(path, page.encode())

    def _entry(self, image: int, rejected: dict[str, Candidates], row: dict[str, Any]) -> dict[str, Any]:
        own = self._corpus.own[image]
        scores = self._corpus.scores(image, own) if self._corpus.images is not None else [None] * len(own)
        return {
            "image_id": row["image_id"],
            "uri": self._thumbnails.get(image),
            "positive": self._corpus.positive(image),
            "captions": list(zip(row["captions"], scores, strict=True)),
            "negatives": list(zip(row["negatives"], row["scores"], strict=True)),
            "rejected": [
                {"rule": rule, "count": len(found.rows), "captions": self._texts(found, _NUM_REJECTED)}
                for rule in RULES
                if (found := rejected.get(rule)) is not None
            ],
            "edits": [
                edit
                for texts, kinds in zip(row["edits"], row["edit_kinds"], strict=True)
                for edit in zip(texts, kinds, strict=True)
            ],
        }

    def _texts(self, found: Candidates, count: int) -> list[tuple[str, float]]:
        pairs = zip(found.rows[:count], found.scores[:count], strict=True)
        return [(self._corpus.captions[row], float(score)) for row, score in pairs]


def thumbnail(image: Image.Image) -> str:
    """A small copy of an RGB image as a data URI."""
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    if max(small.size) < _SIDE // 2:
        small = small.resize((_SIDE, _SIDE * small.height // small.width), Image.Resampling.NEAREST)
        small.save(buffer, kind := "PNG")
    else:
        small.save(buffer, kind := "JPEG", quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _united(choices: list[Choice]) -> dict[str, Candidates]:
    """What several policies rejected for one image, by rule."""
    united: dict[str, list[Candidates]] = {}
    for choice in choices:
        for rule, found in choice.rejected.items():
            united.setdefault(rule, []).append(found)
    return {
        rule: Candidates(np.concatenate([part.rows for part in parts]), np.concatenate([part.scores for part in parts]))
        for rule, parts in united.items()
    }


def _distribution(scores: np.ndarray) -> dict[str, float] | None:
    """Count, mean and quantiles; None where there is no score."""
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return None
    quantiles = {f"{100 * q:.0f}%": float(np.quantile(scores, q)) for q in _QUANTILES}
    return {
        "count": len(scores),
        "mean": float(scores.mean()),
        "min": float(scores.min()),
        **quantiles,
        "max": float(scores.max()),
    }


def _histogram(positives: np.ndarray, negatives: np.ndarray) -> dict[str, Any]:
    """Shares of both kinds of scores in the same bins, as the points of two SVG outlines of 1 × 1, y downwards."""
    parts = {"positive": positives[np.isfinite(positives)], "negative": negatives}
    every = np.concatenate(list(parts.values()))
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, _NUM_BINS + 1)
    shares = {name: np.histogram(part, edges)[0] / max(1, len(part)) for name, part in parts.items()}
    most = max(share.max() for share in shares.values()) or 1.0
    return {
        "ticks": [(place, edges[0] + place * (edges[-1] - edges[0])) for place in np.linspace(0, 1, 6)],
        "outlines": {name: _outline(share / most) for name, share in shares.items()},
    }


def _outline(heights: np.ndarray) -> str:
    across = np.repeat(np.linspace(0, 1, len(heights) + 1), 2)
    down = np.concatenate([[1], np.repeat(1 - heights, 2), [1]])
    return " ".join(f"{x:.4f},{y:.4f}" for x, y in zip(across, down, strict=True))
