"""Edits that turn a relation around: sides, above and below, before and behind, on and under, sitting and standing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from softrepa_pipeline.mining.structured import lexicon
from softrepa_pipeline.mining.structured.choice import Choice
from softrepa_pipeline.mining.structured.sentence import Phrase, Sentence

_FURNITURE = {"furniture", "vehicle", "bathroom", "appliance", "luggage", "gear", "screen"}
_SUPPORTS = {*_FURNITURE, "animal"}
_SLOPES = {"hill", "stairs", "slope", "ramp", "mountain", "steps", "staircase", "escalator", "stairway", "ladder"}
_LEVELS = {"shelf", "bunk", "row", "half", "left", "right", "part", "step", "corner", "of"}
_NOT_ON = {"based", "working", "focused", "put", "playing", "talking", "work", "down", "up", "turned", "game", "back"}
_STILL_PLACES = {"on", "in", "next", "near", "by", "beside", "behind", "under", "at", "with", "together", "outside"}


@dataclass(frozen=True)
class _Relation:
    """Words and what they become, where `holds(sentence, start, end)` says that they are meant so."""

    words: tuple[str, ...]
    others: tuple[str, ...]
    holds: Callable[[Sentence, int, int], bool]


def _phrase_after(sentence: Sentence, end: int) -> Phrase | None:
    return next((p for p in sentence.phrases if p.start == end and sentence.joined(end)), None)


def _before_things(sentence: Sentence, start: int, end: int) -> bool:
    """Whether a determiner follows, so that the words are a preposition."""
    following = sentence.words[end] if sentence.joined(end) else ""
    return bool(following) and (
        following in lexicon.DETERMINERS - {"that"}
        or following in {*lexicon.NUMBERS, *lexicon.PLURAL_DETERMINERS}
        or _phrase_after(sentence, end) is not None
    )


def _before(groups: set[str]) -> Callable[[Sentence, int, int], bool]:
    def holds(sentence: Sentence, start: int, end: int) -> bool:
        phrase = _phrase_after(sentence, end)
        return phrase is not None and phrase.is_one_of(groups) and sentence.before(start) not in _NOT_ON

    return holds


def _is_side(sentence: Sentence, start: int, end: int) -> bool:
    following = sentence.words[end] if sentence.joined(end) else ""
    if following in {"of", "side", "hand", "corner"}:
        return True
    ends = not following or following in {"and", "is", "with"}
    return ends and sentence.before(start) == "the"


def _is_level(sentence: Sentence, start: int, end: int) -> bool:
    following = sentence.words[end] if sentence.joined(end) else ""
    return following in _LEVELS and sentence.before(start) == "the"


def _is_slope(sentence: Sentence, start: int, end: int) -> bool:
    if not sentence.joined(end) or sentence.words[end] not in lexicon.DETERMINERS:
        return False
    return any(
        sentence.words[i] in _SLOPES and not sentence.after(i).startswith(("side", "top"))
        for i in range(end + 1, min(end + 4, len(sentence)))
    )


def _by_agent(sentence: Sentence, start: int, end: int) -> bool:
    """Whether people or animals do it, and stay in their place."""
    following = sentence.words[end] if sentence.joined(end) else ""
    subject = sentence.before(start)
    agent = next((p for p in sentence.phrases if start - 2 <= p.end - 1 < start), None)
    if agent is None or not agent.is_one_of(lexicon.AGENTS):
        return False
    linked = agent.end == start or (agent.end == start - 1 and subject in {"is", "are", "that"})
    return linked and (not following or following in _STILL_PLACES) and sentence.joined(start)


def _relation(words: str, others: str, holds: Callable[[Sentence, int, int], bool]) -> _Relation:
    return _Relation(tuple(words.split()), tuple(others.split(",")), holds)


# Longer ones first: the words of a match are taken.
_RELATIONS = (
    _relation("in front of", "behind", _before_things),
    _relation("on top of", "under,underneath,beneath", _before_things),
    _relation("far from", "next to,near", _before_things),
    _relation("next to", "far from", _before_things),
    _relation("close to", "far from", _before_things),
    _relation("inside of", "outside of", _before_things),
    _relation("outside of", "inside of", _before_things),
    _relation("near", "far from", _before_things),
    _relation("beside", "far from", _before_things),
    _relation("behind", "in front of", _before_things),
    _relation("above", "below,under", _before_things),
    _relation("below", "above,over", _before_things),
    _relation("inside", "outside", _before_things),
    _relation("outside", "inside", lambda s, start, end: s.before(start) not in {"the", "from"}),
    _relation("underneath", "on top of", _before_things),
    _relation("beneath", "on top of", _before_things),
    _relation("under", "above,on top of", _before({*_SUPPORTS, "shape"})),
    _relation("over", "under,below", _before({*_SUPPORTS, "shape"})),
    _relation("on", "under,underneath", _before(_SUPPORTS)),
    _relation("in", "beside,next to", _before({"container", "dish", "luggage"})),
    _relation("left", "right", _is_side),
    _relation("right", "left", _is_side),
    _relation("top", "bottom", _is_level),
    _relation("bottom", "top", _is_level),
    _relation("front", "back", lambda s, start, end: s.before(start) == "the" and s.after(start) == "of"),
    _relation("back", "front", lambda s, start, end: s.before(start) == "the" and s.after(start) == "of"),
    _relation("up", "down", _is_slope),
    _relation("down", "up", _is_slope),
    _relation("sitting", "standing,lying,walking", _by_agent),
    _relation("standing", "sitting,lying", _by_agent),
    _relation("walking", "sitting,standing", _by_agent),
    _relation("laying", "standing,walking", _by_agent),
    _relation("lying", "standing,walking", _by_agent),
    _relation("sleeping", "standing,walking", _by_agent),
)


def replace_relation(sentence: Sentence, choice: Choice) -> Iterator[str]:
    """The opposite relation, as often as the caption has one."""
    taken: set[int] = set()
    for relation in _RELATIONS:
        length = len(relation.words)
        for start in range(len(sentence) - length + 1):
            span = range(start, start + length)
            if tuple(sentence.words[start : start + length]) != relation.words or not taken.isdisjoint(span):
                continue
            if any(sentence.is_name(i) for i in span) or not all(sentence.joined(i) for i in span[1:]):
                continue
            taken.update(span)
            if relation.holds(sentence, start, start + length):
                new = choice.drawn(relation.others)
                if new:
                    yield sentence.replaced({(start, start + length): new})
