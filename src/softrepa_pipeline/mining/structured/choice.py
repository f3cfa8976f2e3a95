"""Which of several words an edit puts in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from softrepa_pipeline.randomness import numpy_generator


class WordChoice:
    """Draws words that the data set uses, so that an edit reads like one of its captions.

    `used` is what the data set says, `avoided` what other captions of the image say and this one does not: that may be
    true of it. A draw does not depend on which other options fit.
    """

    def __init__(self, used: set[str], avoided: set[str], purpose: str) -> None:
        self._used, self._avoided, self._purpose = used, avoided, purpose

    @cached_property
    def _rng(self) -> np.random.Generator:
        return numpy_generator(0, self._purpose)

    def one_of(self, options: Sequence[str]) -> str | None:
        """One of the options that the data set uses and that no other caption of the image says."""
        return self.opposite(
            [option for option in self.shuffled(options) if not self._avoided.issuperset(option.split())]
        )

    def opposite(self, options: Sequence[str]) -> str | None:
        """One of the options that the data set uses; what they contradict excludes them, whatever others say."""
        return next((option for option in self.shuffled(options) if self._used.issuperset(option.split())), None)

    def shuffled(self, options: Sequence[str]) -> list[str]:
        """All options, in an order drawn for the caption and the kind of edit."""
        return [options[i] for i in self._rng.permutation(len(options))]
