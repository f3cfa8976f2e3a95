"""Counting against scenes whose truth is known because they were rendered from it."""

from __future__ import annotations

import numpy as np
import pytest

from softrepa_pipeline.evaluation.counting import count_confusion, look_at, repetitions
from softrepa_pipeline.shapes.captions import draw_captioned
from softrepa_pipeline.shapes.claims import TASKS, Claim, ObjectClaim
from softrepa_pipeline.shapes.scene import Scene, Thing, render

_PLACES = [(x, y) for y in (6.0, 16.0, 26.0) for x in (6.0, 16.0, 26.0)]


def scene_of(*kinds: str) -> np.ndarray:
    """An image of the objects named ("red circle"), each in a place of its own."""
    named = (kind.split() for kind in kinds)
    things = [Thing(shape, color, "small", *_PLACES[place], 8.0) for place, (color, shape) in enumerate(named)]
    return render(Scene(tuple(things), "dark", 20, 0))


def asking(task: str, *kinds: str, count: int | None = None) -> Claim:
    """The claim of a prompt for the objects named, "circle" or "red circle"."""
    objects = [ObjectClaim(shape, *color) for *color, shape in (kind.split() for kind in kinds)]
    return Claim(task, tuple(objects), count)


def test_confusion_holds_every_image_where_its_counts_are() -> None:
    claims = [
        asking("counting", "circle", count=2),
        asking("colors", "red circle"),
        asking("counting", "red circle", count=4),
        asking("counting", "square", count=4),
    ]
    images = np.stack(
        [
            np.stack([scene_of("red circle", "blue circle"), scene_of()]),
            np.stack([scene_of("red circle"), scene_of("red circle")]),
            # Neither another colour nor another shape counts.
            np.stack([scene_of(*["red circle"] * 3, "blue circle"), scene_of(*["red circle"] * 9)]),
            np.stack([scene_of(*["green square"] * 4, "green triangle"), scene_of(*["blue square"] * 5)]),
        ]
    )
    found = count_confusion(claims, look_at(images))
    assert found.asked == (2, 4)
    assert found.columns == ("0", "1", "2", "3", "4", "more")
    assert found.images.tolist() == [[1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 2]]
    assert count_confusion(claims[1:2], look_at(images[1:2])).images.shape == (0, 2)


@pytest.mark.parametrize(
    ("claim", "drawn", "beyond"),
    [
        (asking("colors", "red circle"), ["red circle"], 0),
        (asking("colors", "red circle"), ["red circle"] * 3, 2),
        (asking("colors", "red circle"), ["red circle", "blue circle", "red square"], 0),
        (asking("colors", "red circle"), [], 0),
        (asking("single_object", "circle"), ["red circle", "blue circle"], 1),
        (asking("counting", "circle", count=3), ["red circle"] * 5, 2),
        (asking("counting", "circle", count=3), ["red circle"] * 2, 0),
        (asking("two_object", "circle", "square"), ["red circle"] * 2, 1),
        (asking("two_object", "circle", "square"), [*["red circle"] * 2, *["blue square"] * 3], 3),
        (asking("color_attribution", "red circle", "blue square"), ["red circle", *["blue square"] * 2], 1),
    ],
)
def test_repetitions_are_the_objects_beyond_those_asked_for(claim: Claim, drawn: list[str], beyond: int) -> None:
    assert repetitions([claim], look_at(scene_of(*drawn)[None, None])).tolist() == [[beyond]]


@pytest.mark.parametrize("task", TASKS)
def test_the_world_s_own_images_repeat_nothing(task: str) -> None:
    rng = np.random.default_rng(0)
    items = [draw_captioned("test", 0.0, rng, task) for _ in range(20)]
    claims = [item.claim for item in items]
    sights = look_at(np.stack([render(item.scene) for item in items])[:, None])
    assert repetitions(claims, sights).shape == (20, 1)
    assert not repetitions(claims, sights).any()
    confusion = count_confusion(claims, sights)
    assert confusion.images.sum() == (20 if task == "counting" else 0)
    assert all(row[asked] == row.sum() for asked, row in zip(confusion.asked, confusion.images, strict=True))
