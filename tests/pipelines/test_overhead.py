"""What tokens cost: the arithmetic, the order of timings, and the pipeline on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner

from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.evaluation.overhead import OverheadConfig, format_overhead, in_turns, training_cost
from softrepa_pipeline.inference import SamplingConfig
from softrepa_pipeline.pipelines.overhead import create_pipeline
from softrepa_pipeline.pipelines.overhead.nodes import training_of
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, save_soft_tokens
from softrepa_pipeline.training import ExecutionConfig, Job, Provenance, SamplesConfig, fit_config

_STEPS = [
    {"step": 0.0, "pairs_per_second": 64.0, "memory_gib": 1.0},
    {"step": 0.0, "validation_loss": 0.5},
    {"step": 1.0, "pairs_per_second": 32.0, "memory_gib": 1.5},
    {"step": 2.0, "pairs_per_second": 64.0, "memory_gib": 1.25},
]


def test_works_take_turns_and_each_begins_a_round() -> None:
    events: list[str] = []

    def prepare(name: str, number: int) -> Callable[[], object]:
        events.append(f"ready {name}{number}")
        return lambda: events.append(f"{name}{number}")

    seconds = in_turns([partial(prepare, name) for name in "abc"], 3)
    assert seconds.shape == (3, 3)
    assert (seconds >= 0).all()
    assert events[::2] == [f"ready {event}" for event in events[1::2]]
    ran = events[1::2]
    assert sorted(ran[:3]) == ["a0", "b0", "c0"]  # to warm up
    assert ran[3:] == ["a0", "b0", "c0", "b1", "c1", "a1", "c2", "a2", "b2"]


def test_training_cost_adds_up_the_steps_of_a_log() -> None:
    assert training_cost(_STEPS, num_pairs=64, num_gpus=2, seconds=7200, cpu_seconds=900) == {
        "num_steps": 3,
        "seconds": 7200,
        "step_seconds": 1 + 2 + 1,
        "steps_per_second": 0.75,
        "cpu_hours": 0.25,
        "gpu_hours": 4.0,
        "peak_gib": 1.5,
    }


@pytest.mark.parametrize(
    ("name", "value"), [("rounds", 0), ("batch_sizes", (0,)), ("batch_sizes", ()), ("strengths", (0.0,))]
)
def test_settings_that_measure_nothing_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"overhead.{name} must be"):
        OverheadConfig(SamplingConfig(2, 1), 2.0, **{name: value})


@pytest.fixture
def manifest(sd3_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """What the fit stage hands on, with the log of a training."""
    file = tmp_path / "soft_tokens.safetensors"
    save_soft_tokens(SoftTokens(SoftTokensConfig(("0", "1"), 2, 128, 5)), file, {"family": "sd3"})
    job = Job(
        model=ModelConfig("sd3", str(sd3_folder), max_sequence_length=0),
        fit=fit_config("embedded", "sd3", "softrepa", {"num_steps": 3}),
        execution=ExecutionConfig(),
        samples=SamplesConfig(2.0, SamplingConfig(2, 1)),
        latents=(),
        negatives="",
        folder=str(tmp_path / "run"),
        provenance=Provenance("", "", "", ""),
    )
    job.write()
    log = tmp_path / "run/metrics.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in _STEPS))
    return {"file": str(file), "objective": "softrepa", "seconds": 60.0, "cpu_seconds": 36.0, "log": str(log)}


def test_the_pipeline_measures_training_and_drawing(manifest: dict[str, Any], sd3_folder: Path) -> None:
    inputs = {
        "soft_tokens": manifest,
        "params:model": {"family": "sd3", "base": str(sd3_folder), "max_sequence_length": 0},
        "params:overhead": {"batch_sizes": [2], "strengths": [0.5], "rounds": 3},
        "params:sampling": {"guidance": 2.0, "settings": {"num_inference_steps": 1, "batch_size": 64}},
    }
    catalog = DataCatalog({name: MemoryDataset(value) for name, value in inputs.items()})
    summary = SequentialRunner().run(create_pipeline(), catalog)["overhead"].load()
    assert summary == json.loads(json.dumps(summary))
    assert summary["training"] == training_of(manifest)
    base, soft = summary["drawing"]
    for row, strength in ((base, 0.0), (soft, 0.5)):
        assert (row["batch_size"], row["strength"]) == (2, strength)
        assert row["images_per_second"] == pytest.approx(1 / row["seconds_per_image"])
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert row["peak_mib"] > 100
    assert base["ratio"] == {"median": 1, "low": 1, "high": 1}
    assert soft["ratio"]["median"] != 1
    assert len(format_overhead(summary).splitlines()) == 3 + 2


def test_the_training_is_read_from_the_manifest_and_the_log_it_names(manifest: dict[str, Any]) -> None:
    training = training_of(manifest)
    assert training["num_steps"] == 3
    assert training["seconds"] == 60
    assert training["cpu_hours"] == pytest.approx(0.01)
    assert training["gpu_hours"] == 0
    assert "3 steps in 60 s" in format_overhead({"training": training, "drawing": []})
    del manifest["cpu_seconds"]  # as tokens have that were trained before it was measured
    assert training_of(manifest) == {**training, "cpu_hours": None}
    assert "hours" not in format_overhead({"training": training_of(manifest), "drawing": []})


def test_a_training_without_its_log_is_not_measured(manifest: dict[str, Any]) -> None:
    Path(manifest["log"]).unlink()
    unmeasured = training_of(manifest)
    assert manifest["log"] in unmeasured["not_measured"]
    assert f"not measured: {unmeasured['not_measured']}" in format_overhead({"training": unmeasured, "drawing": []})
    del manifest["log"]
    assert "force=true" in training_of(manifest)["not_measured"]
