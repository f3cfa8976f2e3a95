"""Evaluation images do not depend on who draws them, in what batch, or on how often they were interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disks import fill

from softrepa_pipeline.backbones import ModelConfig, load_backbone
from softrepa_pipeline.evaluation import generation
from softrepa_pipeline.evaluation.generation import Model, generate
from softrepa_pipeline.inference import SCHEDULERS, SamplingConfig, Strength, draw
from softrepa_pipeline.runners import LocalRunner
from softrepa_pipeline.shapes.dataset import read_prompts
from softrepa_pipeline.shapes.verifier import verify
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, save_soft_tokens

EMBEDDED = Path(__file__).parents[2] / "data/06_models/embedded"
PROMPTS = [f"{count} {colour} squares" for count in ("two", "three") for colour in ("red", "blue", "green")]
SAMPLING = SamplingConfig(num_inference_steps=3, batch_size=4, seeds_per_prompt=2)


@pytest.fixture
def model(model_folders: dict[str, Path], tmp_path: Path) -> Model:
    config = ModelConfig("sd15", str(model_folders["sd15"]))
    sites = load_backbone(config).sites(("down",))
    tokens = SoftTokens(SoftTokensConfig(sites.names, 2, sites.width, 4))
    file = tmp_path / "tokens.safetensors"
    save_soft_tokens(tokens, file, {"family": "sd15"})
    return Model(config, str(file))


def test_a_resolution_is_drawn_and_names_other_files_but_the_base_s_own_leaves_names_as_they_were(
    model: Model, tmp_path: Path
) -> None:
    assert "resolution" not in generation._without({"resolution": SAMPLING.resolution})
    larger = replace(SAMPLING, resolution=40)
    assert generate(model, PROMPTS[:1], larger, 2.0, tmp_path / "images").shape == (1, 2, 40, 40, 3)
    assert generate(model, PROMPTS[:1], SAMPLING, 2.0, tmp_path / "images").shape == (1, 2, 32, 32, 3)


def test_stored_images_are_those_that_are_drawn_directly(model: Model, tmp_path: Path) -> None:
    images = generate(model, PROMPTS, SAMPLING, 2.0, tmp_path / "images")
    assert images.shape[:2] == (6, 2)
    with generation.opened(model) as backbone:
        assert np.array_equal(images, draw(backbone, PROMPTS, SAMPLING, 2.0))
    base = generate(replace(model, tokens=None), PROMPTS, SAMPLING, 2.0, tmp_path / "images")
    assert not np.array_equal(images, base)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_images_do_not_depend_on_the_batch(model: Model, tmp_path: Path, batch_size: int) -> None:
    images = generate(model, PROMPTS, SAMPLING, 2.0, tmp_path / "images").astype(int)
    others = generate(model, PROMPTS, replace(SAMPLING, batch_size=batch_size), 2.0, tmp_path / "others")
    assert abs(images - others).max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_an_embedded_base_draws_the_same_whatever_the_batch_and_the_processes(
    family: str, world: Path, tmp_path: Path
) -> None:
    """Images within 2 of 255, and the verifier agrees in 99.5 %."""
    embedded = Model(ModelConfig(family, str(EMBEDDED / family), max_sequence_length=0))
    prompts = read_prompts(world, "test", 220)
    texts, sampling = [prompt.text for prompt in prompts], SamplingConfig(16, 64, seeds_per_prompt=8)
    images = generate(embedded, texts, sampling, 3.0, tmp_path / "64")
    for batch_size, processes in ((1, 1), (7, 1), (32, 2)):
        own = replace(sampling, batch_size=batch_size)
        others = generate(embedded, texts, own, 3.0, tmp_path / str(batch_size), runner=LocalRunner(processes))
        assert abs(images.astype(int) - others).max() <= 2
        verdicts = [
            verify(first, prompt.claim) == verify(second, prompt.claim)
            for prompt, *pair in zip(prompts, images, others, strict=True)
            for first, second in zip(*pair, strict=True)
        ]
        assert np.mean(verdicts) >= 0.995


def test_images_do_not_depend_on_the_number_of_processes(model: Model, tmp_path: Path) -> None:
    images = generate(model, PROMPTS, SAMPLING, 2.0, tmp_path / "images")
    assert np.array_equal(images, generate(model, PROMPTS, SAMPLING, 2.0, tmp_path / "two", runner=LocalRunner(2)))


@dataclass
class Interrupted:
    """A runner that is stopped after some shards."""

    after: int

    def map(self, work: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        for number, shard in enumerate(shards):
            if number == self.after:
                raise KeyboardInterrupt
            yield work(shard)


def test_an_interrupted_drawing_goes_on_and_ends_with_the_same_images(model: Model, tmp_path: Path) -> None:
    whole = generate(model, PROMPTS, SAMPLING, 2.0, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPTS, SAMPLING, 2.0, tmp_path / "parts", runner=Interrupted(1))
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()}
    assert len(kept) == 4
    assert np.array_equal(generate(model, PROMPTS, SAMPLING, 2.0, tmp_path / "parts"), whole)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert {f.name: f.read_bytes() for f in (tmp_path / "parts").iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "whole").iterdir()
    }


@pytest.mark.parametrize("damage", [b"", b"no image", None])
def test_a_damaged_image_is_drawn_anew(model: Model, tmp_path: Path, damage: bytes | None) -> None:
    images = generate(model, PROMPTS, SAMPLING, 2.0, tmp_path)
    file = min(tmp_path.glob("*.png"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-40] if damage is None else damage)
    assert np.array_equal(generate(model, PROMPTS, SAMPLING, 2.0, tmp_path), images)
    assert file.read_bytes() == whole


def test_what_makes_an_image_is_in_its_name_and_what_does_not_is_not(model: Model, tmp_path: Path) -> None:
    generate(model, PROMPTS[:1], SAMPLING, 2.0, tmp_path)
    count = len(list(tmp_path.glob("*.png")))
    same = replace(model, base=replace(model.base, licence="other"))
    generate(same, PROMPTS[:1], replace(SAMPLING, batch_size=1), 2.0, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == count
    changes = [
        (replace(model, strength=Strength(0.5)), SAMPLING, 2.0),
        (replace(model, strength=Strength(timestep_range=(500.0, 1000.0))), SAMPLING, 2.0),
        (replace(model, strength=Strength(conditional_only=True)), SAMPLING, 2.0),
        (replace(model, tokens=None), SAMPLING, 2.0),
        (model, replace(SAMPLING, seed=1), 2.0),
        (model, replace(SAMPLING, scheduler="ddim"), 2.0),
        (model, SAMPLING, 3.0),
    ]
    for number, (changed, sampling, guidance) in enumerate(changes, start=2):
        generate(changed, PROMPTS[:1], sampling, guidance, tmp_path)
        assert len(list(tmp_path.glob("*.png"))) == number * count


def test_a_full_disk_names_the_image_and_keeps_those_before(model: Model, small_disk: Path) -> None:
    images = generate(model, PROMPTS[:2], SAMPLING, 2.0, small_disk)
    ballast = fill(small_disk)
    with pytest.raises(OSError, match=rf"No space left on device: '{small_disk}/[0-9a-f]{{32}}\.png'"):
        generate(model, PROMPTS, SAMPLING, 2.0, small_disk)
    assert not list(small_disk.glob("*.partial"))
    ballast.unlink()
    assert np.array_equal(generate(model, PROMPTS, SAMPLING, 2.0, small_disk)[:2], images)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_another_scheduler_draws_another_image_and_leaves_the_base_s_own(model: Model, name: str) -> None:
    with generation.opened(model) as backbone:
        own = backbone.pipeline.scheduler
        images = draw(backbone, PROMPTS[:1], replace(SAMPLING, scheduler=name), 2.0)
        assert backbone.pipeline.scheduler is own
    assert images.dtype == np.uint8


def test_wrong_sampling_is_named() -> None:
    with pytest.raises(ValueError, match=r"sampling\.scheduler must be null or one of ddim, dpm, euler, not 'heun'"):
        replace(SAMPLING, scheduler="heun")
    with pytest.raises(ValueError, match=r"sampling\.batch_size must be at least 1, not 0"):
        replace(SAMPLING, batch_size=0)
