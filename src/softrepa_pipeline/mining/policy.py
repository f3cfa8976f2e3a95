"""Which neighbours of an image become its negatives: ranks, scores, margins, and guards against true captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from softrepa_pipeline.mining.corpus import Corpus

OWN, REPEATED = "own text", "repeated text"
MAX_SCORE, MIN_SCORE = "max_score", "min_score"
ABSOLUTE, RELATIVE = "absolute_margin", "relative_margin"
TEXT, IMAGE, FIT = "near-duplicate text", "near-duplicate image", "fits the image"
RULES = (OWN, MAX_SCORE, ABSOLUTE, RELATIVE, MIN_SCORE, REPEATED, TEXT, IMAGE, FIT)
_CHECKED_AT_ONCE = 64


@dataclass(frozen=True)
class Policy:
    """Which of an anchor's neighbours are taken, in the terms of sentence-transformers' `mine_hard_negatives`.

    Neighbours of rank `range_min` (from 0) up to `range_max` are looked at. A caption's score is its cosine with the
    anchor image. It is left out unless the score is below `max_score`, below the own caption's less `absolute_margin`,
    below (1 − `relative_margin`) times the own caption's (positive-aware mining, arXiv 2407.15831), and at least
    `min_score`. Of the rest `num_negatives` are kept: the `top` ones, or `random` ones.
    """

    num_negatives: int = 16
    range_min: int = 0
    range_max: int = 1536
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = 0.3
    sampling_strategy: str = "top"

    def __post_init__(self) -> None:
        if self.num_negatives < 1:
            raise ValueError(f"num_negatives of a mining policy must be at least 1, not {self.num_negatives}")
        if not 0 <= self.range_min < self.range_max:
            raise ValueError(
                f"a mining policy needs 0 <= range_min < range_max, not {self.range_min} and {self.range_max}"
            )
        if self.relative_margin is not None and not 0 <= self.relative_margin < 1:
            raise ValueError(f"relative_margin of a mining policy must be in [0, 1), not {self.relative_margin}")
        if self.absolute_margin is not None and self.absolute_margin < 0:
            raise ValueError(f"absolute_margin of a mining policy must not be negative, not {self.absolute_margin}")
        if self.sampling_strategy not in ("top", "random"):
            raise ValueError(f"sampling_strategy of a mining policy is top or random, not {self.sampling_strategy!r}")

    def broken(self, scores: np.ndarray, positive: float) -> Iterator[tuple[str, np.ndarray]]:
        """The rules on scores, with where they are broken. Without a positive score (NaN) margins bind nothing."""
        if self.max_score is not None:
            yield MAX_SCORE, scores >= self.max_score
        if self.absolute_margin is not None:
            yield ABSOLUTE, scores >= positive - self.absolute_margin
        if self.relative_margin is not None:
            yield RELATIVE, scores >= positive - self.relative_margin * abs(positive)
        if self.min_score is not None:
            yield MIN_SCORE, scores < self.min_score


@dataclass(frozen=True)
class Anchor:
    """An image by its row, and the rows of the captions of its near-duplicates."""

    image: int
    akin: np.ndarray


@dataclass(frozen=True)
class Guards:
    """Captions that are left out by what they say or show, whatever their score.

    Near-duplicate text: `max_word_overlap` (shared words of all words, Jaccard) or `max_text_similarity` (cosine) is
    reached with one of the image's own captions. Near-duplicate image: `max_text_similarity` is reached with a caption
    of an image whose cosine with the anchor image reaches `max_image_similarity`. Fits the image: it does so as well as
    captions that are true, by `max_fit` (mining/corpus.py); null judges by margins alone.
    """

    max_word_overlap: float = 0.9
    max_text_similarity: float = 0.95
    max_image_similarity: float = 0.9
    max_fit: float | None = 1.0

    def __post_init__(self) -> None:
        for name in ("max_word_overlap", "max_text_similarity", "max_image_similarity"):
            if not getattr(self, name) > 0:
                raise ValueError(f"mine.guards.{name} must be positive, not {getattr(self, name)}")

    def broken(self, corpus: Corpus, anchor: Anchor, rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The rules on content, with where the captions `rows` break them."""
        own = corpus.own[anchor.image]
        yield TEXT, self._share_words(corpus, own, rows) | self._say_the_same(corpus, own, rows)
        if len(anchor.akin):
            yield IMAGE, self._say_the_same(corpus, anchor.akin, rows)
        if self.max_fit is not None and corpus.images is not None:
            yield FIT, corpus.fits(anchor.image, rows) >= self.max_fit

    def _share_words(self, corpus: Corpus, own: np.ndarray, rows: np.ndarray) -> np.ndarray:
        words, own_words = corpus.words[rows], corpus.words[own]
        shared = (words @ own_words.T).toarray()
        union = words.sum(axis=1)[:, None] + own_words.sum(axis=1)[None, :] - shared
        # Captions without a word, as "!", share nothing; their embeddings decide.
        return np.any((shared >= self.max_word_overlap * union) & (union > 0), axis=1)

    def _say_the_same(self, corpus: Corpus, others: np.ndarray, rows: np.ndarray) -> np.ndarray:
        texts, other_texts = (np.asarray(corpus.texts[part], dtype=np.float32) for part in (rows, others))
        return np.any(texts @ other_texts.T >= self.max_text_similarity, axis=1)


