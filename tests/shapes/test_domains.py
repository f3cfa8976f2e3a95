"""Worlds that differ from the default one: in the prompts' words, in what they speak of, in how images look."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from project_runs import ROOT
from scene_truth import is_true_of
from transformers import CLIPTokenizer

from softrepa_pipeline.shapes.captions import draw_captioned
from softrepa_pipeline.shapes.claims import TASKS
from softrepa_pipeline.shapes.dataset import WorldConfig, read_images, read_prompts, write_world
from softrepa_pipeline.shapes.renderers import render_textured
from softrepa_pipeline.shapes.scene import render
from softrepa_pipeline.shapes.verifier import look, verify

CHANGES = {
    "plain": {},
    "seen": {"held_out": False},
    "unseen": {"wording": "unseen"},
    "long": {"wording": "long"},
    "textured": {"renderer": "textured"},
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("worlds")
    for name, change in CHANGES.items():
        write_world(WorldConfig(300, 4, 8, **change), folder / name)  # type: ignore[arg-type]
    return {name: folder / name for name in CHANGES}


def training_captions(world: Path) -> set[str]:
    return {text for own in pq.read_table(world / "train/pairs.parquet")["captions"].to_pylist() for text in own}


@pytest.mark.parametrize("name", CHANGES)
def test_prompts_are_true_of_their_images_and_fit_the_tokenizer(worlds: dict[str, Path], name: str) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "data/06_models/embedded/sd3/tokenizer")
    images, prompts = read_images(worlds[name], "test", 100)
    assert {prompt.claim.task for prompt in prompts} == set(TASKS)
    assert np.mean([verify(image, prompt.claim) for image, prompt in zip(images, prompts, strict=True)]) > 0.95
    for prompt in prompts:
        words = prompt.text.split()
        ids = tokenizer(prompt.text).input_ids
        assert len(ids) == len(words) + 2 <= tokenizer.model_max_length, prompt.text
        assert [tokenizer.decode([own]).strip() for own in ids[1:-1]] == words


@pytest.mark.parametrize("name", CHANGES)
def test_no_prompt_is_a_training_caption_and_training_captions_stay(worlds: dict[str, Path], name: str) -> None:
    trained = training_captions(worlds["plain"])
    assert training_captions(worlds[name]) == trained
    prompts = [prompt for split in ("validation", "test") for prompt in read_prompts(worlds[name], split)]
    assert not trained & {prompt.text for prompt in prompts}
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert ({prompt.claim.split for prompt in prompts} == {"train"}) == (name == "seen")


def as_in_training(text: str) -> str:
    """A sentence of the unseen forms, told as training captions are; one of another form is an AssertionError."""
    relation = r"(left of|to the left of|right of|to the right of|above|over|below|under)"
    tone = r"(?: and the background is (\w+))?"
    ground = r"(?:a (\w+)|the) background"
    if match := re.fullmatch(rf"the (.+) is {relation} the ((?:(?! and ).)+){tone}", text):
        first, how, second, shade = match.groups()
        body = f"a {first} {how} a {second}"
    elif match := re.fullmatch(rf"{relation} the (.+) there is the ((?:(?! and ).)+){tone}", text):
        how, second, first, shade = match.groups()
        body = f"a {first} {how} a {second}"
    else:
        forms = (
            rf"on {ground} there (?:is|are) (?P<body>.+)",
            rf"the picture is of (?P<body>.+) on {ground}",
            rf"(?P<body>.+) (?:is|are) on {ground}",
        )
        match = next(found for form in forms if (found := re.fullmatch(form, text)))
        body = match["body"]
        shade = next((own for own in match.groups() if own != body), None)
    return f"{body} on a {shade} background" if shade else body


@pytest.mark.parametrize("name", ["unseen", "long"])
def test_a_prompt_says_what_is_true_of_its_image_and_false_of_most_others(worlds: dict[str, Path], name: str) -> None:
    images, prompts = read_images(worlds[name], "test", 100)
    told = [as_in_training(prompt.text) if name == "unseen" else prompt.text for prompt in prompts]
    sights = [look(image) for image in images]
    own = [is_true_of(text, sight) for text, sight in zip(told, sights, strict=True)]  # type: ignore[arg-type]
    others = [is_true_of(text, sight) for text, sight in zip(told, np.roll(sights, 1), strict=True)]
    assert np.mean(own) > 0.95
    assert np.mean(others) < 0.3


def test_everything_is_named(worlds: dict[str, Path]) -> None:
    for prompt in read_prompts(worlds["long"], "test"):
        assert prompt.claim.background
        assert all(named.color and named.size for named in prompt.claim.objects)


def test_a_texture_changes_pixels_alone(worlds: dict[str, Path]) -> None:
    assert read_prompts(worlds["textured"], "test") == read_prompts(worlds["plain"], "test")
    rng = np.random.default_rng(0)
    for _ in range(40):
        scene = draw_captioned("train", 0.0, rng).scene
        image = render_textured(scene)
        np.testing.assert_array_equal(image, render_textured(scene))
        assert np.abs(image.astype(int) - render(scene)).mean() > 4
        seen = look(image)
        assert seen.background == scene.background
        kinds = [(thing.shape, thing.color, thing.size) for thing in scene.things]
        assert sorted((thing.shape, thing.color, thing.size) for thing in seen.things) == sorted(kinds)


@pytest.mark.parametrize("name", ["renderer", "wording"])
def test_an_unknown_world_is_told(name: str) -> None:
    with pytest.raises(ValueError, match=rf"world\.{name} must be one of plain, .*'oil'"):
        WorldConfig(1, 1, 1, **{name: "oil"})  # type: ignore[arg-type]
