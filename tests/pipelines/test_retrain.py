"""Retraining from the command line, on a small inbox."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from month import honest, write_drop
from project_runs import ROOT, kedro_run

from softrepa_pipeline.pipelines.retrain.nodes import find_news, take_lock
from softrepa_pipeline.registry import Registry

SMALL = ",".join(
    [
        "world.train_images=16,world.validation_prompts_per_task=2,world.test_prompts_per_task=4",
        "fit.num_steps=4,fit.batch_size=8,fit.held_out_images=0,retrain.fit.num_steps=2,mine.min_fit=-9.0",
        "evaluation.prompts_per_task=4,evaluation.validation_prompts_per_task=2,evaluation.retrieval_images=2",
        "evaluation.retrieval_captions=2,evaluation.guidance_scales=[3.0],evaluation.strengths=[1.0]",
        "sampling.settings.num_inference_steps=2,retrain.fresh_images=4",
        "retrain.gate.min_gain=-1.0,retrain.gate.counting_margin=1.0,retrain.gate.fidelity_margin=99.0",
        "retrain.gate.fresh_margin=1.0,retrain.gate.max_bad_share=0.2",
    ]
)


def drop(inbox: Path, name: str, num_images: int, seed: int, num_bad: int = 0) -> None:
    """Images with captions, of which some captions are empty."""

    def captions(items: list[Any], rng: np.random.Generator) -> list[str]:
        return [""] * num_bad + honest(items[num_bad:], rng)

    write_drop(inbox / name, num_images, captions, seed)


def decision(project: Path) -> dict[str, Any]:
    [file] = (project / "data/08_reporting/embedded_sd3").glob("inbox-*/softrepa/retraining.json")
    return json.loads(file.read_text())


def test_from_a_first_drop_to_a_champion_and_a_bad_drop_that_does_not_replace_it(project: Path, tmp_path: Path) -> None:
    inbox, event = tmp_path / "inbox", tmp_path / "event.json"
    drop(inbox, "m.parquet", 64, 0)
    parameters = f"dataset={inbox},{SMALL}"
    kedro_run(project, "--pipelines", "retrain", "--params", parameters)
    first = decision(project)
    assert (first["decision"], first["champion"], first["new_images"]) == ("promoted", 1, 64)
    assert first["trained_on"] == 60
    draw = (
        "import mlflow, sys; mlflow.set_tracking_uri(sys.argv[1]);"
        "model = mlflow.pyfunc.load_model('models:/softrepa-embedded_sd3-softrepa@champion');"
        "print(model.model_config['conditional_only']);"
        "print(model.predict(['a red circle'], {'steps': 2})['image'][0][:11])"
    )
    store = f"sqlite:///{project / 'mlflow.db'}"
    drawn = subprocess.run(
        [sys.executable, "-c", draw, store], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    where, png = drawn.stdout.split()[-2:]
    assert png == "iVBORw0KGgo", "the champion can be served: a PNG in base64"
    assert where == "True", "served as it was judged, by evaluation.conditional_only"

    drop(inbox, "a.parquet", 60, 1, num_bad=18)
    (project / "conf/local").mkdir(exist_ok=True)
    write = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_bytes(sys.stdin.buffer.read())"
    command = [sys.executable, "-c", write, str(event)]
    (project / "conf/local/parameters.yml").write_text(json.dumps({"alerts": {"command": command}}))
    done = kedro_run(project, "--pipelines", "retrain", "--params", f"ingest.max_bad_share=0.5,{parameters}")
    second = decision(project)
    assert (second["decision"], second["champion"], second["new_images"]) == ("kept the champion", 1, 42)
    assert second["because"] == ["new data: 18 of 60 taken out (30%)"]
    assert json.loads(event.read_text())["because"] == second["because"]
    assert "kept the champion; new data: 18 of 60" in done.stderr

    kedro_run(project, "--pipelines", "retrain", "--params", f"ingest.max_bad_share=0.5,{parameters}")
    assert decision(project)["decision"] == "nothing new"
    failed = kedro_run(project, "--pipelines", "rollback", check=False)
    assert "error: softrepa-embedded_sd3-softrepa has no champion before the present one" in failed.stderr


def test_a_retraining_killed_after_its_promotion_has_nothing_left_to_do(store: str, tmp_path: Path) -> None:
    row = {"image_id": "a", "captions": ["a red circle"], "source": "a.png"}
    pairs = {"folder": str(tmp_path / "pairs"), "digest": "d1", "num_quarantined": 0}
    for folder in ("pairs", "retrain/d1/tokens"):
        (tmp_path / folder).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pairs/pairs.parquet")
    parameters, folders = {"registered_model": "killed"}, {"retrain": str(tmp_path / "retrain")}
    assert find_news(pairs, parameters, folders)["is_enough"]
    shutil.copy(tmp_path / "pairs/pairs.parquet", tmp_path / "retrain/d1/pairs.parquet")
    tokens = str(tmp_path / "retrain/d1/tokens/soft_tokens.safetensors")
    Registry("killed").promote(tokens, tokens, None, {})
    assert not find_news(pairs, parameters, folders)["is_enough"]


def test_two_retrainings_exclude_each_other(tmp_path: Path) -> None:
    take_lock({"retrain": str(tmp_path)})
    module = "softrepa_pipeline.pipelines.retrain.nodes"
    other = f"import sys, {module} as nodes; nodes.take_lock({{'retrain': sys.argv[1]}})"
    done = subprocess.run([sys.executable, "-c", other, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"another retraining is running: it holds {tmp_path / 'lock'}" in done.stderr


@pytest.mark.slow
def test_the_documented_cron_line_runs_as_it_stands(project: Path, tmp_path: Path) -> None:
    """With cron's bare environment; only the folders and the size of the job are others."""
    [line] = re.findall(r"^17 3 \* \* \* (.+)$", (ROOT / "docs/retraining.md").read_text(), re.MULTILINE)
    inbox = tmp_path / "inbox"
    drop(inbox, "m.parquet", 64, 0)
    (project / ".venv").symlink_to(ROOT / ".venv")
    command = line.replace("/srv/softrepa", str(project)).replace("/srv/inbox", f"{inbox},{SMALL}")
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    subprocess.run(["/bin/sh", "-c", command], env=environment, check=True)
    assert decision(project)["decision"] == "promoted"
    assert "promoted" in (project / "retrain.log").read_text()
