"""Edits that put another colour, attribute or object in the place of one."""

from __future__ import annotations

from collections.abc import Iterator

from softrepa_pipeline.mining.structured import lexicon
from softrepa_pipeline.mining.structured.choice import WordChoice
from softrepa_pipeline.mining.structured.sentence import Changes, Phrase, Sentence

_HE_TO_SHE = {"he": "she", "his": "her", "him": "her", "himself": "herself"}
_SHE_TO_HE = {"she": "he", "herself": "himself"}
GENDERED = {*_HE_TO_SHE, *_SHE_TO_HE, "her", "hers"}


def is_colored(sentence: Sentence, position: int) -> bool:
    """Whether the word here is a colour that a thing has, not part of a name, a dish or a kind of photograph."""
    word, after = sentence.words[position], sentence.word(position + 1)
    if word not in lexicon.COLORS or sentence.is_name(position) or after in lexicon.NOT_COLORED:
        return False
    # A person's colour is none that an edit should change.
    phrase = sentence.phrase_around(position)
    of_person = phrase is not None and phrase.is_one_of(lexicon.PEOPLE)
    return not (of_person or _is_monochrome(sentence, position) or _is_fruit(sentence, position))


def _is_monochrome(sentence: Sentence, position: int) -> bool:
    """Whether "black and white" is meant, unless a known thing is said to be so."""
    for start in (position, position - 2):
        if start >= 0 and sentence.words[start : start + 3] in (["black", "and", "white"], ["white", "and", "black"]):
            return sentence.phrase_around(start) is None
    return False


def _is_fruit(sentence: Sentence, position: int) -> bool:
    after = sentence.word(position + 1)
    is_noun = sentence.words[position] == "orange" and (not after or after in lexicon.FUNCTION_WORDS)
    return is_noun and sentence.before(position) not in {"is", "are"}


def replace_colour(sentence: Sentence, choice: WordChoice) -> Iterator[str]:
    """Another colour, none that people would call the old one, nor one that the same thing has besides."""
    for position, word in enumerate(sentence.words):
        if is_colored(sentence, position):
            beside = {sentence.words[i] for i in (position - 2, position + 2) if 0 <= i < len(sentence)}
            new = choice.one_of([color for color in lexicon.OTHER_COLORS[word] if color not in beside])
            if new:
                yield sentence.replaced({(position, position + 1): new})


def replace_attribute(sentence: Sentence, choice: WordChoice) -> Iterator[str]:
    """The opposite size, age, material or state."""
    for position, word in enumerate(sentence.words):
        attribute = lexicon.ATTRIBUTES.get(word)
        if attribute and _describes(sentence, position, attribute):
            new = choice.one_of(attribute.becomes)
            if new:
                yield sentence.replaced({(position, position + 1): new})


def _describes(sentence: Sentence, position: int, attribute: lexicon.Attribute) -> bool:
    """Whether an attribute stands before one of the nouns or groups that it may describe."""
    word, after = sentence.words[position], sentence.word(position + 1)
    is_gendered = word in {"male", "female"} and not GENDERED.isdisjoint(sentence.words)
    if not after or after in lexicon.FUNCTION_WORDS or after.endswith(("ed", "ing")) or is_gendered:
        return False
    if sentence.is_name(position) or sentence.before(position) in {"years", "year", "very", "as", "how"}:
        return False
    phrase = sentence.phrase_around(position)
    described = {after, *([phrase.noun, *phrase.groups] if phrase else [])}
    if after in lexicon.COLORS:
        described.add("color")
    fits = not attribute.before or not attribute.before.isdisjoint(described)
    return fits and attribute.not_before.isdisjoint(described)


def replace_object(sentence: Sentence, choice: WordChoice) -> Iterator[str]:
    """Another thing of the same kind: an animal for an animal, a vehicle for a vehicle."""
    present = {noun for phrase in sentence.phrases for noun in lexicon.synonyms(phrase.noun)}
    for phrase in sentence.phrases:
        pronouns = _pronouns(sentence, phrase)
        if pronouns is None or not _may_be_replaced(sentence, phrase):
            continue
        new = _another(sentence, phrase, present, choice)
        if new:
            form = lexicon.plural(new) if phrase.is_plural else new
            yield sentence.replaced({**pronouns, (phrase.head, phrase.end): form})


def _another(sentence: Sentence, phrase: Phrase, present: set[str], choice: WordChoice) -> str | None:
    """A noun that is not there, of the first group that has one and fits the word before the phrase."""
    before = sentence.before(phrase.start)
    for group in phrase.groups:
        if before in lexicon.GROUP_AFTER.get(group, {before}):
            others = [noun for noun in lexicon.others_of_kind(phrase.noun, group) if noun not in present]
            new = choice.one_of(others)
            if new:
                return new
    return None


def _may_be_replaced(sentence: Sentence, phrase: Phrase) -> bool:
    is_bare = phrase.determiner is None and not phrase.is_plural and phrase.start == phrase.head
    if is_bare and phrase.start > 0 and not phrase.is_one_of(lexicon.UNCOUNTED):
        return False
    is_placed = sentence.before(phrase.start) in lexicon.CONTEXTS["placing"]
    return not sentence.is_compound(phrase) and (is_placed or not phrase.is_one_of(lexicon.HOUSEHOLD))


def _pronouns(sentence: Sentence, phrase: Phrase) -> Changes | None:
    """How pronouns follow a man who becomes a woman, or the reverse; None where they may mean somebody else."""
    places = [i for i, word in enumerate(sentence.words) if word in GENDERED]
    if not places or not phrase.is_one_of({"adult", "child"}):
        return {}
    people = [other for other in sentence.phrases if other.is_one_of(lexicon.PEOPLE)]
    if len(people) > 1 or phrase.is_plural or places[0] < phrase.end:
        return None
    is_male = phrase.noun in {"man", "guy", "gentleman", "boy"}
    changed = {i: _other_pronoun(sentence, i, is_male) for i in places}
    return None if None in changed.values() else {(i, i + 1): new for i, new in changed.items() if new}


def _other_pronoun(sentence: Sentence, position: int, is_male: bool) -> str | None:
    word, after = sentence.words[position], sentence.word(position + 1)
    if is_male:
        return _HE_TO_SHE.get(word)
    if word == "her":
        return "him" if not after or after in lexicon.FUNCTION_WORDS or after in lexicon.DETERMINERS else "his"
    return _SHE_TO_HE.get(word)
