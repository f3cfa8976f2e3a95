"""How many objects images of the embedded world show against how many their prompts ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softrepa_pipeline.shapes.claims import Claim, ObjectClaim
from softrepa_pipeline.shapes.verifier import Sight, look

# What the verifier sees in each image (prompts, seeds).
Sights = Sequence[Sequence[Sight]]


@dataclass(frozen=True)
class CountConfusion:
    """Images by the count asked for and the count drawn: `images` (asked, drawn), int.

    Row k is of prompts that ask for `asked[k]` objects; the columns are 0, 1, …, the largest count asked for, more.
    """

    asked: tuple[int, ...]
    images: np.ndarray

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(str(count) for count in range(self.images.shape[1] - 1)), "more")


def look_at(images: np.ndarray) -> Sights:
    """What each of the images (prompts, seeds, height, width, 3), uint8, shows."""
    return [[look(image) for image in row] for row in images]


def count_confusion(claims: Sequence[Claim], sights: Sights) -> CountConfusion:
    """Images of the prompts that name a count, the counting task's, by what was asked for and what was drawn.

    An object counts where it is of the shape asked for, and of the colour and size where those are named; others do
    not, as in GenEval. Prompts without a count are left out; if none has one there is no row.
    """
    counting = [
        (claim.count, _drawn(claim.objects[0], sight))
        for claim, row in zip(claims, sights, strict=True)
        for sight in row
        if claim.count
    ]
    asked = sorted({count for count, _ in counting})
    more = max(asked, default=0) + 1
    images = np.zeros((len(asked), more + 1), dtype=int)
    for count, drawn in counting:
        images[asked.index(count), min(drawn, more)] += 1
    return CountConfusion(tuple(asked), images)


def repetitions(claims: Sequence[Claim], sights: Sights) -> np.ndarray:
    """Objects beyond those asked for in each image (prompts, seeds), int; their mean is the repetition index.

    Every prompt of the embedded world fixes how many objects are there: the count that it names, else one of each
    object named ("a red circle"). For each object named, the ones in the image that fit it (shape, and colour and size
    where named) beyond that number are repetitions: three red circles for "a red circle" are two. One too few of
    another kind makes up for nothing, and what the prompt does not name is no repetition: a square, or a blue circle.
    """
    return np.array([[_repeated(claim, sight) for sight in row] for claim, row in zip(claims, sights, strict=True)])


def _repeated(claim: Claim, sight: Sight) -> int:
    return sum(max(0, _drawn(wanted, sight) - (claim.count or 1)) for wanted in claim.objects)


def _drawn(wanted: ObjectClaim, sight: Sight) -> int:
    return sum(wanted.fits(thing) for thing in sight.things)
