"""Structured negatives: a caption in which one word contradicts it, or two attributes have changed places."""

from __future__ import annotations

import re
from collections.abc import Iterable

from softrepa_pipeline.randomness import numpy_generator

# Of each group only one word can be true of the same thing, so that another word of it makes the caption false.
_EXCLUSIVE = (
    ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray"),
    ("left", "right"),
    ("above", "below"),
    ("over", "under"),
    ("top", "bottom"),
    ("front", "back"),
    ("inside", "outside"),
    ("small", "large"),
    ("little", "big"),
    ("short", "tall"),
    ("dark", "light"),
)
_GROUP_OF = {word: group for group in _EXCLUSIVE for word in group}
_COLORS = _EXCLUSIVE[1]


class CaptionEditor:
    """Edits captions with the words that the captions of a data set use, so that an edit reads like one of them."""

    def __init__(self, captions: Iterable[str]) -> None:
        used = {word for caption in captions for word in _split(caption)}
        self._options = {
            word: [other for other in group if other in used and other != word] for word, group in _GROUP_OF.items()
        }

    def edits(self, caption: str) -> list[str]:
        """Every caption with one number, colour, side, place or size replaced, and the one with two colours swapped.

        A word is replaced by one drawn for this caption, so that no kind of edit outnumbers the others.
        """
        parts = _split(caption)
        rng = numpy_generator(0, f"edits of {caption}")
        edited = []
        for position, word in enumerate(parts):
            options = self._options.get(word, [])
            if options:
                other = options[int(rng.integers(len(options)))]
                edited.append("".join([*parts[:position], other, *parts[position + 1 :]]))
        colored = [position for position, word in enumerate(parts) if word in _COLORS]
        if len(colored) >= 2 and parts[colored[0]] != parts[colored[1]]:
            first, second = colored[:2]
            parts[first], parts[second] = parts[second], parts[first]
            edited.append("".join(parts))
        return edited


def _split(caption: str) -> list[str]:
    """Words and what stands between them, so that joining restores the caption."""
    return re.findall(r"\w+|\W+", caption)
