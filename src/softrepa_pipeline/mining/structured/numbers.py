"""Edits that change how many there are, and the inflections that this asks for."""

from __future__ import annotations

from collections.abc import Iterator

from softrepa_pipeline.mining.structured import lexicon
from softrepa_pipeline.mining.structured.choice import Choice
from softrepa_pipeline.mining.structured.sentence import Phrase, Sentence

Changes = dict[tuple[int, int], str]

_CLAUSE_OPENERS = {"while", "as", "where", "when", "because", "but"}
# Before these one cannot simply say "two": "half a pizza", "such a dog", "like a bear", "it is a cat".
_NOT_BEFORE_ONE = {*("such", "half", "quite", "many", "like", "as", "per", "each", "is", "was", "than", "into", "what")}
_NOT_BEFORE_NUMBER = {
    "the",
    "these",
    "those",
    "all",
    "other",
    "of",
    "number",
    "size",
    "at",
    "his",
    "her",
    "their",
    "its",
}


def replace_number(sentence: Sentence, choice: Choice) -> Iterator[str]:
    """Another number of things: "two dogs are" → "three dogs are" or "one dog is", "a dog is" → "two dogs are"."""
    for phrase in sentence.phrases:
        if phrase.determiner in {"a", "an", "one"} and not phrase.is_plural:
            new = choice.one_of(["two"])
            changes = new and _counted(sentence, phrase, new)
            if changes:
                yield sentence.replaced(changes)
    for position, word in enumerate(sentence.words):
        if word in lexicon.NUMBERS[1:] or word in lexicon.DIGITS[1:]:
            yield from _other_number(sentence, position, choice)


def _other_number(sentence: Sentence, position: int, choice: Choice) -> Iterator[str]:
    if sentence.is_name(position) or not _counts_things(sentence, position):
        return
    scale = lexicon.NUMBERS if sentence.words[position] in lexicon.NUMBERS else lexicon.DIGITS
    new = choice.one_of(_other_numbers(scale, scale.index(sentence.words[position]) + 1))
    if new == scale[0]:
        phrase = next((p for p in sentence.phrases if p.start == position and p.is_plural), None)
        changes = phrase and _counted(sentence, phrase, new)
        if changes:
            yield sentence.replaced(changes)
            return
        new = choice.one_of([scale[2]])
    if new:
        yield sentence.replaced({(position, position + 1): new})


