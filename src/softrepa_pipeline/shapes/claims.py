"""What a caption claims of a scene, in GenEval's six task types, and whether a scene bears it out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from softrepa_pipeline.shapes.scene import RELATIONS, Split, combination_key, holds, split_of

OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attribution")


class Visible(Protocol):
    """An object as drawn or as seen: what claims are checked against."""

    @property
    def shape(self) -> str: ...
    @property
    def color(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...


@dataclass(frozen=True)
class ObjectClaim:
    """At least one object of `shape`, and of `color` and `size` where they are named."""

    shape: str
    color: str | None = None
    size: str | None = None

    def fits(self, thing: Visible) -> bool:
        return thing.shape == self.shape and self.color in (None, thing.color) and self.size in (None, thing.size)

    @property
    def key(self) -> str:
        return " ".join(part for part in (self.size, self.color, self.shape) if part)


@dataclass(frozen=True)
class Claim:
    """One caption's meaning: objects that must be there, how many, how placed, on what background.

    `count` is exact and belongs to the counting task, as GenEval's `include` and `exclude` pair does;
    `relation` holds between the first and the second object.
    """

    task: str
    objects: tuple[ObjectClaim, ...]
    count: int | None = None
    relation: str | None = None
    background: str | None = None

    @property
    def key(self) -> str:
        """A phrasing-free identity: equal for every paraphrase of the same claim."""
        parts = [self.task, str(self.count or ""), self.relation or "", self.background or ""]
        return "/".join(parts + [claim.key for claim in self.objects])

    @property
    def split(self) -> Split:
        """Where the claim may be used: by its combination of kinds where it names all colours, else by its own key."""
        kinds = [f"{claim.color} {claim.shape}" for claim in self.objects for _ in range(self.count or 1)]
        if all(claim.color for claim in self.objects):
            return split_of(combination_key(kinds))
        return split_of(self.key)


def is_true(claim: Claim, things: tuple[Visible, ...], background: str) -> bool:
    """Judge a claim by what an image shows, GenEval's way: named objects must exist, unnamed ones may."""
    if claim.background not in (None, background):
        return False
    matches = [[thing for thing in things if wanted.fits(thing)] for wanted in claim.objects]
    if claim.count is not None:
        return len(matches[0]) == claim.count
    if len(matches) == 1:
        return bool(matches[0])
    pairs = [(a, b) for a in matches[0] for b in matches[1] if a is not b]
    if claim.relation is None:
        return bool(pairs)
    return any(holds(claim.relation, (a.x, a.y), (b.x, b.y)) for a, b in pairs)


def mirrored(claim: Claim) -> Claim:
    """The same relation told from the other object's side."""
    assert claim.relation in RELATIONS
    return replace(claim, objects=claim.objects[::-1], relation=OPPOSITES[claim.relation])
