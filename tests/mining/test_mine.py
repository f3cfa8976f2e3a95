from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from softrepa_pipeline.mining import ClipEncoder, MineConfig
from softrepa_pipeline.mining.index import nearest
from softrepa_pipeline.mining.mine import _write, choose_negatives

CAPTIONS = ["own", "paraphrase", "hard", "easy"]
IMAGE = np.array([[1.0, 0.0]], dtype=np.float32)
# Similarities to the image: 0.9, 0.88 (within 5 % of the own caption's), 0.7, 0.1.
TEXTS = np.array([[s, (1 - s * s) ** 0.5] for s in (0.9, 0.88, 0.7, 0.1)], dtype=np.float32)


def test_hardest_captions_below_the_margin_come_first() -> None:
    (chosen,) = choose_negatives(MineConfig("clip", relative_margin=0.05), IMAGE, TEXTS, CAPTIONS, [("own",)])
    assert [caption for caption, _ in chosen] == ["hard", "easy"]
    assert chosen[0][1] == pytest.approx(0.7, abs=1e-6)


def test_without_a_margin_paraphrases_are_taken_but_never_an_own_caption() -> None:
    config = MineConfig("clip", relative_margin=0.0, num_candidates=2)
    (chosen,) = choose_negatives(config, IMAGE, TEXTS, CAPTIONS, [("own",)])
    assert [caption for caption, _ in chosen] == ["paraphrase", "hard"]
    (chosen,) = choose_negatives(config, IMAGE, TEXTS, CAPTIONS, [("own", "paraphrase")])
    assert [caption for caption, _ in chosen] == ["hard", "easy"]


def test_where_all_near_captions_may_be_true_the_farthest_is_taken() -> None:
    config = MineConfig("clip", relative_margin=0.05, search_depth=2)
    (chosen,) = choose_negatives(config, IMAGE, TEXTS, CAPTIONS, [("own",)])
    assert [caption for caption, _ in chosen] == ["easy"]


def test_nearest_equals_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(7, 8)).astype(np.float32)
    scores, rows = (np.stack(part) for part in zip(*nearest(vectors, queries, 5), strict=True))
    expected = np.sort(queries @ vectors.T, axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(queries @ vectors.T, rows, 1), expected, rtol=1e-5)


def test_missing_clip_folder_and_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no CLIP folder at .*; set clip\.model"):
        ClipEncoder(str(tmp_path / "clip"))
    with pytest.raises(ValueError, match=r"mine\.relative_margin must be in \[0, 1\)"):
        MineConfig("clip", relative_margin=1.0)


def test_edits_are_written_beside_their_kinds_and_none_is_a_caption_of_its_image(tmp_path: Path) -> None:
    captions_of = [("two red cups", "three red cups", "a man"), ("four blue cups",)]
    _write(tmp_path, ["a", "b"], captions_of, [[("a dog", 0.2)], [("a dog", 0.1)]])
    table = pq.read_table(tmp_path / "negatives.parquet").to_pydict()
    assert table["edits"][0][:2] == [["two blue cups"], ["four red cups", "three blue cups"]]
    assert table["edit_kinds"][0] == [["replace_colour"], ["replace_number", "replace_colour"], []]
