"""What studies are made of: their points, variants of the data, the page."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scene_truth import is_true_of

from softrepa_pipeline.shapes.dataset import WorldConfig, write_world
from softrepa_pipeline.shapes.verifier import Sight, look
from softrepa_pipeline.studies import (
    DataChange,
    Measured,
    Point,
    kept_by_digest,
    read_study,
    write_measured,
    write_page,
    write_variant,
)
from softrepa_pipeline.studies.data import POISONS
from softrepa_pipeline.studies.page import READING

STUDIES = {
    "small": {
        "question": "Which?",
        "references": ["default"],
        "points": {"default": None, "fewer": {"fit": {"num_tokens": 1}}},
        "family_points": {"sd3": {"first": {"fit": {"layers": [0]}}}, "sdxl": {"down": {"fit": {"layers": ["down"]}}}},
    }
}
INTERVAL = {"mean": 0.05, "low": 0.01, "high": 0.09, "p": 0.01}
OUTCOME: dict[str, Any] = {
    "gain": INTERVAL,
    "tasks": {"counting": INTERVAL, "two_object": {**INTERVAL, "mean": 0.02}},
    "retrieval": {**INTERVAL, "mean": -0.04, "low": -0.07, "high": 0.02},
    "repetition": INTERVAL,
    "distances": {"cmmd": -0.1},
    "guidance": {"base": 3.0, "soft": [2.0, 3.0]},
    "num_trainings": 2,
    "num_prompts": 354,
}
CONFIRMED = {**OUTCOME, "seeds": [1, 2], "seconds": 720.0}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(WorldConfig(train_images=200, validation_prompts_per_task=1, test_prompts_per_task=1), folder)
    return folder / "train/pairs.parquet"


def test_a_study_has_the_points_of_all_families_and_its_own() -> None:
    assert list(read_study("small", STUDIES, "sd3").points) == ["default", "fewer", "first"]
    study = read_study("small", STUDIES, "sdxl")
    assert study.points["default"] == Point()
    assert study.points["down"].fit == {"layers": ["down"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": ["other"]}, r"studies\.small\.references names 'other'"),
        ({"unranked": ["other"]}, r"studies\.small\.unranked names 'other'"),
        ({"curves": {"tokens": {"default": 4, "other": 1}}}, r"studies\.small\.curves\.tokens names 'other'"),
        ({"points": {"default": {"fitt": {}}}}, r"studies\.small\.default\.fitt"),
        ({"points": {"default": {"data": {"poison": "arsenic"}}}}, "data.poison must be one of"),
        ({"points": {"default": {"data": {"poison": "flooded", "share": 2.0}}}}, "data.share"),
        ({"points": {"default": {"data": {"renderer": "oil"}}}}, "data.renderer must be one of plain, textured"),
        ({"points": {"default": {"base": {"kind": "whole"}}}}, "base.kind must be one of full, lora, dpo"),
        ({"points": {"default": {"anew": True}}}, "anew trains on a fine-tuned copy"),
    ],
)
def test_a_study_that_says_something_wrong_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_study("small", {"small": {**STUDIES["small"], **change}}, "sd3")


def test_an_unknown_study_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no study 'big'.*small"):
        read_study("big", STUDIES, "sd3")


@pytest.mark.parametrize("poison", POISONS)
def test_poison_makes_captions_false_of_their_images_and_leaves_the_others(
    pairs: Path, tmp_path: Path, poison: str
) -> None:
    share = 0.5
    write_variant(pairs, DataChange(poison=poison, share=share), tmp_path / "pairs.parquet")
    before, after = (pq.read_table(file).to_pylist() for file in (pairs, tmp_path / "pairs.parquet"))
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old["captions"] != new["captions"]]
    assert all(old["image"] == new["image"] for old, new in zip(before, after, strict=True))
    assert 0 < len(changed) <= share * len(before)
    if poison == "recoloured":
        assert all("red" in " ".join(old["captions"]) for old, _ in changed)
        assert not any("red" in " ".join(new["captions"]).split() for _, new in changed)
    else:
        assert len(changed) > 0.8 * share * len(before)
    false = [not is_true_of(new["captions"][0], _scene(old)) for old, new in changed]
    assert np.mean(false) > 0.9, Counter(new["captions"][0] for _, new in changed).most_common(3)


def _scene(row: dict[str, Any]) -> Sight:
    return look(np.asarray(Image.open(io.BytesIO(row["image"]))))


def test_fewer_images_are_the_first(pairs: Path, tmp_path: Path) -> None:
    write_variant(pairs, DataChange(images=10), tmp_path / "pairs.parquet")
    kept = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    whole = pq.read_table(pairs, columns=["image", "captions"]).to_pylist()
    assert kept == whole[:10]


def test_what_one_study_has_confirmed_stands_for_all_of_its_family(tmp_path: Path) -> None:
    screened = Measured("a", "2026-11-25", 16_000, 3072, 90.0, 0.0021, OUTCOME)
    confirmed = screened.with_confirmed(OUTCOME, {"counting": [0.0, 1 / 3, -0.5]})
    assert confirmed.gains == {"counting": [0.0, 0.3333, -0.5]}
    write_measured(tmp_path / "first_sd3.json", {"default": confirmed, "fewer": replace(screened, digest="b")})
    write_measured(tmp_path / "second_sd3.json", {"clean": screened})
    write_measured(tmp_path / "first_sdxl.json", {"default": replace(screened, digest="c")})
    assert kept_by_digest(tmp_path, "sd3") == {"a": confirmed, "b": replace(screened, digest="b")}
    assert kept_by_digest(tmp_path, "sd15") == {}


def test_the_page_shows_what_was_measured_and_keeps_the_reading(tmp_path: Path) -> None:
    point = Measured("a", "2026-11-25", 16_000, 3072, 90.0, 0.0021, OUTCOME)
    measured = {
        "default": replace(point, confirmed={**CONFIRMED, "gain": {**INTERVAL, "mean": 0.031}}),
        "fewer": replace(point, expected_decrease=0.001),
        "first": replace(point, expected_decrease=0.003, screen={**OUTCOME, "gain": {**INTERVAL, "mean": 0.06}}),
    }
    study = read_study("small", STUDIES, "sd3")
    page = write_page(study, {"sd3": measured}, tmp_path)
    text = page.read_text()
    own = "-4.0 [-7.0, +2.0] | +0.050 [+0.010, +0.090] | -0.100 | 3 → 2, 3 |"
    assert f"| default | 3072 | 16 k | +5.0 [+1.0, +9.0] | {own} 1.5 |\n" in text
    assert f"| default | 1, 2 | 354 | +3.1 [+1.0, +9.0] | {own} 12.0 |\n" in text
    assert text.count("| setting | counting | two object |\n| --- | --- | --- |\n") == 2
    assert text.count("| fewer | +5.0 [+1.0, +9.0] | +2.0 [+1.0, +9.0] |\n") == 1
    assert "romise" not in text
    assert "<svg" in (tmp_path / "small_sd3.svg").read_text()
    figure = (tmp_path / "small_sd3.svg").read_bytes()
    assert f"{READING}\n\nNot written yet.\n\n## How it was measured\n" in text
    written = text.replace("Not written yet.", "It helps.\n\n## Where\n\nEverywhere.")
    page.write_text(written)
    assert write_page(study, {"sd3": measured}, tmp_path).read_text() == written
    page.write_text("# Without one\n")
    assert write_page(study, {"sd3": measured}, tmp_path).read_text() == text
    assert (tmp_path / "small_sd3.svg").read_bytes() == figure


def test_confirmed_settings_are_compared_with_the_first_reference_in_pairs(tmp_path: Path) -> None:
    point = Measured("a", "2026-11-25", 16_000, 3072, 90.0, 0.0021, OUTCOME)
    easy, hard = [0.5] * 20 + [0.0] * 20, [-0.2] * 40
    measured = {
        "default": point.with_confirmed(CONFIRMED, {"counting": easy, "two_object": hard}),
        "fewer": point.with_confirmed(CONFIRMED, {"counting": [own + 0.1 for own in easy], "two_object": hard}),
        "first": point.with_confirmed(CONFIRMED, {"counting": easy[1:], "two_object": hard}),
        "early": replace(point, confirmed={**CONFIRMED, "seconds": None}),
    }
    text = write_page(read_study("small", STUDIES, "sd3"), {"sd3": measured}, tmp_path).read_text()
    paired = text.partition("more than default, paired by prompt:\n\n")[2].partition("\n\n")[0]
    # Every prompt gains the same, however much prompts differ.
    assert paired.splitlines() == [
        "| setting | all | counting | two object |",
        "| --- | --- | --- | --- |",
        "| fewer | +5.0 [+5.0, +5.0] | +10.0 [+10.0, +10.0] | +0.0 [+0.0, +0.0] |",
    ]


def test_a_page_tells_how_promise_ranks_the_settings_of_one_loss(tmp_path: Path) -> None:
    point = Measured("a", "2026-11-25", 16_000, 3072, 90.0, 0.0021, OUTCOME)
    gains = {"default": 0.02, "fewer": 0.01, "first": 0.05}
    measured = {
        label: replace(
            point,
            digest=label,
            expected_decrease=promise,
            screen={**OUTCOME, "gain": {**INTERVAL, "mean": gains[label]}},
        )
        for label, promise in (("default", 0.002), ("fewer", 0.001), ("first", 0.0005))
    }
    for unranked, told in (
        ([], "over the 3 settings of the default's loss: -0.50 (p = 0.667)."),
        (["first"], "| first | 3072 | 16 k | 0.5 | +5.0"),
    ):
        study = read_study("small", {"small": {**STUDIES["small"], "unranked": unranked}}, "sd3")
        text = write_page(study, {"sd3": measured}, tmp_path).read_text()
        assert told in text
        assert ("Rank correlation" in text) == (not unranked), "two settings have no order to tell"


def test_curves_are_drawn_against_their_quantity_as_far_as_measured(tmp_path: Path) -> None:
    pairs = dict.fromkeys(("default", "fewer"))
    curves = {"curves": {"tokens": {"default": 4, "fewer": 1}, "layers": {"default": 6, "first": 80}, "pairs": pairs}}
    point = Measured("a", "2026-11-25", 16_000, 3072, 90.0, 0.0021, OUTCOME)
    study = read_study("small", {"small": {**STUDIES["small"], **curves}}, "sd3")
    page = write_page(study, {"sd3": {"default": point, "fewer": replace(point, num_pairs=4_000)}}, tmp_path)
    assert "![small, sd3](small_sd3.svg)" in page.read_text()
    written = re.findall(r">([^<>]+)</text>", (tmp_path / "small_sd3.svg").read_text())
    told = {"tokens", "layers", "pairs", "1", "4", "6", "4000", "16000", "alignment (points)", "counting (points)"}
    assert told <= set(written)
    assert "80" not in written
