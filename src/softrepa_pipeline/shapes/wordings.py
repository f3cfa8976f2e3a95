"""Prompts in other words than training captions: sentence forms that these never have, and more said than they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from softrepa_pipeline.shapes.captions import (
    BACKGROUND_WORDS,
    COUNT_WORDS,
    PLURAL,
    RELATION_WORDS,
    SIZE_WORDS,
    SYNONYMS,
    CaptionedScene,
    word,
)
from softrepa_pipeline.shapes.claims import Claim, ObjectClaim
from softrepa_pipeline.shapes.scene import Scene

# A word is a token of the embedded tokenizer, which takes 20 with the caption's start and end.
MAX_WORDS = 18


def reword(item: CaptionedScene, rng: np.random.Generator) -> CaptionedScene:
    """The same claim in a sentence that `captions.word` does not make, of words that it uses."""
    return replace(item, caption=_other_sentence(item.claim, rng))


def name_all(item: CaptionedScene, rng: np.random.Generator) -> CaptionedScene | None:
    """Size, colour and background of all named, in a training caption's forms; None where many are not alike."""
    claim = _full_claim(item.claim, item.scene)
    if claim is None:
        return None
    return replace(item, claim=claim, caption=word(claim, rng))


def _full_claim(claim: Claim, scene: Scene) -> Claim | None:
    if len({(thing.shape, thing.color, thing.size) for thing in scene.things}) != len(claim.objects):
        return None
    named = tuple(ObjectClaim(thing.shape, thing.color, thing.size) for thing in scene.things[: len(claim.objects)])
    return replace(claim, objects=named, background=scene.background)


def _other_sentence(claim: Claim, rng: np.random.Generator) -> str:
    def choice(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    def noun(wanted: ObjectClaim) -> str:
        """Without article: "small red circles"."""
        own = choice(SYNONYMS[wanted.shape])
        size = choice(SIZE_WORDS[wanted.size]) if wanted.size else None
        return " ".join(part for part in (size, wanted.color, PLURAL[own] if claim.count else own) if part)

    ground = f"a {choice(BACKGROUND_WORDS[claim.background])} background" if claim.background else "the background"
    nouns = [noun(wanted) for wanted in claim.objects]
    if claim.count:
        number = COUNT_WORDS[claim.count]
        return choice((f"on {ground} there are {number} {nouns[0]}", f"{number} {nouns[0]} are on {ground}"))
    if claim.relation:
        how, (first, second) = choice(RELATION_WORDS[claim.relation]), nouns
        own = f" and the background is {ground.split()[1]}" if claim.background else ""
        return choice((f"the {first} is {how} the {second}{own}", f"{how} the {second} there is the {first}{own}"))
    body = " and ".join(f"a {own}" for own in nouns)
    verb = "are" if len(nouns) > 1 else "is"
    return choice(
        (f"on {ground} there is {body}", f"the picture is of {body} on {ground}", f"{body} {verb} on {ground}")
    )


WORDINGS: dict[str, Callable[[CaptionedScene, np.random.Generator], CaptionedScene | None]] = {
    "plain": lambda item, _: item,
    "unseen": reword,
    "long": name_all,
}
