from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from softrepa_pipeline.mining import (
    Captioned,
    ClipEncoder,
    Corpus,
    Embeddings,
    Guards,
    IndexConfig,
    MineConfig,
    Policy,
    mine,
    mine_corpus,
)
from softrepa_pipeline.mining.corpus import gather

CLIP = str(Path(__file__).parents[2] / "data/06_models/embedded/clip")


def random_corpus(num_images: int, *, has_images: bool = True, width: int = 16, seed: int = 0) -> Corpus:
    rng = np.random.default_rng(seed)
    subjects, places = (np.array([f"{kind}{number}" for number in range(40)]) for kind in ("subject", "place"))
    captions_of = [
        tuple(f"a {subjects[i]} in a {places[j]}" for i, j in rng.integers(40, size=(3, 2))) for _ in range(num_images)
    ]
    captions, own = gather(captions_of)
    texts, images = (rng.normal(size=(count, width)).astype(np.float32) for count in (len(captions), num_images))
    texts, images = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (texts, images))
    return Corpus([f"id{row}" for row in range(num_images)], own, captions, texts, images if has_images else None)


def negatives_of(folder: Path) -> list[dict[str, object]]:
    return pq.read_table(folder / "negatives.parquet").to_pylist()


def test_each_kind_of_neighbours_gives_what_brute_force_finds(tmp_path: Path) -> None:
    corpus = random_corpus(300)
    assert corpus.images is not None
    policy = Policy(num_negatives=5, relative_margin=None, range_min=2, range_max=12)
    off = {"image_to_caption": None, "caption_to_caption": None, "image_to_image": None}
    similarity = corpus.images @ corpus.texts.T
    for kind in off:
        mine_corpus(MineConfig("", **{**off, kind: policy}, guards=Guards(max_fit=None)), corpus, tmp_path)
        for row, found in enumerate(negatives_of(tmp_path)):
            own = corpus.own[row]
            if kind == "image_to_caption":
                near = np.argsort(-similarity[row])[2:12]
            elif kind == "caption_to_caption":
                near = np.unique(np.argsort(-corpus.texts[own] @ corpus.texts.T, axis=1)[:, 2:12])
            else:
                order = np.argsort(-corpus.images[row] @ corpus.images.T)
                near = np.unique(np.concatenate([corpus.own[other] for other in order[order != row][2:12]]))
            near = near[~np.isin(near, own)]
            best = near[np.argsort(-similarity[row][near])][:5]
            # The words of these captions never overlap by nine tenths unless they are the same.
            assert found["negatives"] == [corpus.captions[caption] for caption in best], (kind, row)
            np.testing.assert_allclose(found["scores"], similarity[row][best], atol=1e-6)


def test_kinds_are_united_the_hardest_first(tmp_path: Path) -> None:
    corpus, policy = random_corpus(100), Policy(num_negatives=4, relative_margin=None)
    single = []
    for kinds in ({"caption_to_caption": policy}, {"caption_to_caption": None, "image_to_image": policy}):
        mine_corpus(MineConfig("", **kinds), corpus, tmp_path)
        single.append(negatives_of(tmp_path))
    mine_corpus(MineConfig("", caption_to_caption=policy, image_to_image=policy), corpus, tmp_path)
    for one, other, both in zip(*single, negatives_of(tmp_path), strict=True):
        assert set(both["negatives"]) == set(one["negatives"]) | set(other["negatives"])
        assert both["scores"] == sorted(both["scores"], reverse=True)


def test_captions_without_images_are_mined_and_reported(tmp_path: Path) -> None:
    corpus = random_corpus(50, has_images=False)
    loose = Policy(relative_margin=None)
    config = MineConfig("", caption_to_caption=loose, index=IndexConfig(factory="IVF3,Flat"))
    figures = mine_corpus(config, corpus, tmp_path)
    table = negatives_of(tmp_path)
    assert figures["negatives_per_image"] == {"mean": 16.0, "min": 16, "max": 16}
    assert figures["indexes"]["captions"]["factory"] == "IVF3,Flat"
    assert not any(set(row["negatives"]) & set(row["captions"]) for row in table)
    assert "<img" not in (tmp_path / "report.html").read_text()


def test_the_report_counts_every_candidate_and_trusts_no_caption(tmp_path: Path) -> None:
    corpus = random_corpus(40)
    attack = '<script>alert("{{ 7 * 7 }}")</script>'
    corpus = Corpus(
        corpus.image_ids, corpus.own, [f"{attack} {text}" for text in corpus.captions], corpus.texts, corpus.images
    )
    figures = mine_corpus(MineConfig(""), corpus, tmp_path, dict.fromkeys(range(40), "data:image/png;base64,AAAA"))
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#34;{{ 7 * 7 }}&#34;)" in page
    assert len(re.findall('<div class="anchor', page)) == 12
    kept = sum(len(row["negatives"]) for row in negatives_of(tmp_path))
    assert figures["num_looked_at"] == kept + sum(figures["rejected"].values())
    assert figures["rejected"]["own text"] == sum(len(own) for own in corpus.own)
    assert figures["scores"]["negative"]["count"] == kept
    assert not list(tmp_path.glob("*.partial"))


def test_pairs_are_embedded_and_mined_with_and_without_images(tmp_path: Path) -> None:
    captions = ["a red circle", "two blue squares", "a green triangle", "one yellow disc"]
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in captions]
    config = MineConfig(CLIP, caption_to_caption=Policy(relative_margin=None), min_fit=None)
    keys = [f"{row:032x}" for row in range(4)]
    pairs = [Captioned(key, (text,)) for key, text in zip(keys, captions, strict=True)]
    embeddings = Embeddings(CLIP, tmp_path / "clip", lambda places: (images[place] for place in places))
    figures = mine(config, pairs, embeddings, tmp_path / "mined")
    assert figures["num_images"] == 4
    assert (tmp_path / "mined/report.html").read_text().count("<img") == 4
    for row, found in enumerate(negatives_of(tmp_path / "mined")):
        assert set(found["negatives"]) <= set(captions) - {captions[row]}
    assert mine(config, pairs, embeddings, tmp_path / "texts", has_images=False)["num_images"] == 4
    assert "<img" not in (tmp_path / "texts/report.html").read_text()


def test_missing_clip_folder_and_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no CLIP folder at .*; set clip\.model"):
        ClipEncoder(str(tmp_path / "clip"))
    with pytest.raises(ValueError, match=r"mine needs a policy: set one of mine\.caption_to_caption"):
        MineConfig("clip", caption_to_caption=None)
    single = Corpus(["0"], [np.array([0])], ["only"], np.ones((1, 1), np.float32), None)
    with pytest.raises(ValueError, match="at least two distinct captions, but the data set has 1"):
        mine_corpus(MineConfig("clip"), single, tmp_path)
