"""Edits in which two attributes, two numbers or two things change places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, pairwise

from softrepa_pipeline.mining.structured import lexicon
from softrepa_pipeline.mining.structured.agreement import counted
from softrepa_pipeline.mining.structured.choice import WordChoice
from softrepa_pipeline.mining.structured.sentence import Changes, Phrase, Sentence
from softrepa_pipeline.mining.structured.words import GENDERED, is_colored

_ONE = {"a", "an", "one"}
_BEFORE_SUBJECT = {"", "with", "while", "as", "and", "or", "is", "are", "where", "when"}
_NO_PLACES = {"way", "land", "room", "ground", "scenery"}
_CHILDREN = {"boy", "girl", "child", "kid", "baby", "toddler"}


def swap_attribute(sentence: Sentence, choice: WordChoice) -> Iterator[str]:
    """Two attributes of a kind that two different things have, or their two numbers, exchanged."""
    for kind in ({color: color for color in lexicon.COLORS}, *lexicon.POLES):
        described = [(i, _noun_of(sentence, i)) for i in range(len(sentence)) if _is_attribute(sentence, i, kind)]
        for (first, its), (second, others) in combinations(described, 2):
            if its and others and its != others and _may_swap(sentence, first, second, kind):
                yield sentence.replaced(_exchanged(sentence, (first, first + 1), (second, second + 1)))
                break
    yield from _swapped_numbers(sentence)


def _exchanged(sentence: Sentence, first: tuple[int, int], second: tuple[int, int]) -> Changes:
    return {first: sentence.said(*second), second: sentence.said(*first)}


def _is_attribute(sentence: Sentence, position: int, kind: Mapping[str, str]) -> bool:
    word = sentence.words[position]
    if word not in kind or sentence.is_name(position):
        return False
    return is_colored(sentence, position) if word in lexicon.COLORS else True


def _may_swap(sentence: Sentence, first: int, second: int, kind: Mapping[str, str]) -> bool:
    """Whether the attributes exclude each other, and none comes to stand beside itself, as in "black and black"."""
    words = sentence.words
    one, other = words[first], words[second]
    if kind[one] == kind[other] or (one in lexicon.COLORS and other not in lexicon.OTHER_COLORS[one]):
        return False
    kept = [word for i, word in enumerate(words) if abs(i - first) <= 2 and i not in (first, second)]
    kept_beside_second = [word for i, word in enumerate(words) if abs(i - second) <= 2 and i not in (first, second)]
    return other not in kept and one not in kept_beside_second


def _noun_of(sentence: Sentence, position: int) -> str:
    """The noun that an attribute describes: the known one, or the first word that is no attribute, in the singular."""
    if sentence.before(position) in {"is", "are"}:
        end = position - 1 - (sentence.before(position - 1) == "that")
        return next((phrase.noun for phrase in sentence.phrases if phrase.end == end), "")
    phrase = sentence.phrase_around(position)
    if phrase:
        return phrase.noun
    end = position + 1
    while sentence.joined(end) and sentence.is_modifier(end):
        end += 1
    word = sentence.word(end)
    is_verb = word in lexicon.VERBS or word in lexicon.PLURAL_VERBS
    return "" if is_verb or word in lexicon.FUNCTION_WORDS else lexicon.SINGULAR_OF.get(word, word.removesuffix("s"))


def _swapped_numbers(sentence: Sentence) -> Iterator[str]:
    """ "two dogs and three cats" → "three dogs and two cats", "two dogs and a cat" → "a dog and two cats"."""
    counts = _ONE.union(lexicon.NUMBERS)
    numbered = [
        phrase
        for phrase in sentence.phrases
        if phrase.determiner in counts
        and phrase.is_plural != (phrase.determiner in _ONE)
        and not sentence.is_name(phrase.start)
    ]
    for first, second in combinations(numbered, 2):
        changes = None if first.noun == second.noun else _with_numbers_of(sentence, first, second)
        if changes:
            yield sentence.replaced(changes)
            return


def _with_numbers_of(sentence: Sentence, first: Phrase, second: Phrase) -> Changes | None:
    ours, theirs = str(first.determiner), str(second.determiner)
    if first.is_plural and second.is_plural and ours != theirs:
        return _exchanged(sentence, (first.start, first.start + 1), (second.start, second.start + 1))
    if first.is_plural == second.is_plural:
        return None
    ours, theirs = ("a" if number == "an" else number for number in (ours, theirs))
    changes = counted(sentence, first, theirs), counted(sentence, second, ours)
    return None if None in changes else {**(changes[0] or {}), **(changes[1] or {})}


def swap_object(sentence: Sentence, choice: WordChoice) -> Iterator[str]:
    """Two things exchanged over a relation that does not hold the other way round, or who of two does something."""
    for first, second in pairwise(sentence.phrases):
        if _is_one_way(sentence, first, second):
            yield sentence.replaced(_exchanged(sentence, (first.start, first.end), (second.start, second.end)))
    for first, second in combinations(sentence.phrases, 2):
        if _does_alone(sentence, first, second):
            yield sentence.replaced(_exchanged(sentence, (first.head, first.end), (second.head, second.end)))


def _is_one_way(sentence: Sentence, first: Phrase, second: Phrase) -> bool:
    between = range(first.end, second.start + 1)
    has_name = any(sentence.is_name(i) for i in range(first.start, second.end))
    if not (_may_move(first) and _may_move(second)) or has_name or not all(sentence.joined(i) for i in between):
        return False
    words = sentence.words[first.end : second.start]
    while words and words[0] in lexicon.CONTEXTS["links"]:
        words = words[1:]
    relation = " ".join(words)
    return (
        relation in lexicon.CONTEXTS["one_way"]
        and _is_meant(first, second, relation)
        and _stays_grammatical(sentence, first, second)
    )


def _may_move(phrase: Phrase) -> bool:
    fixed = {*_ONE, "the", "some", "several", "many", *lexicon.NUMBERS}
    return phrase.determiner in fixed or (phrase.determiner is None and phrase.is_plural)


def _is_meant(first: Phrase, second: Phrase, relation: str) -> bool:
    # Who sits before a thing has it before them.
    if relation == "in front of" and first.is_one_of(lexicon.AGENTS):
        return False
    if relation == "on" and second.noun in lexicon.CONTEXTS["talked_on"]:
        return False
    return first.noun != second.noun and not second.is_one_of(_NO_PLACES)


def _stays_grammatical(sentence: Sentence, first: Phrase, second: Phrase) -> bool:
    before, rest = sentence.before(first.start), sentence.words[first.end :]
    is_shown = before == "of" and sentence.before(first.start - 1) in lexicon.CONTEXTS["pictures"]
    if not is_shown and before not in _BEFORE_SUBJECT:
        return False
    # "There is the oven" introduces nothing, and a verb would have to change its number.
    has_verb = not {*lexicon.VERBS, "are", "were", "have"}.isdisjoint([before, *rest])
    if (before in {"is", "are"} and second.determiner == "the") or (has_verb and first.is_plural != second.is_plural):
        return False
    is_list = second.end < len(sentence) and "," in sentence.gap(second.end)
    return not (is_list or sentence.shares_its_article(second) or sentence.word(second.end) == "of")


def _does_alone(sentence: Sentence, first: Phrase, second: Phrase) -> bool:
    """Whether something is said of the first of two people or animals alone: "a man holding a kite next to a woman"."""
    kinds = [groups for groups in (lexicon.PEOPLE, {"animal"}) if first.is_one_of(groups) and second.is_one_of(groups)]
    if not kinds or first.is_plural != second.is_plural or not GENDERED.isdisjoint(sentence.words):
        return False
    following, between = sentence.word(first.end), sentence.words[first.end + 1 : second.start]
    is_dressed = following == "in" and not lexicon.COLORS.isdisjoint(between[:3])
    is_equipped = following == "with" and bool(between) and "and" not in between
    does = following in lexicon.CONTEXTS["deeds"] or not {"while", "as"}.isdisjoint([following, *between])
    return (does or is_dressed or is_equipped) and _are_different(first.noun, second.noun)


def _are_different(first: str, second: str) -> bool:
    """Whether two nouns cannot name the same: a player may be a man, and a child a boy."""
    if second in lexicon.synonyms(first):
        return False
    named = lexicon.GROUPS_OF[first] + lexicon.GROUPS_OF[second]
    if "person" in named and not {first, second} & _CHILDREN:
        return False
    return not {first, second} <= _CHILDREN or {first, second} == {"boy", "girl"}
