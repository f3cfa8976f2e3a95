"""Captions that were put to the wrong image, on the embedded world and by its own CLIP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from softrepa_pipeline.ingestion import load_rgb
from softrepa_pipeline.mining import ClipEncoder, Corpus
from softrepa_pipeline.mining.corpus import gather
from softrepa_pipeline.mining.screen import without_misfits
from softrepa_pipeline.shapes.dataset import WorldConfig, write_world

CLIP = str(Path(__file__).parents[2] / "data/06_models/embedded/clip")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("world")
    write_world(WorldConfig(train_images=768, validation_prompts_per_task=2, test_prompts_per_task=2), folder)
    table = pq.read_table(folder / "train/pairs.parquet").to_pydict()
    captions, own = gather(map(tuple, table["captions"]))
    clip = ClipEncoder(CLIP)
    pictures = [load_rgb(image) for image in table["image"]]
    images = np.concatenate([clip.images(pictures[start : start + 128]) for start in range(0, len(pictures), 128)])
    ids = [json.loads(claim)["task"] + str(row) for row, claim in enumerate(table["claim"])]
    return Corpus(ids, own, captions, clip.captions(captions), images)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_most_planted_mismatches_are_found_and_few_good_captions_lost(corpus: Corpus, share: float) -> None:
    rng = np.random.default_rng(0)
    planted = rng.choice(len(corpus.own), round(share * len(corpus.own)), replace=False)
    own = list(corpus.own)
    for row, other in zip(planted, np.roll(planted, 1), strict=True):
        own[row] = corpus.own[other]
    kept, misfits = without_misfits(replace(corpus, own=own), 1.0)
    lost, caught = 0, 0
    wrong = {corpus.image_ids[row] for row in planted}
    for misfit in misfits:
        caught += misfit.image_id in wrong
        lost += misfit.image_id not in wrong
    num_wrong = sum(len(own[row]) for row in planted)
    # Some planted captions are true of their new image by chance: the world has few things in it.
    assert caught >= 0.65 * num_wrong
    assert lost <= 0.02 * sum(map(len, own))
    assert sum(map(len, kept.own)) == sum(map(len, own)) - len(misfits)
    assert len(kept.image_ids) == len(kept.own) == len(kept.images)
    assert all(len(rows) for rows in kept.own)


def test_a_clip_that_knows_nothing_of_the_images_takes_nothing_out(
    corpus: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    strange = replace(corpus, images=corpus.images[rng.permutation(len(corpus.images))])
    kept, misfits = without_misfits(strange, 1.0)
    assert misfits == []
    assert kept is strange
    assert "none is taken out. Set clip.model to one that knows such images" in caplog.text


def test_captions_without_images_cannot_be_judged(corpus: Corpus) -> None:
    texts = replace(corpus, images=None)
    assert without_misfits(texts, 1.0) == (texts, [])
