"""A caption as words and the noun phrases in it, and how words are exchanged without breaking it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

from softrepa_pipeline.mining.structured import lexicon

Changes = dict[tuple[int, int], str]
"""Words [start, end) of a sentence and what stands in their place."""

# What hyphens and apostrophes join is one word, so that "one-way" holds no number.
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_AN = re.compile(r"(?!uni|use|eu|one|ufo)[aeiou]|hour|honest", re.IGNORECASE)
_ADJECTIVE_ENDINGS = ("ed", "ful", "ous", "ish", "er", "y")
_LONGEST_NOUN = 3


@dataclass(frozen=True)
class Phrase:
    """Words `start` to `end` (exclusive): a determiner or none, modifiers, and from `head` on the noun itself."""

    start: int
    head: int
    end: int
    noun: str
    is_plural: bool
    determiner: str | None

    @property
    def groups(self) -> list[str]:
        return lexicon.GROUPS_OF[self.noun]

    def is_one_of(self, groups: AbstractSet[str]) -> bool:
        return not groups.isdisjoint(self.groups)


class Sentence:
    """The words of a caption, in lower case, with their places in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        matches = list(_WORD.finditer(text))
        self._written = [match.group() for match in matches]
        self._spans = [match.span() for match in matches]
        self.words = [word.lower() for word in self._written]

    def __len__(self) -> int:
        return len(self.words)

    def gap(self, position: int) -> str:
        """What stands between a word and the one before it."""
        return self.text[self._spans[position - 1][1] : self._spans[position][0]]

    def joined(self, position: int) -> bool:
        """Whether there is a word here, and nothing but space between it and the one before."""
        return 0 < position < len(self) and self.gap(position).isspace()

    def word(self, position: int) -> str:
        """The word here, or nothing where there is none or punctuation stands before it."""
        return self.words[position] if self.joined(position) else ""

    def before(self, position: int) -> str:
        """The word before, or nothing where there is none or punctuation stands between."""
        return self.words[position - 1] if self.joined(position) else ""

    def starts_sentence(self, position: int) -> bool:
        return position == 0 or any(mark in self.gap(position) for mark in ".!?")

    def is_name(self, position: int) -> bool:
        """Capitalised where a common word would not be, or the first of two capitalised words."""
        if not self._written[position][0].isupper():
            return False
        if not self.starts_sentence(position):
            return True
        return self.joined(position + 1) and self._written[position + 1][0].isupper()

    def is_determiner(self, position: int) -> bool:
        word = self.word(position) or self.words[position]
        return word in lexicon.DETERMINERS or word.endswith(("'s", "’s"))

    def is_modifier(self, position: int) -> bool:
        """Whether the lexicon knows the word as one that describes a noun after it; "and" between two colours does."""
        word = self.words[position]
        if word == "and":
            return {self.before(position), self.word(position + 1)} <= lexicon.COLORS
        return word in lexicon.MODIFIERS

    def spans_of(self, *words: str) -> Iterator[int]:
        """Where these words stand one after another, none of them a name."""
        for start in self._places.get(words[0], []):
            rest = range(start + 1, start + len(words))
            stands = all(self.word(i) == words[i - start] for i in rest)
            if stands and not any(self.is_name(i) for i in (start, *rest)):
                yield start

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for position, word in enumerate(self.words):
            places.setdefault(word, []).append(position)
        return places

    @cached_property
    def phrases(self) -> list[Phrase]:
        """The noun phrases whose nouns the lexicon knows and that are no part of a longer compound."""
        found, position = [], 0
        while position < len(self):
            form, length = self._noun_at(position)
            if form and self._ends_noun(position + length):
                found.append(self._phrase(position, position + length, form))
            position += max(length, 1)
        return found

    def phrase_at(self, start: int) -> Phrase | None:
        """The phrase that starts here, with nothing but space before it."""
        return next((phrase for phrase in self.phrases if phrase.start == start and self.joined(start)), None)

    def phrase_around(self, position: int) -> Phrase | None:
        """The phrase that has this word before its noun."""
        return next((phrase for phrase in self.phrases if phrase.start <= position < phrase.head), None)

    def _noun_at(self, position: int) -> tuple[str, int]:
        """The longest noun that starts here and its number of words; a trap or a name has words but is no noun."""
        for length in range(min(_LONGEST_NOUN, len(self) - position), 0, -1):
            rest = range(position + 1, position + length)
            form = " ".join([self.words[position], *(self.word(i) for i in rest)])
            if form in lexicon.COMPOUNDS:
                return "", length
            if form in lexicon.SINGULAR_OF or form in lexicon.GROUPS_OF:
                return ("" if any(self.is_name(i) for i in (position, *rest)) else form), length
        return "", 0

    def _ends_noun(self, end: int) -> bool:
        """Whether the word at `end` cannot go on with the compound, as "stand" does in "a hot dog stand"."""
        word = self.word(end)
        if not word or word in lexicon.PARTICIPLES or self._is_closed(end):
            is_noun = word in lexicon.PLURAL_VERBS.keys() - {"are", "were", "have"}
            return not is_noun or self.words[end - 1] in lexicon.SINGULAR_OF
        return word.endswith(("ing", "ed")) and word not in lexicon.NOT_PARTICIPLES

    def _is_closed(self, position: int) -> bool:
        """Whether the word is a function word, a determiner or a known verb."""
        word = self.words[position]
        is_verb = word in lexicon.VERBS or word in lexicon.PLURAL_VERBS
        return is_verb or word in lexicon.FUNCTION_WORDS or self.is_determiner(position)

    def _phrase(self, head: int, end: int, form: str) -> Phrase:
        start = self._modified_from(head)
        determiner = self.before(start) if self.joined(start) and self.is_determiner(start - 1) else None
        is_plural = form in lexicon.SINGULAR_OF
        if is_plural and form in lexicon.GROUPS_OF:  # sheep
            is_plural = determiner not in {"a", "an", "one", "this", "that", "another"}
        noun = lexicon.SINGULAR_OF[form] if is_plural else form
        return Phrase(start - bool(determiner), head, end, noun, is_plural, determiner)

    def _modified_from(self, head: int) -> int:
        """The first modifier of a noun: known ones, and between a determiner and the noun one unknown word."""
        known = self._after_modifiers(head)
        unknown = known - 1
        if self.joined(known) and self.joined(unknown) and self._may_modify(unknown):
            start = self._after_modifiers(unknown)
            if self.joined(start) and self.is_determiner(start - 1):
                return start
        return known

    def _after_modifiers(self, position: int) -> int:
        """Back over all known modifiers before a word."""
        while self.joined(position) and self.is_modifier(position - 1):
            position -= 1
        return position

    def _may_modify(self, position: int) -> bool:
        word = self.words[position]
        is_noun = word in lexicon.GROUPS_OF or word in lexicon.SINGULAR_OF
        return not (self._is_closed(position) or is_noun or word.endswith("ing") or ends_like_plural(word))

    def is_compound(self, phrase: Phrase) -> bool:
        """Whether the word before the noun may be a noun as well: "a neck tie", not "a fluffy cat"."""
        last = phrase.head - 1
        has_modifier = last >= phrase.start + bool(phrase.determiner)
        return has_modifier and not (self.is_modifier(last) or self.words[last].endswith(_ADJECTIVE_ENDINGS))

    def shares_its_article(self, phrase: Phrase) -> bool:
        """Whether a noun without an article of its own follows, as in "a man and woman" or "a bed, desk and lamp"."""
        if self.word(phrase.end) in {"and", "or"}:
            return self.word(phrase.end + 1) not in lexicon.DETERMINERS
        if phrase.end == len(self) or self.gap(phrase.end).strip() != ",":
            return False
        following = self.words[phrase.end]
        return not (following.endswith("ing") or following in lexicon.DETERMINERS | lexicon.FUNCTION_WORDS)

    def replaced(self, changes: Changes) -> str:
        """The caption with words exchanged; capitals stay in place, and an article before a new word follows suit."""
        changes = {**self._articles(changes), **changes}
        parts, place = [], 0
        for (start, end), new in sorted(changes.items()):
            if self._written[start][0].isupper() and self.starts_sentence(start):
                new = new[0].upper() + new[1:]
            parts += [self.text[place : self._spans[start][0]], new]
            place = self._spans[end - 1][1]
        return "".join([*parts, self.text[place:]])

    def _articles(self, changes: Changes) -> Changes:
        starts = [(start, new) for (start, _), new in changes.items()]
        return {(start - 1, start): article_for(new) for start, new in starts if self.before(start) in {"a", "an"}}

    def said(self, start: int, end: int) -> str:
        """Words [start, end) as written, without the capital of a sentence's start."""
        text = self.text[self._spans[start][0] : self._spans[end - 1][1]]
        return text[0].lower() + text[1:] if self.starts_sentence(start) else text


def article_for(following: str) -> str:
    return "an" if _AN.match(following) else "a"


def ends_like_plural(word: str) -> bool:
    """Whether a word that the lexicon does not know ends as plurals and verbs do."""
    return word.endswith("s") and not word.endswith(("ss", "us"))
