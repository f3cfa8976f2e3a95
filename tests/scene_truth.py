"""Whether any sentence about a scene of the embedded world is true of it, edited sentences included."""

from __future__ import annotations

import re
from dataclasses import dataclass

from softrepa_pipeline.shapes.captions import BACKGROUND_WORDS, OPENINGS, PLURAL, RELATION_WORDS, SIZE_WORDS, SYNONYMS
from softrepa_pipeline.shapes.scene import COLORS, Scene, Thing, holds

_NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
_SINGULAR = {plural: noun for noun, plural in PLURAL.items()}
_SHAPE_OF = {word: shape for shape, words in SYNONYMS.items() for word in words}
_SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in words}
_RELATION_OF = {word: relation for relation, words in RELATION_WORDS.items() for word in words}
_BACKGROUNDS_OF = {word: background for background, words in BACKGROUND_WORDS.items() for word in words}
_BETWEEN = re.compile(
    "|".join(rf" {word} " for word in [*sorted(_RELATION_OF, key=len, reverse=True), "and", "next to", "with"])
)
_OPENING = re.compile("|".join(f"^{opening} " for opening in sorted({*OPENINGS, "there are"}, reverse=True) if opening))


@dataclass(frozen=True)
class _Said:
    """Things said to be there: exactly `count` of them, or at least one."""

    shape: str
    colors: tuple[str, ...]
    sizes: tuple[str, ...]
    count: int | None

    def matching(self, scene: Scene) -> list[Thing]:
        return [
            thing
            for thing in scene.things
            if thing.shape == self.shape
            and all(color == thing.color for color in self.colors)
            and all(size == thing.size for size in self.sizes)
        ]


def _said(phrase: str) -> _Said:
    article, *words = phrase.replace(" that is ", " ").replace(" that are ", " ").split()
    assert article in {"a", "an", *_NUMBERS}, phrase
    nouns = [word for word in words if _SINGULAR.get(word, word) in _SHAPE_OF]
    assert len(nouns) == 1, phrase
    assert (nouns[0] in _SINGULAR) == (_NUMBERS.get(article, 1) > 1), phrase
    others = [word for word in words if word not in nouns]
    sizes = tuple(_SIZE_OF[word] for word in others if word in _SIZE_OF)
    colors = tuple(word for word in others if word not in _SIZE_OF)
    assert set(colors) <= {*COLORS, "black", "white", "gray"}, phrase
    return _Said(_SHAPE_OF[_SINGULAR.get(nouns[0], nouns[0])], colors, sizes, _NUMBERS.get(article))


def is_true_of(caption: str, scene: Scene) -> bool:
    """Judges by the scene's own metadata; a caption that cannot be understood is an AssertionError."""
    body = _OPENING.sub("", caption)
    body, _, background = body.partition(" on a ")
    if background:
        word = background.removesuffix(" background")
        assert word in {*_BACKGROUNDS_OF, *COLORS}, caption
        if _BACKGROUNDS_OF.get(word) != scene.background:
            return False
    phrases = [_said(phrase) for phrase in _BETWEEN.split(body)]
    matches = [said.matching(scene) for said in phrases]
    if any(len(found) != said.count if said.count else not found for said, found in zip(phrases, matches, strict=True)):
        return False
    if len(phrases) == 1:
        return True
    relation = _RELATION_OF.get(_BETWEEN.findall(body)[0].strip())
    pairs = [(first, second) for first in matches[0] for second in matches[1] if first is not second]
    return any(relation is None or holds(relation, (a.x, a.y), (b.x, b.y)) for a, b in pairs)
