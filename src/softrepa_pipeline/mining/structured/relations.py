"""Edits that turn a relation around: sides, above and below, before and behind, on and under, sitting and standing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from softrepa_pipeline.mining.structured import lexicon
from softrepa_pipeline.mining.structured.choice import WordChoice
from softrepa_pipeline.mining.structured.sentence import Sentence

Condition = Callable[[Sentence, int, int], bool]
"""Whether words [start, end) of a sentence are meant as the relation."""

_SUPPORTS = {
    "furniture",
    "resting place",
    "vehicle",
    "cycle",
    "bathroom",
    "appliance",
    "luggage",
    "gear",
    "animal",
    "plate",
}


@dataclass(frozen=True)
class _Relation:
    words: tuple[str, ...]
    becomes: tuple[str, ...]
    is_meant: Condition


def _before_thing(sentence: Sentence, start: int, end: int) -> bool:
    return sentence.word(end) in lexicon.DETERMINERS - {"that"} or sentence.phrase_at(end) is not None


def _before(groups: AbstractSet[str]) -> Condition:
    def is_meant(sentence: Sentence, start: int, end: int) -> bool:
        phrase = sentence.phrase_at(end)
        return (
            phrase is not None and phrase.is_one_of(groups) and sentence.before(start) not in lexicon.CONTEXTS["not_on"]
        )

    return is_meant


def _before_nouns(*nouns: str) -> Condition:
    def is_meant(sentence: Sentence, start: int, end: int) -> bool:
        phrase = sentence.phrase_at(end)
        return phrase is not None and phrase.noun in nouns

    return is_meant


def _by(groups: AbstractSet[str], places: AbstractSet[str] = lexicon.CONTEXTS["places"]) -> Condition:
    """Whether things of these groups do it, and nothing but a place is said of it."""

    def is_meant(sentence: Sentence, start: int, end: int) -> bool:
        if not sentence.joined(start) or (sentence.joined(end) and sentence.words[end] not in places):
            return False
        subject_end = start - (sentence.words[start - 1] in {"is", "are"})
        subject_end -= subject_end < start and sentence.before(subject_end) == "that"
        subject = next((phrase for phrase in sentence.phrases if phrase.end == subject_end), None)
        return subject is not None and subject.is_one_of(groups) and sentence.joined(subject_end)

    return is_meant


def _riding(sentence: Sentence, start: int, end: int) -> bool:
    return _before({"cycle", "animal", "gear"})(sentence, start, end) and _by(lexicon.AGENTS, {"a", "an"})(
        sentence, start, end
    )


def _is_side(sentence: Sentence, start: int, end: int) -> bool:
    if sentence.word(end) in {"of", "side", "hand", "corner"}:
        return True
    return sentence.word(end) in {"", "and", "is", "with"} and sentence.before(start) == "the"


def _is_level(sentence: Sentence, start: int, end: int) -> bool:
    return sentence.word(end) in lexicon.CONTEXTS["levels"] and sentence.before(start) == "the"


def _is_end(sentence: Sentence, start: int, end: int) -> bool:
    return sentence.word(end) == "of" and sentence.before(start) == "the"


def _is_slope(sentence: Sentence, start: int, end: int) -> bool:
    near = range(end + 1, min(end + 4, len(sentence)))
    return sentence.word(end) in lexicon.DETERMINERS and any(
        sentence.words[i] in lexicon.CONTEXTS["slopes"] and sentence.word(i + 1) != "side" for i in near
    )


def _is_outdoors(sentence: Sentence, start: int, end: int) -> bool:
    return sentence.before(start) not in {"the", "from"}


_THING = _before_thing
_RELATIONS = tuple(
    _Relation(tuple(words.split()), tuple(becomes.split(", ")), is_meant)
    for words, becomes, is_meant in (
        # Longer ones first, as each word is taken once.
        ("in front of", "behind", _THING),
        ("on top of", "under, underneath, beneath", _THING),
        ("looking away from", "looking at", _THING),
        ("inside of", "outside of", _THING),
        ("outside of", "inside of", _THING),
        ("far from", "next to, near", _THING),
        ("next to", "far from", _THING),
        ("close to", "far from", _THING),
        ("looking at", "looking away from", _THING),
        ("near", "far from", _THING),
        ("beside", "far from", _THING),
        ("behind", "in front of", _THING),
        ("above", "below, under", _THING),
        ("below", "above, over", _THING),
        ("inside", "outside", _THING),
        ("outside", "inside", _is_outdoors),
        ("underneath", "on top of", _THING),
        ("beneath", "on top of", _THING),
        ("under", "above, on top of", _before({*_SUPPORTS, "shape", "scenery"})),
        ("over", "under, below", _before({*_SUPPORTS, "shape", "scenery"})),
        ("on", "under, underneath", _before(_SUPPORTS)),
        ("at", "under", _before_nouns("table", "desk", "dining table")),
        ("in", "beside, next to", _before({"container", "dish", "luggage"})),
        ("in", "outside", _before({"room"})),
        ("in", "next to", _before({"land"})),
        ("left", "right", _is_side),
        ("right", "left", _is_side),
        ("top", "bottom", _is_level),
        ("bottom", "top", _is_level),
        ("front", "back", _is_end),
        ("back", "front", _is_end),
        ("up", "down", _is_slope),
        ("down", "up", _is_slope),
        ("riding", "standing next to", _riding),
        ("sitting", "standing", _by(lexicon.AGENTS)),
        ("standing", "sitting", _by(lexicon.AGENTS)),
        ("walking", "sitting", _by(lexicon.AGENTS)),
        ("running", "sitting", _by(lexicon.AGENTS)),
        ("laying", "standing", _by(lexicon.AGENTS)),
        ("lying", "standing", _by(lexicon.AGENTS)),
        ("sleeping", "standing", _by(lexicon.AGENTS)),
        ("grazing", "sleeping", _by({"animal"})),
        ("sits", "stands", _by(lexicon.AGENTS)),
        ("stands", "sits", _by(lexicon.AGENTS)),
        ("walks", "sits", _by(lexicon.AGENTS)),
        ("lays", "stands", _by(lexicon.AGENTS)),
        ("lies", "stands", _by(lexicon.AGENTS)),
        ("sleeps", "stands", _by(lexicon.AGENTS)),
        ("sit", "stand", _by(lexicon.AGENTS)),
        ("stand", "sit", _by(lexicon.AGENTS)),
    )
)


def replace_relation(sentence: Sentence, choice: WordChoice) -> Iterator[str]:
    """The opposite relation, as often as the caption has one."""
    taken: set[int] = set()
    for relation in _RELATIONS:
        for start in sentence.spans_of(*relation.words):
            end = start + len(relation.words)
            if not taken.isdisjoint(range(start, end)):
                continue
            if relation.is_meant(sentence, start, end):
                taken.update(range(start, end))
                new = choice.opposite(relation.becomes)
                if new:
                    yield sentence.replaced({(start, end): new})
            elif len(relation.words) > 1:
                taken.update(range(start, end))
