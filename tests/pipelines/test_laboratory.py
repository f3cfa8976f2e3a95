"""What tells a study's points apart, and what must not make measured ones look stale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from softrepa_pipeline.pipelines.ablate.laboratory import Laboratory, _data_settings, _where_set
from softrepa_pipeline.shapes.finetuning import FineTuning
from softrepa_pipeline.studies import DataChange, Point


@pytest.fixture
def laboratory(sd3_folder: Path) -> Laboratory:
    parameters: dict[str, Any] = {
        "model": {"family": "sd3", "base": str(sd3_folder)},
        "mine": {"min_fit": 1.0},
        "fit": {"preset": "embedded", "objective": "softrepa", "num_steps": 4},
        "sampling": {"settings": {"num_inference_steps": 2, "batch_size": 4}},
    }
    return Laboratory({"digest": "pairs"}, {}, {}, parameters, {"guidance_scales": [2.0]})


def test_points_are_told_apart_by_all_that_they_are_measured_on(laboratory: Laboratory) -> None:
    points = [
        Point(),
        Point(world={"wording": "long"}),
        Point(world={"wording": "unseen"}),
        Point(guidance=2.0),
        Point(guidance=3.0),
        Point(base=FineTuning("full")),
        Point(base=FineTuning("full"), anew=True),
        Point(base=FineTuning("full", renderer="textured")),
        Point(base=FineTuning("lora")),
        Point(data=DataChange(renderer="textured")),
    ]
    assert len({laboratory.digest(point, 0.5) for point in points}) == len(points)


def test_points_that_use_no_newer_setting_keep_their_digests() -> None:
    """The records in docs/studies/measured hold digests that were made without these settings."""
    assert _where_set(Point(fit={"num_tokens": 1}, strength=0.5)) == {}
    poisoned = Point(data=DataChange(poison="flooded", share=0.2))
    assert _data_settings(poisoned) == {"images": None, "poison": "flooded", "share": 0.2}


def test_a_point_s_digest_holds_in_another_checkout(laboratory: Laboratory, tmp_path: Path) -> None:
    digests = []
    for checkout, content in (("here", "weights"), ("there", "weights"), ("changed", "others")):
        model = tmp_path / checkout / "clip"
        model.mkdir(parents=True)
        (model / "model.safetensors").write_text(content)
        evaluation = {"sets": [{"name": "cmmd", "model": str(model)}]}
        digests.append(replace(laboratory, evaluation=evaluation).digest(Point(), 0.5))
    assert digests[0] == digests[1] != digests[2]
