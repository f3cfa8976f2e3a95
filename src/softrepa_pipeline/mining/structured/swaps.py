"""Edits in which two attributes, or two things, change places."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from softrepa_pipeline.mining.structured import lexicon
from softrepa_pipeline.mining.structured.choice import Choice
from softrepa_pipeline.mining.structured.sentence import Phrase, Sentence
from softrepa_pipeline.mining.structured.words import is_colored

# Relations that do not hold the other way round.
_ONE_WAY = {
    *("on", "in", "inside", "under", "behind", "above", "below", "over", "atop", "beneath", "underneath", "riding"),
    *("holding", "carrying", "pulling", "eating", "petting", "pushing", "driving", "using", "in front of", "on top of"),
    *("left of", "right of", "to the left of", "to the right of", "inside of", "on the back of", "chasing", "feeding"),
    *("underneath", "on the side of", "wearing", "outside of"),
}
_LINKS = {*("sitting", "standing", "laying", "lying", "walking", "sleeping", "parked", "is", "are", "that", "perched")}
_LINKS |= {*("sits", "sit", "stands", "stand", "lies", "lays", "driving", "flying", "resting", "placed", "down", "up")}


def swap_attribute(sentence: Sentence, choice: Choice) -> Iterator[str]:
    """The first two attributes of a kind that two different things have, exchanged."""
    for kind in lexicon.ATTRIBUTE_KINDS:
        described = [(i, _head_of(sentence, i)) for i in range(len(sentence)) if _is_attribute(sentence, i, kind)]
        for (first, its), (second, others) in combinations(described, 2):
            if its != others and its and others and _differ(sentence.words[first], sentence.words[second]):
                places = {(first, first + 1): sentence.said(second, second + 1)}
                yield sentence.replaced({**places, (second, second + 1): sentence.said(first, first + 1)})
                break
    yield from _swapped_numbers(sentence)


def _is_attribute(sentence: Sentence, position: int, kind: set[str]) -> bool:
    word = sentence.words[position]
    if word not in kind or sentence.is_name(position):
        return False
    return is_colored(sentence, position) if word in lexicon.ALL_COLORS else bool(_head_of(sentence, position))


def _differ(first: str, second: str) -> bool:
    if first in lexicon.OTHER_COLORS and second in lexicon.OTHER_COLORS:
        return second in lexicon.OTHER_COLORS[first] or first in lexicon.OTHER_COLORS[second]
    sizes = ({"small", "little", "tiny", "short", "young", "younger"}, {"wooden", "metal", "plastic", "brick", "stone"})
    if first in sizes[1] or second in sizes[1]:
        return first != second
    return (first in sizes[0]) != (second in sizes[0])


def _head_of(sentence: Sentence, position: int) -> str:
    """The noun that an attribute describes, in the singular: the known one, or the first word that is no attribute."""
    if sentence.before(position) in {"is", "are"}:
        back = position - 2 if sentence.before(position - 1) != "that" else position - 3
        return next((p.noun for p in sentence.phrases if p.end - 1 == back), "")
    phrase = next((p for p in sentence.phrases if p.start <= position < p.head), None)
    if phrase:
        return phrase.noun
    end = position + 1
    while sentence.joined(end) and _goes_on(sentence, end):
        end += 1
    word = sentence.words[end] if sentence.joined(end) else ""
    if sentence.is_function(word) or word in lexicon.VERBS or word in lexicon.PLURAL_VERBS:
        return ""
    return lexicon.SINGULAR_OF.get(word, word.removesuffix("s"))


def _goes_on(sentence: Sentence, position: int) -> bool:
    word = sentence.words[position]
    return (
        word in lexicon.ALL_COLORS
        or word in lexicon.ATTRIBUTES
        or (word == "and" and sentence.after(position) in lexicon.ALL_COLORS)
    )


def _swapped_numbers(sentence: Sentence) -> Iterator[str]:
    """ "two dogs and three cats" → "three dogs and two cats"."""
    counted = [p for p in sentence.phrases if p.is_plural and p.determiner in lexicon.NUMBERS]
    for first, second in combinations(counted, 2):
        if first.determiner != second.determiner and first.noun != second.noun:
            places = {(first.start, first.start + 1): str(second.determiner)}
            yield sentence.replaced({**places, (second.start, second.start + 1): str(first.determiner)})
            return


def swap_object(sentence: Sentence, choice: Choice) -> Iterator[str]:
    """Two things exchanged over a relation that does not hold the other way round: "a horse riding a man"."""
    for first, second in zip(sentence.phrases, sentence.phrases[1:], strict=False):
        if _can_swap(sentence, first, second):
            yield sentence.replaced(
                {
                    (first.start, first.end): sentence.said(second.start, second.end),
                    (second.start, second.end): sentence.said(first.start, first.end),
                }
            )


def _can_swap(sentence: Sentence, first: Phrase, second: Phrase) -> bool:
    if not all(_has_own_determiner(phrase) for phrase in (first, second)):
        return False
    if not set(first.groups).isdisjoint(second.groups) and first.noun == second.noun:
        return False
    between = range(first.end, second.start)
    if not between or not all(sentence.joined(i) for i in range(first.end, second.start + 1)):
        return False
    words = sentence.words[first.end : second.start]
    finite = [word for word in sentence.words[first.end :] if word in lexicon.VERBS or word in {"are", "were", "have"}]
    if first.is_plural != second.is_plural and finite:
        return False
    while words and words[0] in _LINKS:
        words = words[1:]
    if second.is_one_of({"outdoors", "room", "ground", "scenery"}):
        return False
    return " ".join(words) in _ONE_WAY and sentence.before(first.start) != "of"


def _has_own_determiner(phrase: Phrase) -> bool:
    fixed = {"a", "an", "the", "some", "several", "many", "one"}
    return (phrase.determiner in fixed or phrase.determiner in lexicon.NUMBERS) or (
        phrase.determiner is None and phrase.is_plural
    )
