"""Which of several words an edit puts in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Choice:
    """Draws words that the data set uses, so that an edit reads like one of its captions.

    `used` is what the data set says, `avoided` what other captions of the image say and this one does not: that may be
    true of it.
    """

    def __init__(self, used: set[str], avoided: set[str], rng: np.random.Generator) -> None:
        self._used, self._avoided, self._rng = used, avoided, rng

    def one_of(self, options: Sequence[str]) -> str | None:
        """One of the fitting options; the draw does not depend on which others fit."""
        order = self._rng.permutation(len(options))
        return next((options[i] for i in order if self._fits(options[i])), None)

    def drawn(self, options: Sequence[str]) -> str | None:
        """One of the options that the data set uses, whatever other captions say: for opposites, which exclude it."""
        order = self._rng.permutation(len(options))
        return next((options[i] for i in order if self._used.issuperset(options[i].split())), None)

    def _fits(self, option: str) -> bool:
        words = option.split()
        return self._used.issuperset(words) and not (words and self._avoided.issuperset(words))
