"""All edits of a caption, rule by rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from softrepa_pipeline.mining.structured import lexicon
from softrepa_pipeline.mining.structured.choice import WordChoice
from softrepa_pipeline.mining.structured.numbers import replace_number
from softrepa_pipeline.mining.structured.relations import replace_relation
from softrepa_pipeline.mining.structured.sentence import Sentence
from softrepa_pipeline.mining.structured.swaps import swap_attribute, swap_object
from softrepa_pipeline.mining.structured.words import replace_attribute, replace_colour, replace_object

Rule = Callable[[Sentence, WordChoice], Iterator[str]]
RULES: dict[str, Rule] = {
    "replace_number": replace_number,
    "replace_colour": replace_colour,
    "replace_attribute": replace_attribute,
    "replace_object": replace_object,
    "replace_relation": replace_relation,
    "swap_attribute": swap_attribute,
    "swap_object": swap_object,
}


@dataclass(frozen=True)
class Edit:
    """A caption that is false where the one it was made from is true, and the rule that made it, a key of `RULES`."""

    text: str
    kind: str


class CaptionEditor:
    """Edits captions with the words that the captions of a data set use, so that an edit reads like one of them."""

    def __init__(self, captions: Iterable[str]) -> None:
        self._used = {form for caption in captions for form in _said(caption)}

    def edits(self, caption: str, others: Sequence[str] = ()) -> list[Edit]:
        """At most one edit of each kind, the same whenever it is made, so that no kind outnumbers the others.

        `others` are further captions of the same image: no edit equals one of them, and the colours, numbers and
        things that only they name are not put in, as the image may well show them.
        """
        sentence = Sentence(caption)
        elsewhere = {form for other in others for form in _said(other)} - _said(caption)
        known = {caption, *others}
        made = []
        for kind, rule in RULES.items():
            choice = WordChoice(self._used, elsewhere, f"{kind} of {caption}")
            texts = [text for text in rule(sentence, choice) if text not in known]
            if texts:
                made.append(Edit(choice.shuffled(texts)[0], kind))
                known.add(made[-1].text)
        return made


# The captions of an image are edited one after another, each beside all others.
@lru_cache(maxsize=64)
def _said(caption: str) -> frozenset[str]:
    """The words of a caption, and of nouns that the lexicon knows the singular and the plural."""
    words = set(Sentence(caption).words)
    singulars = {lexicon.SINGULAR_OF.get(word, word) for word in words} & lexicon.GROUPS_OF.keys()
    return frozenset(words | singulars | {lexicon.plural(noun) for noun in singulars})
