"""GenEval's rules as pure functions: what a prompt asks for, what a detector found, whether the one meets the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")

MIN_CONFIDENCE = 0.3
MIN_CONFIDENCE_COUNTING = 0.9
MAX_OBJECTS = 16  # of a kind
POSITION_MARGIN = 0.1  # of both objects' extents together
_MIN_DIRECTION = 0.5


@dataclass(frozen=True)
class Wanted:
    """At least `count` objects of a kind; of that colour, or in that relation to an earlier wanted one, where named."""

    kind: str
    count: int = 1
    color: str | None = None
    relation: str | None = None
    target: int | None = None


@dataclass(frozen=True)
class Request:
    """What a prompt asks for: all of `include` and none of `exclude`, where a count is one too many."""

    task: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()


@dataclass(frozen=True)
class Detection:
    """An object found: its kind, confidence, box (left, top, right, bottom) in pixels, and mask where there is one."""

    kind: str
    confidence: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether an image meets its request, and what is wrong where not."""

    correct: bool
    reasons: tuple[str, ...] = ()


# (kind, objects of it) → a colour for each.
ColorNamer = Callable[[str, Sequence[Detection]], list[str]]


def request_from_record(record: Mapping[str, Any]) -> Request:
    """A request from a record of GenEval's evaluation_metadata.jsonl.

    Raises:
        ValueError: the record is not one of GenEval's; the message says in what.
    """
    if not isinstance(record, Mapping) or record.get("tag") not in TASKS:
        raise ValueError(f"`tag` must be one of {', '.join(TASKS)}")
    include = tuple(_wanted(item) for item in record.get("include", ()))
    if not include:
        raise ValueError("`include` names no object")
    for place, wanted in enumerate(include):
        if wanted.target is not None and not 0 <= wanted.target < place:
            raise ValueError(f"the position of {wanted.kind} must refer to an object before it, not to {wanted.target}")
    return Request(record["tag"], include, tuple(_wanted(item) for item in record.get("exclude", ())))


def _wanted(item: Mapping[str, Any]) -> Wanted:
    if not isinstance(item, Mapping) or not isinstance(item.get("class"), str):
        raise ValueError("an object needs a `class`")
    if not isinstance(item.get("count"), int) or item["count"] < 1:
        raise ValueError(f"{item['class']} needs a `count` of at least 1")
    if item.get("color") not in (None, *COLORS):
        raise ValueError(f"{item['color']} is none of {', '.join(COLORS)}")
    relation, target = item.get("position", (None, None))
    if relation not in (None, *RELATIONS):
        raise ValueError(f"{relation} is none of {', '.join(RELATIONS)}")
    return Wanted(item["class"], item["count"], item.get("color"), relation, target)


def keep(detections: Sequence[Detection], task: str) -> dict[str, list[Detection]]:
    """Confident detections by kind, the most confident first; counting asks for more confidence."""
    minimum = MIN_CONFIDENCE_COUNTING if task == "counting" else MIN_CONFIDENCE
    kept: dict[str, list[Detection]] = {}
    for found in sorted(detections, key=lambda item: -item.confidence):
        if found.confidence > minimum and len(kept.get(found.kind, ())) < MAX_OBJECTS:
            kept.setdefault(found.kind, []).append(found)
    return kept


def judge(request: Request, detections: Sequence[Detection], name_colors: ColorNamer) -> Verdict:
    """Judge one image as GenEval does: of each kind the most confident objects count, as many as are asked for."""
    found = keep(detections, request.task)
    groups: list[Sequence[Detection] | None] = []
    reasons = []
    for wanted in request.include:
        objects = found.get(wanted.kind, [])[: wanted.count]
        fault = _fault(wanted, objects, groups, name_colors)
        groups.append(None if fault else objects)
        reasons += [fault] if fault else []
    for wanted in request.exclude:
        number = len(found.get(wanted.kind, ()))
        if number >= wanted.count:
            reasons.append(f"expected fewer than {wanted.count} {wanted.kind}, found {number}")
    return Verdict(not reasons, tuple(reasons))


def _fault(
    wanted: Wanted, objects: Sequence[Detection], groups: Sequence[Sequence[Detection] | None], name_colors: ColorNamer
) -> str | None:
    if len(objects) < wanted.count:
        return f"expected {wanted.count} {wanted.kind}, found {len(objects)}"
    if wanted.color is not None:
        colors = name_colors(wanted.kind, objects)
        if colors.count(wanted.color) < wanted.count:
            return f"expected {wanted.color} {wanted.kind}, found {' and '.join(colors)}"
    if wanted.relation is None or wanted.target is None:
        return None
    targets = groups[wanted.target]
    if targets is None:
        return f"nothing for {wanted.kind} to be {wanted.relation}"
    for relations in (relations_of(thing.box, target.box) for thing in objects for target in targets):
        if wanted.relation not in relations:
            found = " and ".join(sorted(relations)) or "neither side"
            return f"expected {wanted.kind} {wanted.relation} the other, found {found}"
    return None


def relations_of(box: Sequence[float], other: Sequence[float]) -> set[str]:
    """Where `box` stands seen from `other`: by centres, beyond a margin of a tenth of both extents on each axis.

    On a diagonal two relations hold.
    """
    corners = np.array([box, other], dtype=float).reshape(2, 2, 2)
    centers, extents = corners.mean(axis=1), np.abs(corners[:, 1] - corners[:, 0])
    offset = centers[0] - centers[1]
    beyond = np.maximum(np.abs(offset) - POSITION_MARGIN * extents.sum(axis=0), 0) * np.sign(offset)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    x, y = beyond / np.linalg.norm(offset)
    holds = {"left of": -x, "right of": x, "above": -y, "below": y}
    return {relation for relation, direction in holds.items() if direction > _MIN_DIRECTION}
