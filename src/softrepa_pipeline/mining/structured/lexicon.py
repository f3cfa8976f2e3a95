"""The words of `lexicon.toml`, ready for look-up: what excludes what, what may name the same, and inflections."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

_TABLE: dict[str, Any] = tomllib.loads((files(__package__) / "lexicon.toml").read_text(encoding="utf-8"))


def _list(text: str) -> list[str]:
    return [word for part in text.split(",") if (word := " ".join(part.split()).replace("_", " "))]


def _pairs(text: str) -> dict[str, str]:
    """ "man men, computer_mouse computer_mice" as a mapping."""
    pairs = (part.split() for part in text.split(","))
    return {first.replace("_", " "): second.replace("_", " ") for first, second in pairs}


def _words(text: str) -> list[str]:
    return [word.replace("_", " ") for word in text.split()]


@dataclass(frozen=True)
class _NounSet:
    """Nouns that may name the same thing; `put_in` are those that an edit uses."""

    put_in: tuple[str, ...]
    words: frozenset[str]

    @classmethod
    def read(cls, text: str) -> _NounSet:
        put_in, _, others = text.partition("|")
        return cls(tuple(_words(put_in)), frozenset(_words(put_in + others)))


_SETS = {
    group.replace("_", " "): [_NounSet.read(part) for part in text.split(",")]
    for group, text in _TABLE["nouns"].items()
}
_ALL_NOUNS = [noun for sets in _SETS.values() for one in sets for noun in sorted(one.words)]
GROUPS_OF = {
    noun: [group for group, sets in _SETS.items() if any(noun in one.words for one in sets)] for noun in _ALL_NOUNS
}
# Names of groups.
PEOPLE = frozenset(_list(_TABLE["groups"]["people"]))
AGENTS = PEOPLE | {"animal"}
UNCOUNTED = frozenset(_list(_TABLE["groups"]["uncounted"]))
HOUSEHOLD = frozenset(_list(_TABLE["groups"]["household"]))
GROUP_AFTER = {group.replace("_", " "): frozenset(_list(text)) for group, text in _TABLE["groups"]["after"].items()}

_PLURALS = _pairs(_TABLE["inflection"]["plurals"])


def plural(noun: str) -> str:
    """The plural of a noun of the lexicon."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return _with_s(noun)


def _with_s(word: str) -> str:
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


_NO_PLURALS = _list(_TABLE["inflection"]["no_plurals"])
SINGULAR_OF = {plural(noun): noun for noun in _ALL_NOUNS if plural(noun) not in _NO_PLURALS}
VERBS = {
    **_pairs(_TABLE["inflection"]["irregular_verbs"]),
    **{_with_s(verb): verb for verb in _list(_TABLE["inflection"]["verbs"])},
}
"""The third person singular and its plural."""
PLURAL_VERBS = {plural_form: singular for singular, plural_form in VERBS.items()}


def synonyms(noun: str) -> set[str]:
    """All nouns that may name the same thing, itself among them."""
    return {word for group in GROUPS_OF[noun] for one in _SETS[group] if noun in one.words for word in one.words}


def others_of_kind(noun: str, group: str) -> list[str]:
    """The nouns of a group that cannot name the same thing as `noun`."""
    same = synonyms(noun)
    return [other for one in _SETS[group] for other in one.put_in if other not in same]


_COLORS = {color: _list(text) for color, text in {**_TABLE["colors"], **_TABLE["shades"]}.items()}
COLORS = frozenset(_COLORS)
OTHER_COLORS = {
    color: [other for other in _TABLE["colors"] if other != color and other not in like]
    for color, like in _COLORS.items()
}
"""For each colour those that nobody would call it."""


@dataclass(frozen=True)
class Attribute:
    """What an attribute `becomes`, before which nouns or groups (any where there are none) and before which not."""

    becomes: tuple[str, ...]
    before: frozenset[str]
    not_before: frozenset[str]


ATTRIBUTES = {
    word: Attribute(
        tuple(_list(entry["becomes"])),
        frozenset(_list(entry.get("before", ""))),
        frozenset(_list(entry.get("not_before", ""))),
    )
    for word, entry in _TABLE["attributes"].items()
}
POLES = [{word: pole for pole in text.split(",") for word in pole.split()} for text in _TABLE["poles"].values()]
"""For each kind of attribute its words, each with its pole; words of one pole may be true together."""

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = tuple(str(number) for number in range(1, 11))

_FUNCTION = {name: frozenset(_list(text)) for name, text in _TABLE["function_words"].items()}
DETERMINERS = _FUNCTION["determiners"] | _FUNCTION["plural_determiners"] | {*NUMBERS, *DIGITS}
FUNCTION_WORDS = _FUNCTION["prepositions"] | _FUNCTION["conjunctions"] | _FUNCTION["adverbs"]
PARTICIPLES = _FUNCTION["participles"]
MODIFIERS = _FUNCTION["modifiers"] | COLORS | frozenset(ATTRIBUTES)
SINGULAR_REFERENCES = _FUNCTION["singular_references"]
PLURAL_REFERENCES = _FUNCTION["plural_references"]

_TRAPS = {name: frozenset(_list(text)) for name, text in _TABLE["traps"].items()}
COMPOUNDS = _TRAPS["compounds"]
NOT_COLORED = _TRAPS["not_colored"]
NOT_COUNTED = _TRAPS["not_counted"]
NOT_PARTICIPLES = _TRAPS["not_participles"]
CONTEXTS = {name: frozenset(_list(text)) for name, text in _TABLE["contexts"].items()}
