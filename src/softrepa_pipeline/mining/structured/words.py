"""Edits that put another colour, attribute or object in the place of one."""

from __future__ import annotations

from collections.abc import Iterator

from softrepa_pipeline.mining.structured import lexicon
from softrepa_pipeline.mining.structured.choice import Choice
from softrepa_pipeline.mining.structured.sentence import Phrase, Sentence

_GENDERED = {"he", "she", "his", "her", "hers", "him", "himself", "herself"}
# What happens at or with one thing: a noun of the household is replaced only after one of these.
_PLACING = {
    *(
        "on",
        "in",
        "inside",
        "under",
        "behind",
        "into",
        "onto",
        "atop",
        "beneath",
        "underneath",
        "over",
        "above",
        "below",
    ),
    *("riding", "holding", "eating", "using", "carrying", "swinging", "pulling", "pushing", "opening", "wearing", "at"),
    *("cutting", "of", "from"),
}


def is_colored(sentence: Sentence, position: int) -> bool:
    """Whether the word here is a colour that a thing has, not part of a name, a dish or a kind of photograph."""
    word, after = sentence.words[position], sentence.after(position)
    if word not in lexicon.ALL_COLORS or sentence.is_name(position) or after in lexicon.NOT_COLORED - {"and"}:
        return False
    return not (
        _is_monochrome(sentence, position)
        or _of_person(sentence, position)
        or (word == "orange" and (not after or sentence.is_function(after)) and not _is_predicate(sentence, position))
    )


def _is_monochrome(sentence: Sentence, position: int) -> bool:
    """Whether "black and white" is meant, unless a known thing is said to be so."""
    for start in (position, position - 2):
        if start < 0 or sentence.words[start : start + 3] not in (["black", "and", "white"], ["white", "and", "black"]):
            continue
        return not any(phrase.start <= start and start + 3 <= phrase.head for phrase in sentence.phrases)
    return False


def _of_person(sentence: Sentence, position: int) -> bool:
    return any(p.start <= position < p.head and p.is_one_of(lexicon.PEOPLE) for p in sentence.phrases)


def _is_predicate(sentence: Sentence, position: int) -> bool:
    return sentence.before(position) in {"is", "are"}


def replace_colour(sentence: Sentence, choice: Choice) -> Iterator[str]:
    """Another colour, none that people would call the old one, nor one that the same thing has besides."""
    for position, word in enumerate(sentence.words):
        if not is_colored(sentence, position):
            continue
        beside = {sentence.words[i] for i in (position - 2, position + 2) if 0 <= i < len(sentence)}
        new = choice.one_of([color for color in lexicon.OTHER_COLORS[word] if color not in beside])
        if new:
            yield sentence.replaced({(position, position + 1): new})


def replace_attribute(sentence: Sentence, choice: Choice) -> Iterator[str]:
    """The opposite size, age, material or state."""
    for position, word in enumerate(sentence.words):
        others, where = lexicon.ATTRIBUTES.get(word, ("", ""))
        if not others or sentence.is_name(position) or not _describes(sentence, position, where.split()):
            continue
        new = choice.one_of(others.split())
        if new:
            yield sentence.replaced({(position, position + 1): new})


def _describes(sentence: Sentence, position: int, where: list[str]) -> bool:
    """Whether an attribute stands before one of the nouns (or groups) that it may describe."""
    word = sentence.after(position)
    if not word or sentence.is_function(word) or sentence.before(position) in {"years", "year", "very", "as", "how"}:
        return False
    phrase = next((p for p in sentence.phrases if p.start <= position < p.head), None)
    kinds = {word, *([phrase.noun, *phrase.groups] if phrase else [])}
    if phrase is None:
        kinds.add(sentence.after(position + 1) if word in lexicon.ALL_COLORS else word)
    if word in lexicon.ALL_COLORS:
        kinds.add("colors")
    if any(f"!{kind}" in where for kind in kinds):
        return False
    wanted = [name for name in where if not name.startswith("!")]
    return not wanted or not kinds.isdisjoint(wanted)


def replace_object(sentence: Sentence, choice: Choice) -> Iterator[str]:
    """Another thing of the same kind: an animal for an animal, a vehicle for a vehicle."""
    present = {noun for phrase in sentence.phrases for noun in lexicon.synonyms(phrase.noun)}
    for phrase in sentence.phrases:
        if not _may_be_replaced(sentence, phrase):
            continue
        for group in phrase.groups:
            others = [noun for noun in lexicon.others_of_kind(phrase.noun, group) if noun not in present]
            new = choice.one_of(others)
            if new:
                form = lexicon.plural(new) if phrase.is_plural else new
                yield sentence.replaced({(phrase.head, phrase.end): form})
                break


def _may_be_replaced(sentence: Sentence, phrase: Phrase) -> bool:
    bare = phrase.determiner is None and not phrase.is_plural and phrase.start == phrase.head
    uncounted = phrase.is_one_of(lexicon.UNCOUNTED)
    if bare and phrase.start > 0 and not uncounted:
        return False
    if phrase.is_one_of({"adult", "child"}) and not _GENDERED.isdisjoint(sentence.words):
        return False
    return not phrase.is_one_of(lexicon.HOUSEHOLD) or sentence.before(phrase.start) in _PLACING
