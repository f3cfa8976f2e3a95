from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from softrepa_pipeline.mining import Corpus, Guards, Policy
from softrepa_pipeline.mining.corpus import gather
from softrepa_pipeline.mining.index import NeighborIndex
from softrepa_pipeline.mining.neighbors import Indexes, anchors
from softrepa_pipeline.mining.policy import Anchor, Candidates, Choice, choose

OFF = Guards(max_word_overlap=2, max_text_similarity=2, max_image_similarity=2, max_fit=None)


def at(*cosines: float) -> np.ndarray:
    """Unit vectors of these cosines with the first axis."""
    return np.array([[cosine, (1 - cosine**2) ** 0.5] for cosine in cosines], dtype=np.float32)


def corpus_of(captions: dict[str, float], *, images: np.ndarray | None = None, owners: list[list[str]]) -> Corpus:
    """Captions with their cosines with the first image, which lies on the first axis."""
    texts, own = gather([tuple(each) for each in owners])
    pictures = at(1.0, *[0.0] * (len(owners) - 1)) if images is None else images
    return Corpus([str(row) for row in range(len(own))], own, texts, at(*(captions[text] for text in texts)), pictures)


def chosen(corpus: Corpus, policy: Policy, guards: Guards = OFF, seed: int = 0) -> tuple[list[str], Choice]:
    """What the first image gets when all captions are its neighbours."""
    scores = corpus.scores(0, np.arange(len(corpus.captions)))
    order = np.argsort(-scores)
    images = None if corpus.images is None else NeighborIndex(corpus.images)
    (anchor,) = anchors(corpus, Indexes(NeighborIndex(corpus.texts), images), range(1), guards.max_image_similarity)
    choice = choose(policy, guards, corpus, anchor, Candidates(order, scores[order]), np.random.default_rng(seed))
    return [corpus.captions[row] for row in choice.negatives.rows], choice


COSINES = {"own": 0.9, "paraphrase": 0.88, "hard": 0.7, "easy": 0.1, "unlike": -0.5}


@pytest.fixture
def corpus() -> Corpus:
    return corpus_of(COSINES, owners=[["own"], ["paraphrase"], ["hard"], ["easy"], ["unlike"]])


@pytest.mark.parametrize(
    ("policy", "expected", "rejected"),
    [
        (Policy(relative_margin=0.05), ["hard", "easy", "unlike"], {"own text": 1, "relative_margin": 1}),
        (Policy(relative_margin=0.0), ["paraphrase", "hard", "easy", "unlike"], {"own text": 1}),
        (Policy(relative_margin=None), ["paraphrase", "hard", "easy", "unlike"], {"own text": 1}),
        (Policy(absolute_margin=0.1), ["easy", "unlike"], {"own text": 1, "absolute_margin": 1, "relative_margin": 1}),
        (Policy(max_score=0.5), ["easy", "unlike"], {"own text": 1, "max_score": 2}),
        (
            Policy(relative_margin=None, min_score=0.1),
            ["paraphrase", "hard", "easy"],
            {"own text": 1, "min_score": 1},
        ),
        (Policy(relative_margin=None, num_negatives=2), ["paraphrase", "hard"], {"own text": 1}),
    ],
)
def test_ranks_scores_and_margins(
    corpus: Corpus, policy: Policy, expected: list[str], rejected: dict[str, int]
) -> None:
    captions, choice = chosen(corpus, policy)
    assert captions == expected
    np.testing.assert_allclose(choice.negatives.scores, [COSINES[caption] for caption in captions], atol=1e-6)
    assert {rule: len(found.rows) for rule, found in choice.rejected.items()} == rejected


def test_random_negatives_are_any_that_pass_and_follow_from_the_seed(corpus: Corpus) -> None:
    policy = Policy(relative_margin=None, num_negatives=2, sampling_strategy="random")
    draws = [chosen(corpus, policy, seed=seed)[0] for seed in range(40)]
    assert draws[3] == chosen(corpus, policy, seed=3)[0]
    assert {caption for draw in draws for caption in draw} == {"paraphrase", "hard", "easy", "unlike"}
    for draw in draws:
        assert draw == sorted(draw, key=lambda caption: -COSINES[caption])


def test_the_best_own_caption_sets_the_margin() -> None:
    corpus = corpus_of({"own": 0.5, "better": 0.9, "other": 0.6}, owners=[["own", "better"], ["other"]])
    assert chosen(corpus, Policy(relative_margin=0.3))[0] == ["other"]


def test_a_caption_is_told_by_its_content_not_by_its_row() -> None:
    cosines = {"A dog, running.": 0.9, "a dog running": 0.5, "a cat": 0.4, "A CAT!": 0.3}
    corpus = corpus_of(cosines, owners=[["A dog, running."], ["a dog running"], ["a cat"], ["A CAT!"]])
    captions, choice = chosen(corpus, Policy())
    assert captions == ["a cat"]
    assert {rule: len(found.rows) for rule, found in choice.rejected.items()} == {"own text": 2, "repeated text": 1}


