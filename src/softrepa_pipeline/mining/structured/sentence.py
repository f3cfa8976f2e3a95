"""A caption as words and the noun phrases in it, and how words are exchanged without breaking it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from softrepa_pipeline.mining.structured import lexicon

# What hyphens and apostrophes join is one word, so that "one-way" holds no number.
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_AN = re.compile(r"(?!uni|use|eu|one|ufo)[aeiou]|hour|honest", re.IGNORECASE)
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

    def is_one_of(self, groups: set[str]) -> bool:
        return not groups.isdisjoint(self.groups)


class Sentence:
    """The words of a caption, in lower case, with their places in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        matches = list(_WORD.finditer(text))
        self.written = [match.group() for match in matches]
        self.words = [word.lower() for word in self.written]
        self.spans = [match.span() for match in matches]

    def __len__(self) -> int:
        return len(self.words)

    def joined(self, position: int) -> bool:
        """Whether nothing but space stands between this word and the one before it."""
        return 0 < position < len(self) and self._gap(position).isspace()

    def _gap(self, position: int) -> str:
        return self.text[self.spans[position - 1][1] : self.spans[position][0]]

    def before(self, position: int) -> str:
        """The word before, or nothing where there is none or punctuation stands between."""
        return self.words[position - 1] if self.joined(position) else ""

    def after(self, position: int) -> str:
        """The word after, or nothing where there is none or punctuation stands between."""
        return self.words[position + 1] if self.joined(position + 1) else ""

    def starts_sentence(self, position: int) -> bool:
        return position == 0 or any(mark in self._gap(position) for mark in ".!?")

    def is_name(self, position: int) -> bool:
        """Capitalised where a common word would not be, or the first of two capitalised words."""
        if not self.written[position][0].isupper():
            return False
        if not self.starts_sentence(position):
            return True
        return self.joined(position + 1) and self.written[position + 1][0].isupper()

    @cached_property
    def phrases(self) -> list[Phrase]:
        """The noun phrases whose nouns the lexicon knows and that are no part of a longer compound."""
        found, position = [], 0
        while position < len(self):
            noun, length = self._noun_at(position)
            phrase = self._phrase(position, position + length, noun) if noun else None
            if phrase:
                found.append(phrase)
            position += max(length, 1)
        return found

    def phrase_with_head(self, position: int) -> Phrase | None:
        return next((phrase for phrase in self.phrases if phrase.head == position), None)

    def _noun_at(self, position: int) -> tuple[str, int]:
        """The longest noun that starts here, in the singular, and its number of words; a trap has words but no noun."""
        for length in range(min(_LONGEST_NOUN, len(self) - position), 0, -1):
            if not all(self.joined(position + k) for k in range(1, length)):
                continue
            form = " ".join(self.words[position : position + length])
            if form in lexicon.COMPOUNDS:
                return "", length
            if form in lexicon.SINGULAR_OF or form in lexicon.GROUPS_OF:
                return form, length
        return "", 0

    def _phrase(self, head: int, end: int, form: str) -> Phrase | None:
        if any(self.is_name(i) for i in range(head, end)) or not self._ends_noun(end):
            return None
        start = self._modified_from(head)
        determiner = self.before(start) if self.joined(start) and self._is_determiner(start - 1) else None
        is_plural = form in lexicon.SINGULAR_OF
        if is_plural and form in lexicon.GROUPS_OF:
            is_plural = determiner not in {"a", "an", "one", "this", "that", "another"}
        begin = start - 1 if determiner else start
        noun = lexicon.SINGULAR_OF[form] if is_plural else form
        return Phrase(begin, head, end, noun, is_plural, determiner)

    def _is_determiner(self, position: int) -> bool:
        word = self.words[position]
        known = {*lexicon.DETERMINERS, *lexicon.PLURAL_DETERMINERS, *lexicon.NUMBERS, *lexicon.DIGITS} - {"of"}
        return word in known or word.endswith(("'s", "’s"))

    def _modified_from(self, head: int) -> int:
        """The first modifier of a noun: known ones, or one unknown word behind a determiner."""
        start = head
        while self.joined(start) and self._is_modifier(start - 1):
            start -= 1
        unknown = start - 1
        if (
            self.joined(start)
            and self.joined(unknown)
            and self._is_determiner(unknown - 1)
            and self._may_modify(unknown)
        ):
            return unknown
        return start

    def _is_modifier(self, position: int) -> bool:
        word = self.words[position]
        if word == "and" and 0 < position < len(self) - 1:
            return {self.words[position - 1], self.words[position + 1]} <= lexicon.ALL_COLORS
        return word in lexicon.ATTRIBUTES or word in lexicon.ALL_COLORS or word in lexicon.MODIFIERS

    def _may_modify(self, position: int) -> bool:
        word = self.words[position]
        return not (
            self._is_determiner(position)
            or self.is_function(word)
            or word in lexicon.GROUPS_OF
            or word in lexicon.SINGULAR_OF
            or word in lexicon.VERBS
            or word in lexicon.PLURAL_VERBS
            or word.endswith("ing")
            or (word.endswith("s") and not word.endswith(("ss", "us")))
        )

    @staticmethod
    def is_function(word: str) -> bool:
        return word in lexicon.PREPOSITIONS or word in lexicon.CONJUNCTIONS or word in lexicon.ADVERBS

    def _ends_noun(self, end: int) -> bool:
        """Whether the word at `end` cannot go on with the compound."""
        if not self.joined(end):
            return True
        word = self.words[end]
        is_participle = word.endswith(("ing", "ed")) and word not in lexicon.NOT_PARTICIPLES
        return (
            is_participle
            or self.is_function(word)
            or self._is_determiner(end)
            or word in lexicon.VERBS
            or word in lexicon.PLURAL_VERBS
            or word in lexicon.PARTICIPLES
        )

    def replaced(self, changes: dict[tuple[int, int], str]) -> str:
        """The caption with words [start, end) exchanged; capitals stay in their places, articles before follow suit."""
        changes = dict(changes)
        taken = {position for start, end in changes for position in range(start, end)}
        for (start, _), new in list(changes.items()):
            if self.before(start) in {"a", "an"} and start - 1 not in taken:
                changes[start - 1, start] = article_for(new)
        parts, place = [], 0
        for (start, end), new in sorted(changes.items()):
            if self.written[start][0].isupper() and self.starts_sentence(start):
                new = new[0].upper() + new[1:]
            parts += [self.text[place : self.spans[start][0]], new]
            place = self.spans[end - 1][1]
        return "".join([*parts, self.text[place:]])

    def said(self, start: int, end: int) -> str:
        """Words [start, end) as written, without the capital of a sentence's start."""
        text = self.text[self.spans[start][0] : self.spans[end - 1][1]]
        return text[0].lower() + text[1:] if self.starts_sentence(start) else text


def article_for(following: str) -> str:
    return "an" if _AN.match(following) else "a"
