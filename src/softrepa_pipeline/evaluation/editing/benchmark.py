"""Edits of the embedded world with exact truth: what shall be there afterwards, and where the image may change."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from softrepa_pipeline.evaluation.editing.config import Captions
from softrepa_pipeline.randomness import derived_seed, numpy_generator
from softrepa_pipeline.shapes.captions import draw_claim, draw_scene, word
from softrepa_pipeline.shapes.claims import Claim, is_true
from softrepa_pipeline.shapes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, Split, render

# What is changed, and the tasks whose claims name it.
KINDS = {
    "color": ("colors", "color_attribution"),
    "shape": ("colors", "two_object", "color_attribution"),
    "size": ("single_object", "colors"),
    "count": ("counting",),
    "background": ("single_object", "colors", "counting"),
}
_COUNTS = (2, 3, 4)


@dataclass(frozen=True)
class TrueEdit:
    """A source image (height, width, 3), uint8, its captions, the target's claim, and the pixels that may change."""

    kind: str
    image: np.ndarray
    captions: Captions
    claim: Claim
    mask: np.ndarray


def draw_edits(edits_per_kind: int, split: Split = "test", seed: int = 0) -> list[TrueEdit]:
    """As many edits of every kind; what their target captions claim belongs to the split."""
    return [_draw(kind, split, seed, index) for kind in KINDS for index in range(edits_per_kind)]


def _draw(kind: str, split: Split, seed: int, index: int) -> TrueEdit:
    rng = numpy_generator(seed, f"{split} edit {kind}", index)
    while True:
        target = draw_claim(_choice(KINDS[kind], rng), rng)
        source = _before(target, kind, rng) if target.split == split else None
        if source is None:
            continue
        try:
            scene = draw_scene(source, rng)
        except ValueError:  # it does not fit the canvas
            continue
        if is_true(target, scene.things, scene.background):
            continue
        mask = _changeable(scene, source, target, kind)
        if mask is not None:
            captions = _word_alike(source, target, derived_seed(seed, f"{split} wording {kind}", index))
            return TrueEdit(kind, render(scene), captions, target, mask)


def _choice(options: tuple[str, ...] | list[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _before(target: Claim, kind: str, rng: np.random.Generator) -> Claim | None:
    """A claim that differs from the target's in one word; None where the target's does not name such a thing."""
    if kind == "background":
        others = [name for name in BACKGROUNDS if name != target.background]
        return replace(target, background=_choice(others, rng)) if target.background else None
    if kind == "count":
        assert target.count is not None
        return replace(target, count=int(rng.choice([n for n in _COUNTS if abs(n - target.count) == 1])))
    first, *rest = target.objects
    value = getattr(first, kind)
    taken = [value, *(getattr(wanted, kind) for wanted in rest)]
    options = {"color": list(COLORS), "shape": list(SHAPES), "size": list(SIZES)}[kind]
    if value is None:
        return None
    changed = replace(first, **{kind: _choice([option for option in options if option not in taken], rng)})
    return replace(target, objects=(changed, *rest))


def _changeable(scene: Scene, source: Claim, target: Claim, kind: str) -> np.ndarray | None:
    """Pixels (height, width) that an edit may change, edges included; None where the changed object does not fit."""
    bare = replace(scene, things=())
    objects = _differ(scene, bare)
    if kind == "background":
        return _grown(~objects)
    if kind == "count":
        # A caption does not say which object goes, nor where another one comes.
        assert source.count is not None
        assert target.count is not None
        return _grown(objects) if target.count < source.count else ~_grown(objects)
    thing, value = scene.things[0], getattr(target.objects[0], kind)
    changed = replace(thing, **{kind: value})
    if kind == "size":
        changed = replace(changed, extent=SIZES[value][1])  # the largest that still bears the name
    after = replace(scene, things=(changed, *scene.things[1:]))
    if not _fits(after):
        return None
    return _grown(_differ(scene, after) | _differ(scene, replace(scene, things=scene.things[1:])))


def _fits(scene: Scene) -> bool:
    """Whether the first object lies within the canvas; only those that stand alone change their size."""
    thing, side = scene.things[0], render(scene).shape[0]
    return all(thing.extent / 2 <= place <= side - thing.extent / 2 for place in (thing.x, thing.y))


def _differ(first: Scene, second: Scene) -> np.ndarray:
    return (render(first) != render(second)).any(axis=-1)


def _grown(mask: np.ndarray) -> np.ndarray:
    """One pixel more on each side, for soft edges."""
    return ndimage.binary_dilation(mask, np.ones((3, 3)))


def _word_alike(source: Claim, target: Claim, seed: int) -> Captions:
    """Both claims in the same words but the one that changes."""
    attempt = 0
    while True:
        captions = Captions(*(word(claim, numpy_generator(seed, "words", attempt)) for claim in (source, target)))
        before, after = captions.source.split(), captions.target.split()
        if len(before) == len(after) and sum(a != b for a, b in zip(before, after, strict=True)) == 1:
            return captions
        attempt += 1
