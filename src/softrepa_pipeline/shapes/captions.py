"""Captions of the embedded world: drawn scenes with a claim each, its wordings, and the faults of web captions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from softrepa_pipeline.shapes.claims import TASKS, Claim, ObjectClaim, is_true, mirrored
from softrepa_pipeline.shapes.scene import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, Scene, Split, place, split_of

COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
SYNONYMS = {"circle": ("circle", "disc"), "square": ("square", "box"), "triangle": ("triangle",)}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
BACKGROUND_WORDS = {"dark": ("dark", "black"), "gray": ("gray",), "light": ("light", "white")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPENINGS = ("", "", "a photo of", "a picture of", "there is")
PLURAL = {"disc": "discs", "circle": "circles", "box": "boxes", "square": "squares", "triangle": "triangles"}

# Counting and position are learned last, so they get the larger share.
TASK_WEIGHTS = {
    "single_object": 0.06,
    "two_object": 0.14,
    "counting": 0.26,
    "colors": 0.08,
    "position": 0.26,
    "color_attribution": 0.20,
}


@dataclass(frozen=True)
class CaptionedScene:
    scene: Scene
    claim: Claim
    caption: str


def _choice(options: tuple[str, ...] | list[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def draw_claim(task: str, rng: np.random.Generator) -> Claim:
    """Draw a claim of one task type; sizes and backgrounds are named now and then."""
    background = _choice(list(BACKGROUNDS), rng) if rng.random() < 0.3 else None
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))[:2]]

    def wanted(shape: str, color: bool, size_share: float) -> ObjectClaim:
        return ObjectClaim(
            shape,
            _choice(list(COLORS), rng) if color else None,
            _choice(list(SIZES), rng) if rng.random() < size_share else None,
        )

    if task == "single_object":
        return Claim(task, (wanted(shapes[0], False, 0.5),), background=background)
    if task == "colors":
        return Claim(task, (wanted(shapes[0], True, 0.3),), background=background)
    if task == "counting":
        count = int(rng.integers(2, 5))
        return Claim(task, (wanted(shapes[0], rng.random() < 0.5, 0.0),), count=count, background=background)
    if task == "two_object":
        return Claim(task, (wanted(shapes[0], False, 0.25), wanted(shapes[1], False, 0.25)), background=background)
    if task == "position":
        relation, colored = _choice(list(RELATIONS), rng), rng.random() < 0.6
        objects = (wanted(shapes[0], colored, 0.0), wanted(shapes[1], colored, 0.0))
        return Claim(task, objects, relation=relation, background=background)
    assert task == "color_attribution"
    first, second = (_choice(list(COLORS), rng) for _ in range(2))
    while second == first:
        second = _choice(list(COLORS), rng)
    return Claim(task, (ObjectClaim(shapes[0], first), ObjectClaim(shapes[1], second)), background=background)


def draw_scene(claim: Claim, rng: np.random.Generator) -> Scene:
    """Draw a scene that shows what the claim names, and nothing else.

    Raises:
        ValueError: the objects do not fit the canvas.
    """
    count = claim.count or 1
    specs = []
    for wanted in claim.objects:
        shared_color = wanted.color or _choice(list(COLORS), rng)
        for _ in range(count):
            # Colourless counts show mixed colours half of the time, or colour alone would give the number away.
            color = wanted.color or (shared_color if rng.random() < 0.5 else _choice(list(COLORS), rng))
            # Four large objects do not fit.
            size = wanted.size or (_choice(list(SIZES), rng) if count < 3 else "small")
            specs.append((wanted.shape, color, size))
    return place(specs, claim.relation, claim.background or _choice(list(BACKGROUNDS), rng), rng)


def _noun_phrase(wanted: ObjectClaim, count: int | None, rng: np.random.Generator) -> str:
    noun = _choice(SYNONYMS[wanted.shape], rng)
    size = [_choice(SIZE_WORDS[wanted.size], rng)] if wanted.size else []
    color = [wanted.color] if wanted.color else []
    if count is not None:
        return " ".join([COUNT_WORDS[count], *size, *color, PLURAL[noun]])
    article = "one" if rng.random() < 0.15 else "a"
    if color and rng.random() < 0.15:
        return " ".join([article, *size, noun, "that is", *color])
    return " ".join([article, *size, *color, noun])


def word(claim: Claim, rng: np.random.Generator) -> str:
    """Put a claim into words: one of its many paraphrases."""
    if claim.relation and rng.random() < 0.3:
        claim = mirrored(claim)
    phrases = [_noun_phrase(wanted, claim.count, rng) for wanted in claim.objects]
    if claim.relation:
        body = f"{phrases[0]} {_choice(RELATION_WORDS[claim.relation], rng)} {phrases[1]}"
    else:
        order = phrases if rng.random() < 0.5 else phrases[::-1]
        body = f" {_choice(('and', 'and', 'next to', 'with'), rng)} ".join(order)
    if claim.background:
        body += f" on a {_choice(BACKGROUND_WORDS[claim.background], rng)} background"
    opening = _choice(OPENINGS, rng)
    if opening == "there is" and claim.count:
        opening = "there are"
    return f"{opening} {body}".strip()


def neglect(claim: Claim, rng: np.random.Generator) -> Claim:
    """What a picture shows whose caption claims too much: an object fewer, or both objects in one colour.

    These are the known failures of text-to-image models: neglected objects, too few of them, leaking attributes. Claims
    about one object, and positions, are returned as they are.
    """
    if claim.count:
        fewer = claim.count - 1
        task = "counting" if fewer > 1 else "colors" if claim.objects[0].color else "single_object"
        return replace(claim, task=task, count=fewer if fewer > 1 else None)
    if claim.task == "two_object":
        return replace(claim, task="single_object", objects=(claim.objects[int(rng.integers(2))],))
    if claim.task == "color_attribution":
        first, second = claim.objects if rng.random() < 0.5 else claim.objects[::-1]
        return replace(claim, objects=(first, replace(second, color=first.color)))
    return claim


def draw_captioned(
    split: Split, fault_share: float, rng: np.random.Generator, task: str | None = None
) -> CaptionedScene:
    """Draw a scene of a split with a caption; of the claims that can be neglected a `fault_share` is, as on the web.

    Both the combination of kinds that the scene shows and the claim that its caption makes belong to the split, so what
    is held out never appears in training, neither drawn nor named. That goes for faulty captions too.
    """
    tasks, weights = list(TASK_WEIGHTS), list(TASK_WEIGHTS.values())
    drawn_task = task or tasks[int(rng.choice(len(tasks), p=weights))]
    is_faulty = rng.random() < fault_share
    while True:
        claim = draw_claim(drawn_task, rng)
        if claim.split != split:
            continue
        try:
            scene = draw_scene(neglect(claim, rng) if is_faulty else claim, rng)
        except ValueError:
            continue
        if split == "train" and split_of(scene.combination) != "train":
            continue
        assert is_faulty or is_true(claim, scene.things, scene.background)
        return CaptionedScene(scene, claim, word(claim, rng))


assert set(TASK_WEIGHTS) == set(TASKS)
