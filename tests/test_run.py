"""The whole pipeline as a user runs it, on the committed models, in small."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from project_runs import ENVIRONMENT, KEDRO, kedro_run

from softrepa_pipeline.soft_tokens import load_soft_tokens

FIT = "fit.num_steps=8,fit.batch_size=4,fit.held_out_images=8,execution.checkpoint_steps=2"
SMALL = ",".join(
    [
        "world.train_images=64,world.validation_prompts_per_task=2,world.test_prompts_per_task=4",
        FIT,
        "evaluation.prompts_per_task=4,evaluation.validation_prompts_per_task=2,evaluation.retrieval_images=2",
        "evaluation.retrieval_captions=2,evaluation.guidance_scales=[3.0],evaluation.strengths=[1.0]",
        "sampling.settings.num_inference_steps=4",
    ]
)
TOKENS = "data/06_models/embedded_sd3/shapes/softrepa/soft_tokens.safetensors"


def runs(project: Path) -> list[Run]:
    """All runs, the newest first."""
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("softrepa")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))


def evaluation(project: Path, model: str = "embedded_sd3/shapes/softrepa") -> dict[str, Any]:
    summary = json.loads((project / "data/08_reporting" / model / "evaluation.json").read_text())
    del summary["seconds"], summary["tokens_sha256"]  # the file names its run
    return summary


def test_default_pipeline_is_deterministic_skips_what_is_done_and_is_tracked(project: Path) -> None:
    first = kedro_run(project, "--params", SMALL)
    summary = evaluation(project)
    assert {"family", "objective", "num_prompts", "base", "soft", "delta", "measures"} <= set(summary)
    assert summary["num_prompts"] == 24
    assert set(summary["delta"]["overall"]) == {"mean", "low", "high", "p"}
    assert "counting" in first.stderr
    assert "make ui" in first.stderr
    report = (project / "data/08_reporting/embedded_sd3/shapes/softrepa/report.html").read_text()
    assert "data:image/png;base64," in report
    assert "http" not in report.replace("http-equiv", "")

    fit_run, parent = sorted(runs(project), key=lambda run: "mlflow.parentRunId" not in run.data.tags)
    assert fit_run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {"loss", "infonce_accuracy", "gradient_norm"} <= set(fit_run.data.metrics)
    assert "evaluation/gain/mean" in parent.data.metrics
    assert {"seconds/fit_tokens", "system/cpu_utilization_percentage"} <= set(parent.data.metrics)
    assert parent.inputs.dataset_inputs[0].dataset.name == "shapes"
    assert {run.info.status for run in (fit_run, parent)} == {"FINISHED"}

    again = kedro_run(project, "--pipeline", "train", "--params", SMALL)
    assert again.stderr.count("skipped, nothing it depends on has changed") == 4
    tokens = (project / TOKENS).read_bytes()
    shutil.rmtree(project / "data/08_reporting")
    for folder in ("02_intermediate", "03_primary", "05_model_input", "06_models/embedded_sd3"):
        shutil.rmtree(project / "data" / folder)
    kedro_run(project, "--params", SMALL)
    assert evaluation(project) == summary
    assert load_soft_tokens(project / TOKENS)[0].base.equal(_tokens(tokens, project))


def test_another_family_and_objective_by_one_switch(project: Path) -> None:
    kedro_run(project, "--params", f"family=sdxl,objective=agsm,{SMALL}")
    summary = evaluation(project, "embedded_sdxl/shapes/agsm")
    assert (summary["family"], summary["objective"]) == ("sdxl", "agsm")
    tokens, metadata = load_soft_tokens(project / TOKENS.replace("sd3", "sdxl").replace("softrepa", "agsm"), "sdxl")
    assert metadata["objective"] == "agsm"
    assert tokens.config.layers[0] == "down.0"
    fit_run = next(run for run in runs(project) if run.info.run_name == "fit")
    assert fit_run.data.params["fit.objective"] == "agsm"
    assert fit_run.data.params["fit.negative_shift"] == "0.1"


def _tokens(content: bytes, project: Path) -> Any:
    path = project / "before.safetensors"
    path.write_bytes(content)
    return load_soft_tokens(path)[0].base


@pytest.mark.parametrize("num_kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_during_fit_goes_on_and_ends_with_the_same_tokens(project: Path, num_kills: int) -> None:
    longer = SMALL.replace("fit.num_steps=8", "fit.num_steps=30")
    kedro_run(project, "--pipeline", "train", "--params", longer)
    whole = load_soft_tokens(project / TOKENS)[0]
    shutil.rmtree(project / "data/06_models/embedded_sd3")
    for kill in range(num_kills):
        killed_run = _kill_during_fit(project, longer, after_step=4 * (kill + 1))
    done = kedro_run(project, "--pipeline", "train", "--params", longer)
    assert "going on from step" in done.stderr
    resumed = load_soft_tokens(project / TOKENS)[0]
    for name, value in whole.state_dict().items():
        assert value.equal(resumed.state_dict()[name]), name
    after = {run.info.run_id: run for run in runs(project)}
    assert after[killed_run].info.status == "KILLED"
    (linked,) = (run for run in after.values() if run.data.tags.get("softrepa.resumed_from") == killed_run)
    history = MlflowClient(f"sqlite:///{project / 'mlflow.db'}").get_metric_history(linked.info.run_id, "loss")
    assert [metric.step for metric in history] == list(range(30))


def _kill_during_fit(project: Path, params: str, after_step: int) -> str:
    """kill -9 once the checkpoint of a step is there; returns the id of the nested run that was cut off."""
    process = subprocess.Popen([KEDRO, "run", "--pipeline", "train", "--params", params], cwd=project, env=ENVIRONMENT)
    checkpoints = project / "data/06_models/embedded_sd3/shapes/softrepa/runs"
    deadline = time.monotonic() + 300
    while not any(int(file.stem[5:]) >= after_step for file in checkpoints.glob("*/step-*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (project / TOKENS).exists()
    return next(run.info.run_id for run in runs(project) if run.info.run_name == "fit")


def test_real_photos_with_bad_files_among_them(project: Path) -> None:
    photos = project / "data/01_raw/coco_sample"
    with (photos / "metadata.jsonl").open("a") as metadata:
        for name in ("truncated.jpg", "text.jpg", "bomb.png"):
            metadata.write(json.dumps({"file_name": name, "captions": ["a photo"]}) + "\n")
        metadata.write(json.dumps({"file_name": "silent.jpg", "captions": [" "]}) + "\n")
    whole = sorted(photos.glob("*.jpg"))[0].read_bytes()
    (photos / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "text.jpg").write_text("not a picture")
    (photos / "silent.jpg").write_bytes(whole + b" ")
    Image.new("1", (20_000, 20_000)).save(photos / "bomb.png")
    kedro_run(project, "--pipeline", "train", "--env", "coco_sample", "--params", FIT)
    pairs = project / "data/02_intermediate/coco_sample"
    assert pq.read_table(pairs / "pairs.parquet").num_rows == 24
    quarantined = {row["file"]: row["reason"] for row in pq.read_table(pairs / "quarantine.parquet").to_pylist()}
    assert set(quarantined) == {"truncated.jpg", "text.jpg", "bomb.png", "silent.jpg"}
    tokens, metadata_of_tokens = load_soft_tokens(
        project / "data/06_models/embedded_sd3/coco_sample/softrepa/soft_tokens.safetensors"
    )
    assert metadata_of_tokens["family"] == "sd3"
    assert tokens.num_parameters < 1_000_000


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("fit.num_stpes=3", "unknown parameter fit.num_stpes; did you mean fit.num_steps?"),
        ("dataset=/no/such/folder", "no data at /no/such/folder"),
        ("model.base=/no/such/model", "no model folder at /no/such/model; set model.base"),
    ],
)
def test_wrong_input_ends_with_one_clear_line(project: Path, params: str, message: str) -> None:
    done = kedro_run(project, "--pipeline", "train", "--params", f"world.train_images=16,{params}", check=False)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
