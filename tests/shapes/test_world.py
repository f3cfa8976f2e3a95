from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from softrepa_pipeline.shapes.captions import CaptionedScene, draw_captioned, neglect
from softrepa_pipeline.shapes.claims import OPPOSITES, TASKS, Claim, ObjectClaim, is_true
from softrepa_pipeline.shapes.dataset import WorldConfig, read_prompts, write_world
from softrepa_pipeline.shapes.scene import COLORS, SHAPES, render, split_of
from softrepa_pipeline.shapes.verifier import look, verify

NUM_SCENES = 200


def scenes(seed: int, num: int = NUM_SCENES) -> list[CaptionedScene]:
    rng = np.random.default_rng(seed)
    return [draw_captioned("train", 0.0, rng, task) for task in TASKS for _ in range(num)]


def altered(claim: Claim, rng: np.random.Generator) -> Claim:
    """The claim with its relation, its count, or one object's colour or shape changed."""
    if claim.relation:
        return replace(claim, relation=OPPOSITES[claim.relation])
    if claim.count and rng.random() < 0.5:
        return replace(claim, count=2 + claim.count % 3)
    first, *others = claim.objects
    if first.color:
        first = replace(first, color=str(rng.choice([color for color in COLORS if color != first.color])))
    else:
        first = replace(first, shape=str(rng.choice([shape for shape in SHAPES if shape != first.shape])))
    return replace(claim, objects=(first, *others))


@pytest.mark.parametrize("per_task", [NUM_SCENES, pytest.param(5000, marks=pytest.mark.slow)])
def test_verifier_accepts_true_renders_and_rejects_claims_that_metadata_makes_false(per_task: int) -> None:
    rng = np.random.default_rng(1)
    accepted, rejected = [], []
    for item in scenes(0, per_task):
        image = render(item.scene)
        accepted.append(verify(image, item.claim))
        false = altered(item.claim, rng)
        if not is_true(false, item.scene.things, item.scene.background):
            rejected.append(not verify(image, false))
    assert np.mean(accepted) >= 0.99
    assert len(rejected) > NUM_SCENES
    assert np.mean(rejected) >= 0.99


def test_verifier_sees_every_object_where_it_is() -> None:
    for item in scenes(2, 30):
        seen = look(render(item.scene))
        assert seen.background == item.scene.background
        assert len(seen.things) == len(item.scene.things)
        for thing in item.scene.things:
            nearest = min(seen.things, key=lambda other: abs(other.x - thing.x) + abs(other.y - thing.y))
            assert (nearest.shape, nearest.color, nearest.size) == (thing.shape, thing.color, thing.size)
            assert abs(nearest.x - thing.x) + abs(nearest.y - thing.y) < 1


def test_verifier_survives_noise_and_empty_or_full_images() -> None:
    rng = np.random.default_rng(3)
    accepted = []
    for item in scenes(4, 30):
        noisy = render(item.scene) + rng.normal(0, 8, (32, 32, 3))
        accepted.append(verify(np.clip(noisy, 0, 255).astype(np.uint8), item.claim))
    assert np.mean(accepted) > 0.9
    for value in (0, 128, 255):
        assert look(np.full((32, 32, 3), value, np.uint8)).things == ()
    full = np.zeros((32, 32, 3), np.uint8)
    full[..., 0] = 220
    assert not verify(full, Claim("single_object", (ObjectClaim("circle"),)))


def test_counting_is_exact_and_the_other_tasks_allow_more() -> None:
    item = next(i for i in scenes(5, 40) if i.claim.task == "counting" and i.claim.count == 3)
    image, wanted = render(item.scene), item.claim.objects[0]
    assert verify(image, Claim("counting", (wanted,), count=3))
    assert not verify(image, Claim("counting", (wanted,), count=2))
    assert verify(image, Claim("single_object", (ObjectClaim(wanted.shape),)))


def test_training_never_shows_or_names_what_is_held_out() -> None:
    rng = np.random.default_rng(6)
    for _ in range(400):
        item = draw_captioned("train", 0.3, rng)
        assert item.claim.split == "train"
        assert split_of(item.scene.combination) == "train"
    for _ in range(100):
        assert draw_captioned("test", 0.0, rng).claim.split == "test"


def test_a_share_of_the_web_s_captions_claims_too_much() -> None:
    rng = np.random.default_rng(7)
    items = [draw_captioned("train", 0.5, rng) for _ in range(1000)]
    is_false = np.array([not is_true(item.claim, item.scene.things, item.scene.background) for item in items])
    tasks = np.array([item.claim.task for item in items])
    for task in ("counting", "two_object", "color_attribution"):
        assert 0.4 < is_false[tasks == task].mean() < 0.6
    assert not is_false[np.isin(tasks, ["position", "colors", "single_object"])].any()
    assert 0.2 < is_false.mean() < 0.4


def test_what_is_neglected_is_an_object_or_a_colour() -> None:
    rng = np.random.default_rng(8)
    red_circle, blue_square = ObjectClaim("circle", "red"), ObjectClaim("square", "blue")
    assert neglect(Claim("counting", (red_circle,), count=4), rng) == Claim("counting", (red_circle,), count=3)
    assert neglect(Claim("counting", (red_circle,), count=2), rng) == Claim("colors", (red_circle,))
    leaked = neglect(Claim("color_attribution", (red_circle, blue_square)), rng)
    assert {thing.shape for thing in leaked.objects} == {"circle", "square"}
    assert len({thing.color for thing in leaked.objects}) == 1
    pair = Claim("two_object", (ObjectClaim("circle"), ObjectClaim("square")), background="dark")
    assert neglect(pair, rng).objects[0] in pair.objects
    assert neglect(pair, rng).background == "dark"
    placed = Claim("position", (red_circle, blue_square), relation="left of")
    assert neglect(placed, rng) == placed


def test_prompts_are_distinct_and_unseen_in_training(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    result = write_world(WorldConfig(100, 5, 8), tmp_path)
    trained = {c for row in pq.read_table(tmp_path / "train/pairs.parquet")["captions"].to_pylist() for c in row}
    prompts = [prompt.text for split in ("validation", "test") for prompt in read_prompts(tmp_path, split)]
    assert len(prompts) == len(set(prompts)) == 6 * 13
    assert not trained & set(prompts)
    assert write_world(WorldConfig(100, 5, 8), tmp_path)["digests"] == result["digests"]
