"""What else changes in a sentence when a noun changes its number."""

from __future__ import annotations

from softrepa_pipeline.mining.structured import lexicon
from softrepa_pipeline.mining.structured.sentence import Changes, Phrase, Sentence, article_for, ends_like_plural

_CLAUSE_OPENERS = {"while", "as", "where", "when", "because", "but"}
_RELATIVE = {"that", "which", "who"}
_PLURAL_ONLY = {"are", "were", "have"}


def counted(sentence: Sentence, phrase: Phrase, number: str) -> Changes | None:
    """The changes that make a phrase `number` things instead of one, or one ("one", "a") instead of several.

    None where that is not certain to be grammatical.
    """
    to_plural = number not in {"one", "1", "a"}
    changes = _agreement(sentence, phrase, to_plural) if _may_be_counted(sentence, phrase, to_plural) else None
    if changes is None:
        return None
    noun = lexicon.plural(phrase.noun) if to_plural else phrase.noun
    if number == "a":
        number = article_for(noun if phrase.start + 1 == phrase.head else sentence.words[phrase.start + 1])
    return {**changes, (phrase.start, phrase.start + 1): number, (phrase.head, phrase.end): noun}


def _may_be_counted(sentence: Sentence, phrase: Phrase, to_plural: bool) -> bool:
    before = sentence.before(phrase.start)
    rest = sentence.words[phrase.end :]
    references = lexicon.SINGULAR_REFERENCES if to_plural else lexicon.PLURAL_REFERENCES
    if not references.isdisjoint(rest) or sentence.shares_its_article(phrase):
        return False
    if to_plural:
        is_fit = before not in lexicon.CONTEXTS["no_number_after"] or sentence.before(phrase.start - 1) in {
            "there",
            "here",
        }
        return is_fit and not phrase.is_one_of(lexicon.UNCOUNTED) and not _wears_one(sentence, phrase)
    return before not in lexicon.CONTEXTS["no_one_after"]


def _wears_one(sentence: Sentence, phrase: Phrase) -> bool:
    """Whether one thing without an article is worn, as in "a man in green sweater", which two do not say."""
    position = phrase.end + 1
    if sentence.word(phrase.end) not in {"in", "with", "wearing"}:
        return False
    while sentence.joined(position) and sentence.is_modifier(position):
        position += 1
    word = sentence.word(position)
    is_bare = bool(word) and not (word.endswith("s") or word in lexicon.FUNCTION_WORDS or word in lexicon.DETERMINERS)
    return is_bare and position > phrase.end + 1


def _agreement(sentence: Sentence, phrase: Phrase, to_plural: bool) -> Changes | None:
    """The verbs that change with the noun, or None where they cannot be told."""
    forms = lexicon.VERBS if to_plural else lexicon.PLURAL_VERBS
    before = sentence.before(phrase.start)
    if sentence.before(phrase.start - 1) in {"there", "here"} and before in {*lexicon.VERBS, *_PLURAL_ONLY}:
        return _relative_agreement(
            sentence, phrase, forms, {(phrase.start - 1, phrase.start): forms.get(before, before)}
        )
    if _is_subject(sentence, phrase):
        return _subject_agreement(sentence, phrase, forms)
    is_object = before in lexicon.FUNCTION_WORDS or before.endswith("ing") or before in lexicon.VERBS
    # In "a cat and a dog is", which of them the verb goes with is not certain.
    is_coordinated = before in {"and", "or"} and not lexicon.VERBS.keys().isdisjoint(sentence.words[phrase.end :])
    return _relative_agreement(sentence, phrase, forms, {}) if is_object and not is_coordinated else None


def _relative_agreement(sentence: Sentence, phrase: Phrase, forms: dict[str, str], changes: Changes) -> Changes | None:
    """Changes, and with them the verb of "that is" behind the noun."""
    if sentence.word(phrase.end) not in _RELATIVE:
        return changes
    verb = sentence.word(phrase.end + 1)
    return {**changes, (phrase.end + 1, phrase.end + 2): forms[verb]} if verb in forms else None


def _is_subject(sentence: Sentence, phrase: Phrase) -> bool:
    return not sentence.joined(phrase.start) or sentence.before(phrase.start) in _CLAUSE_OPENERS


def _subject_agreement(sentence: Sentence, phrase: Phrase, forms: dict[str, str]) -> Changes | None:
    clause = _clause(sentence, phrase.end)
    words = [sentence.words[i] for i in clause]
    verbs = [i for i in clause if sentence.words[i] in {*lexicon.VERBS, *_PLURAL_ONLY}]
    if sentence.word(phrase.end) in _RELATIVE:
        return _relative_agreement(sentence, phrase, forms, {}) if len(verbs) == 1 else None
    if not verbs:
        return _bare_agreement(sentence, phrase, forms, clause)
    verb = sentence.words[verbs[0]]
    if len(verbs) > 1 or not _RELATIVE.isdisjoint(words):
        return None
    if not {"and", "or"}.isdisjoint(words[: verbs[0] - phrase.end]):
        return {} if verb in _PLURAL_ONLY else None
    return {(verbs[0], verbs[0] + 1): forms[verb]} if verb in forms else None


def _bare_agreement(sentence: Sentence, phrase: Phrase, forms: dict[str, str], clause: range) -> Changes | None:
    """Without a third person there is no verb, one in the plural ("two dogs sit"), or one that is not known."""
    plural_verbs = [i for i in clause if sentence.words[i] in lexicon.PLURAL_VERBS]
    if plural_verbs:
        is_sole = plural_verbs == [phrase.end] and forms is lexicon.PLURAL_VERBS
        return {(phrase.end, phrase.end + 1): forms[sentence.words[phrase.end]]} if is_sole else None
    return None if any(_may_be_verb(sentence, i) for i in clause) else {}


def _clause(sentence: Sentence, start: int) -> range:
    """From `start` to the next clause."""
    for i in range(start, len(sentence)):
        if sentence.words[i] in _CLAUSE_OPENERS or sentence.starts_sentence(i):
            return range(start, i)
    return range(start, len(sentence))


def _may_be_verb(sentence: Sentence, position: int) -> bool:
    """Whether an unknown word looks like a third person singular behind a noun."""
    word, before = sentence.words[position], sentence.before(position)
    if not before or not ends_like_plural(word) or word in lexicon.SINGULAR_OF:
        return False
    return not (before in lexicon.FUNCTION_WORDS or before.endswith("ing") or before in lexicon.COLORS)