@dataclass(frozen=True)
class Candidates:
    """Neighbours of an anchor, best first: rows of captions and their scores with the anchor, both (candidates,)."""

    rows: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Choice:
    """An anchor's negatives, best first, and by rule the candidates that it rejected."""

    negatives: Candidates
    rejected: dict[str, Candidates] = field(default_factory=dict)


def choose(
    policy: Policy, guards: Guards, corpus: Corpus, anchor: Anchor, found: Candidates, rng: np.random.Generator
) -> Choice:
    """Take an anchor's negatives from its neighbours.

    Each candidate that was looked at and not taken is put down to the first rule of `RULES` that it breaks; guards look
    only until `num_negatives` are found.
    """
    keys = corpus.text_keys[found.rows]
    verdict = np.full(len(found.rows), -1)
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    _mark(verdict, slice(None), OWN, np.isin(keys, corpus.text_keys[corpus.own[anchor.image]]))
    for rule, broken in policy.broken(found.scores, corpus.positive(anchor.image)):
        _mark(verdict, slice(None), rule, broken)
    _mark(verdict, slice(None), REPEATED, ~first)
    open_ = np.flatnonzero(verdict < 0)
    if policy.sampling_strategy == "random":
        open_ = rng.permutation(open_)
    taken = _guarded(guards, corpus, anchor, found.rows, open_, verdict, policy.num_negatives)
    rejected = {rule: verdict == number for number, rule in enumerate(RULES) if (verdict == number).any()}
    return Choice(_at(found, np.sort(taken)), {rule: _at(found, where) for rule, where in rejected.items()})


def _guarded(
    guards: Guards,
    corpus: Corpus,
    anchor: Anchor,
    rows: np.ndarray,
    order: np.ndarray,
    verdict: np.ndarray,
    count: int,
) -> np.ndarray:
    """The first `count` positions of `order` whose captions break no guard; `verdict` learns of those that do."""
    taken = np.empty(0, int)
    for start in range(0, len(order), _CHECKED_AT_ONCE):
        part = order[start : start + _CHECKED_AT_ONCE]
        for rule, broken in guards.broken(corpus, anchor, rows[part]):
            _mark(verdict, part, rule, broken)
        taken = np.concatenate([taken, part[verdict[part] < 0]])
        if len(taken) >= count:
            break
    return taken[:count]


def _mark(verdict: np.ndarray, part: slice | np.ndarray, rule: str, broken: np.ndarray) -> None:
    verdict[part] = np.where((verdict[part] < 0) & broken, RULES.index(rule), verdict[part])


def _at(found: Candidates, where: np.ndarray) -> Candidates:
    return Candidates(found.rows[where], found.scores[where])