def _other_numbers(scale: tuple[str, ...], number: int) -> list[str]:
    """One more or fewer up to four; above that half or about twice, as captioners do not count large groups exactly."""
    others = (number - 1, number + 1) if number <= 4 else (number // 2, number + number // 2)
    return [scale[other - 1] for other in others if 1 <= other <= len(scale)]


def _counts_things(sentence: Sentence, position: int) -> bool:
    """Whether a plural follows, at most two modifiers away."""
    for following in range(position + 1, position + 4):
        word = sentence.words[following] if sentence.joined(following) else ""
        if not word or sentence.is_function(word) or word in lexicon.NOT_COUNTED:
            return False
        if word in lexicon.SINGULAR_OF or (word.endswith("s") and not word.endswith(("ss", "us"))):
            return True
    return False


def _counted(sentence: Sentence, phrase: Phrase, number: str) -> Changes | None:
    """What changes where the things of a phrase become `number`, or nothing where the grammar is not certain."""
    to_plural = not phrase.is_plural
    before = sentence.before(phrase.start)
    if to_plural and (before in _NOT_BEFORE_ONE or phrase.is_one_of(lexicon.UNCOUNTED)):
        return None
    if not to_plural and before in _NOT_BEFORE_NUMBER:
        return None
    agreement = _agreement(sentence, phrase, to_plural)
    if agreement is None:
        return None
    noun = lexicon.plural(phrase.noun) if to_plural else phrase.noun
    return {
        **agreement,
        (phrase.start, phrase.start + 1): number,
        (phrase.head, phrase.end): noun,
    }


def _agreement(sentence: Sentence, phrase: Phrase, to_plural: bool) -> Changes | None:
    """How verbs follow a noun that changes its number; None where words refer to it that would have to change too."""
    rest = range(phrase.end, len(sentence))
    pronouns = lexicon.SINGULAR_PRONOUNS if to_plural else lexicon.PLURAL_PRONOUNS
    if any(sentence.words[i] in pronouns for i in rest) or _shares_its_article(sentence, phrase):
        return None
    before, after = sentence.before(phrase.start), sentence.after(phrase.end - 1)
    forms = lexicon.VERBS if to_plural else lexicon.PLURAL_VERBS
    changes: Changes = {}
    if before in forms and sentence.before(phrase.start - 1) in {"there", "here"}:
        changes[phrase.start - 1, phrase.start] = forms[before]
    elif before in lexicon.VERBS and sentence.before(phrase.start - 1) == "":
        return None
    if after == "that" and phrase.end + 1 < len(sentence) and sentence.words[phrase.end + 1] in forms:
        changes[phrase.end + 1, phrase.end + 2] = forms[sentence.words[phrase.end + 1]]
        return changes if not _is_subject(sentence, phrase) or not _verbs(sentence, phrase.end + 2) else None
    if after in {"that", "who", "which"}:
        return None
    if not _is_subject(sentence, phrase):
        if not before or sentence.is_function(before) or before.endswith("ing") or before in lexicon.VERBS or changes:
            is_coordinated = before in {"and", "or"} and any(sentence.words[i] in lexicon.VERBS for i in rest)
            return None if is_coordinated else changes
        return None
    return _subject_agreement(sentence, phrase, forms, changes)


def _subject_agreement(sentence: Sentence, phrase: Phrase, forms: dict[str, str], changes: Changes) -> Changes | None:
    clause = _clause(sentence, phrase.end)
    verbs = [i for i in clause if sentence.words[i] in lexicon.VERBS or sentence.words[i] in {"are", "were", "have"}]
    is_coordinated = any(sentence.words[i] in {"and", "or"} for i in clause[: verbs[0] - phrase.end if verbs else None])
    if not verbs:
        verb_like = [i for i in clause if _may_be_verb(sentence, i)]
        base = sentence.after(phrase.end - 1) in lexicon.PLURAL_VERBS
        if base and forms is lexicon.PLURAL_VERBS:
            return {**changes, (phrase.end, phrase.end + 1): forms[sentence.words[phrase.end]]}
        return None if verb_like or base else changes
    if len(verbs) > 1:
        return None
    verb = sentence.words[verbs[0]]
    if is_coordinated:
        return changes if verb in {"are", "were", "have"} else None
    if any(sentence.words[i] in {"that", "which", "who"} for i in clause) or verb not in forms:
        return None
    return {**changes, (verbs[0], verbs[0] + 1): forms[verb]}


def _is_subject(sentence: Sentence, phrase: Phrase) -> bool:
    return not sentence.joined(phrase.start) or sentence.before(phrase.start) in _CLAUSE_OPENERS


def _clause(sentence: Sentence, start: int) -> range:
    """From `start` to the next clause."""
    for i in range(start, len(sentence)):
        if sentence.words[i] in _CLAUSE_OPENERS or sentence.starts_sentence(i):
            return range(start, i)
    return range(start, len(sentence))


def _verbs(sentence: Sentence, start: int) -> list[int]:
    return [i for i in range(start, len(sentence)) if sentence.words[i] in lexicon.VERBS]


def _may_be_verb(sentence: Sentence, position: int) -> bool:
    """Whether an unknown word looks like a third person singular behind a noun."""
    word, before = sentence.words[position], sentence.before(position)
    if not word.endswith("s") or word.endswith(("ss", "us")) or word in lexicon.SINGULAR_OF or not before:
        return False
    return not (sentence.is_function(before) or before.endswith("ing") or before in lexicon.ALL_COLORS)


def _shares_its_article(sentence: Sentence, phrase: Phrase) -> bool:
    """Whether a noun without an article of its own follows, as in "a man and woman"."""
    if sentence.after(phrase.end - 1) not in {"and", "or"}:
        return False
    following = sentence.after(phrase.end)
    return following not in lexicon.DETERMINERS and following not in lexicon.NUMBERS
