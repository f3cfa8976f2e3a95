"""A question, and the settings whose comparison answers it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from softrepa_pipeline.config import build
from softrepa_pipeline.inference import Strength
from softrepa_pipeline.shapes.finetuning import FineTuning
from softrepa_pipeline.studies.data import DataChange


@dataclass(frozen=True)
class Point:
    """What one point of a study changes; everything else is as the family's own settings have it.

    `fit`, `mine` and `sampling` are changes to those settings, `data` to the embedded world's training pairs;
    `strength` is the tokens' while images are drawn. With and without tokens, it is measured on a world that `world`
    changes, with a fine-tuned copy of the base, and at one `guidance` instead of each model's best. Tokens are trained
    on the world and base as they are; with `anew` on the copy.
    """

    fit: dict[str, Any] = field(default_factory=dict)
    mine: dict[str, Any] = field(default_factory=dict)
    data: DataChange | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    strength: float | Strength = 1.0
    world: dict[str, Any] = field(default_factory=dict)
    base: FineTuning | None = None
    anew: bool = False
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.anew and self.base is None:
            raise ValueError("anew trains on a fine-tuned copy, and base names none")


@dataclass(frozen=True)
class Study:
    """A question and its points by label. The `references` are confirmed whatever the screening makes of them.

    `curves` has the figure drawn against a quantity, logarithmic, in place of a row a point: by the quantity's name,
    how much of it each of some points has, or None for the pairs it was trained on. Where `unranked` is given, the page
    tells what the points promised (`Measured.expected_decrease`) and how that ranks all of them but these, which are of
    another loss.
    """

    name: str
    question: str
    references: tuple[str, ...]
    points: dict[str, Point]
    curves: dict[str, dict[str, float | None]] = field(default_factory=dict)
    unranked: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        named: dict[str, Collection[str]] = {f"curves.{name}": own for name, own in self.curves.items()}
        named |= {"references": self.references, "unranked": self.unranked or ()}
        for where, labels in named.items():
            for label in labels:
                if label not in self.points:
                    known = ", ".join(self.points)
                    raise ValueError(
                        f"studies.{self.name}.{where} names {label!r}, none of the family's points: {known}"
                    )


def read_study(name: str, studies: Mapping[str, Any], family: str) -> Study:
    """A study as the configuration has it: `points` of all families, then those of this one (`family_points`).

    Raises:
        ValueError: there is no such study, it says something unknown, or names a point that it has not.
    """
    if name not in studies:
        raise ValueError(f"no study {name!r}; --params study= one of {', '.join(studies)}")
    written = dict(studies[name])
    labelled = {**written.pop("points", {}), **written.pop("family_points", {}).get(family, {})}
    points = {label: build(Point, own or {}, f"studies.{name}.{label}") for label, own in labelled.items()}
    return build(Study, {**written, "name": name, "points": points}, f"studies.{name}")