def test_near_duplicate_texts_are_left_out() -> None:
    cosines = {"a man on a wave": 0.9, "on a wave a man": 0.4, "a man on a horse": 0.3, "surfing": 0.895}
    corpus = corpus_of(cosines, owners=[["a man on a wave"], ["on a wave a man"], ["a man on a horse"], ["surfing"]])
    policy = Policy(relative_margin=None)
    assert chosen(corpus, policy, Guards(max_text_similarity=2, max_fit=None))[0] == ["surfing", "a man on a horse"]
    assert chosen(corpus, policy, Guards(0.6, 2, max_fit=None))[0] == ["surfing"]
    captions, choice = chosen(corpus, policy, Guards(2, 0.999, max_fit=None))
    assert captions == ["on a wave a man", "a man on a horse"]
    assert list(choice.rejected) == ["own text", "near-duplicate text"]


def test_captions_of_near_duplicate_images_are_left_out() -> None:
    cosines = {"own": 0.9, "shared": 0.5, "twin's": 0.4, "like the twin's": 0.39, "far": 0.1}
    owners = [["own"], ["twin's", "shared"], ["far", "shared"], ["like the twin's"]]
    corpus = corpus_of(cosines, images=at(1.0, 0.95, 0.2, 0.1), owners=owners)
    assert chosen(corpus, Policy(), Guards(2, 0.99, 0.9, None))[0] == ["far"]
    assert chosen(corpus, Policy(), Guards(2, 0.99995, 0.9, None))[0] == ["like the twin's", "far"]
    assert chosen(corpus, Policy(), Guards(2, 0.99, 0.96, None))[0] == ["shared", "twin's", "like the twin's", "far"]


def test_guards_look_past_what_they_reject() -> None:
    """More near-duplicates than are checked at once do not use up the negatives."""
    words = [f"word{number}" for number in range(200)]
    cosines = {f"twin {word}": 0.5 - number / 1e4 for number, word in enumerate(words)} | {"own": 0.9, "true one": 0.1}
    twins = [caption for caption in cosines if caption.startswith("twin")]
    corpus = corpus_of(cosines, images=at(1.0, 1.0, 0.0), owners=[["own"], twins, ["true one"]])
    captions, choice = chosen(corpus, Policy(num_negatives=1), Guards(max_text_similarity=0.999, max_fit=None))
    assert captions == ["true one"]
    assert len(choice.rejected["near-duplicate image"].rows) == 200


def test_without_images_margins_are_taken_from_the_own_captions() -> None:
    texts, own = gather([("a", "b"), ("c",), ("d",)])
    vectors = at(1.0, 0.9, 0.8, 0.2)
    corpus = Corpus(["0", "1", "2"], own, texts, vectors, None)
    # Each own caption scores 0.9 by the other; c scores its cosine with b, the nearer of them.
    assert corpus.positive(0) == pytest.approx(0.9)
    nearest = float(vectors[1] @ vectors[2])
    assert corpus.scores(0, np.array([2])) == pytest.approx(nearest)
    assert chosen(corpus, Policy(relative_margin=0.0))[0] == ["d"]
    assert chosen(corpus, Policy(relative_margin=None))[0] == ["c", "d"]
    alone = Corpus(["0", "1"], [np.array([0]), np.array([1])], ["a", "b"], at(1.0, 0.9), None)
    assert np.isnan(alone.positive(0))
    assert chosen(alone, Policy())[0] == ["b"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"relative_margin": 1.0}, r"relative_margin .* must be in \[0, 1\), not 1\.0"),
        ({"absolute_margin": -0.1}, "absolute_margin .* not -0.1"),
        ({"range_min": 8, "range_max": 8}, "range_min < range_max, not 8 and 8"),
        ({"num_negatives": 0}, "num_negatives .* at least 1, not 0"),
        ({"sampling_strategy": "best"}, "sampling_strategy .* top or random, not 'best'"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(**values)  # type: ignore[arg-type]


def test_captions_that_fit_the_image_as_true_ones_do_are_left_out() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(200, 32)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = np.concatenate([images, images + 0.05 * rng.normal(size=images.shape).astype(np.float32)])
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    captions = [f"own{row}" for row in range(200)] + [f"as true of {row}" for row in range(200)]
    corpus = Corpus([str(row) for row in range(200)], [np.array([row]) for row in range(200)], captions, texts, images)
    policy, fitting = Policy(num_negatives=400, relative_margin=None), replace(OFF, max_fit=3.0)
    for image in (0, 7):
        found = np.argsort(-images[image] @ texts.T)
        candidates = Candidates(found, (images[image] @ texts.T)[found])
        anchor = Anchor(image, np.empty(0, int))
        free = choose(policy, OFF, corpus, anchor, candidates, rng)
        guarded = choose(policy, fitting, corpus, anchor, candidates, rng)
        assert 200 + image in free.negatives.rows
        assert set(free.negatives.rows) - set(guarded.negatives.rows) == {200 + image}
        assert guarded.rejected["fits the image"].rows.tolist() == [200 + image]
