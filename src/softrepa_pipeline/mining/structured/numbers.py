"""Edits that change how many there are."""

from __future__ import annotations

from collections.abc import Iterator

from softrepa_pipeline.mining.structured import lexicon
from softrepa_pipeline.mining.structured.agreement import counted
from softrepa_pipeline.mining.structured.choice import WordChoice
from softrepa_pipeline.mining.structured.sentence import Sentence, ends_like_plural

_SCALES = (lexicon.NUMBERS, lexicon.DIGITS)


def replace_number(sentence: Sentence, choice: WordChoice) -> Iterator[str]:
    """Another number of things: "two dogs are" → "three dogs are" or "one dog is", "a dog is" → "two dogs are".

    Several never become "a", which is true of them as well.
    """
    for phrase in sentence.phrases:
        if phrase.determiner in {"a", "an", "one"} and not phrase.is_plural:
            new = choice.one_of(["two"])
            changes = counted(sentence, phrase, new) if new else None
            if changes:
                yield sentence.replaced(changes)
    for position in range(len(sentence)):
        if _counts_things(sentence, position):
            yield from _other_number(sentence, position, choice)


def _counts_things(sentence: Sentence, position: int) -> bool:
    """Whether the word is a number of at least two and a plural follows, at most two modifiers away."""
    word = sentence.words[position]
    if not any(word in scale[1:] for scale in _SCALES) or sentence.is_name(position):
        return False
    for following in range(position + 1, position + 4):
        word = sentence.word(following)
        if not word or word in lexicon.FUNCTION_WORDS or word in lexicon.NOT_COUNTED:
            return False
        if word in lexicon.SINGULAR_OF or ends_like_plural(word):
            return True
    return False


def _other_number(sentence: Sentence, position: int, choice: WordChoice) -> Iterator[str]:
    word = sentence.words[position]
    scale = next(scale for scale in _SCALES if word in scale)
    options = _other_numbers(scale, scale.index(word) + 1)
    new = choice.one_of(options)
    if new == scale[0]:
        phrase = next((phrase for phrase in sentence.phrases if phrase.start == position and phrase.is_plural), None)
        changes = counted(sentence, phrase, new) if phrase else None
        if changes:
            yield sentence.replaced(changes)
            return
        new = choice.one_of(options[1:])
    if new:
        yield sentence.replaced({(position, position + 1): new})


def _other_numbers(scale: tuple[str, ...], number: int) -> list[str]:
    """One fewer or more up to four; above that half as many or as many again: nobody counts large groups exactly."""
    others = (number - 1, number + 1) if number <= 4 else (number // 2, number + number // 2)
    return [scale[other - 1] for other in others if other <= len(scale)]
