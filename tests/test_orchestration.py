"""Dagster's daemon on a copy of the project, its inbox and its MLflow store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from month import honest, write_drop
from project_runs import ENVIRONMENT, ROOT

dagster = pytest.importorskip("dagster")
pytest.importorskip("kedro_dagster")
pytestmark = pytest.mark.slow

SMALL = {
    "world": {"train_images": 16, "validation_prompts_per_task": 2, "test_prompts_per_task": 4},
    "fit": {"num_steps": 4, "batch_size": 8, "held_out_images": 0},
    "mine": {"min_fit": -9.0},
    "evaluation": {"prompts_per_task": 4, "validation_prompts_per_task": 2, "retrieval_images": 6},
    "sampling": {"settings": {"num_inference_steps": 2}},
    "retrain": {
        "fresh_images": 4,
        "gate": {"min_gain": -1.0, "counting_margin": 1.0, "fidelity_margin": 99.0, "fresh_margin": 1.0},
    },
}


@pytest.fixture
def inbox(project: Path) -> Path:
    """The inbox of a small project, whose alerts go to the file `alerts.txt`."""
    folder = project / "inbox"
    folder.mkdir()
    (project / "conf/local").mkdir(exist_ok=True)
    (project / "conf/local/globals.yml").write_text(json.dumps({"dataset": str(folder)}))
    append = "import pathlib, sys; pathlib.Path(sys.argv[1]).open('a').write(sys.stdin.read() + '\\n')"
    alerts = {"command": [sys.executable, "-c", append, str(project / "alerts.txt")]}
    (project / "conf/local/parameters.yml").write_text(json.dumps({**SMALL, "alerts": alerts}))
    return folder


@pytest.fixture
def instance(project: Path, inbox: Path) -> Iterator[dagster.DagsterInstance]:
    """Dagster's daemon, with the sensor switched on."""
    home = project / ".dagster"
    home.mkdir()
    shutil.copy(ROOT / ".dagster/dagster.yaml", home)
    environment = {**ENVIRONMENT, "DAGSTER_HOME": str(home), "PYTHONPATH": str(project / "src")}
    program, module = Path(sys.executable).with_name("dagster"), ["-m", "softrepa_pipeline.orchestration"]
    subprocess.run([program, "sensor", "start", "inbox", *module], cwd=project, env=environment, check=True)
    with (project / "daemon.log").open("w") as log:
        daemon = subprocess.Popen(
            [program.with_name("dagster-daemon"), "run", *module],
            cwd=project,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with dagster.DagsterInstance.from_config(str(home)) as own:
        yield own
    os.killpg(daemon.pid, signal.SIGTERM)
    daemon.wait()


def wait(condition: Callable[[], bool], project: Path) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(1)
    pytest.fail((project / "daemon.log").read_text())


def mlflow_runs(project: Path) -> list[Run]:
    """The project's runs, without the nested ones."""
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'softrepa'")
    runs = client.search_runs([experiment.experiment_id])
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags]


def test_a_file_dropped_in_the_inbox_is_learnt_in_one_run(
    project: Path, inbox: Path, instance: dagster.DagsterInstance
) -> None:
    write_drop(inbox / "m.parquet", 64, honest, 0)
    wait(lambda: any(run.is_finished for run in instance.get_runs()), project)
    [run] = instance.get_runs()
    assert run.status == dagster.DagsterRunStatus.SUCCESS
    assert run.tags["dagster/sensor_name"] == "inbox"
    [tracked] = mlflow_runs(project)
    assert (tracked.info.run_id, tracked.info.status) == (run.tags["mlflow_run_id"], "FINISHED")
    assert tracked.data.tags["kedro.pipeline"] == "retrain"
    assert tracked.data.tags["retrain.decision"] == "promoted"
    assert tracked.data.metrics["seconds/promote_challenger"] > 0
    assert not [*project.glob(".dagster/storage/**/*_challenger/*")], "nothing is pickled between the nodes"


def test_a_failing_run_is_tried_again_and_then_alerted(
    project: Path, inbox: Path, instance: dagster.DagsterInstance
) -> None:
    (inbox / "m.parquet").write_bytes(b"no Parquet")
    alerts = project / "alerts.txt"
    wait(lambda: alerts.is_file() and alerts.read_text().endswith("\n"), project)
    runs = instance.get_runs()
    assert [run.status for run in runs] == [dagster.DagsterRunStatus.FAILURE] * 3
    [event] = [json.loads(line) for line in alerts.read_text().splitlines()]
    assert (event["event"], event["mlflow_run"]) == ("run failed", runs[0].tags["mlflow_run_id"])
    assert [run.info.status for run in mlflow_runs(project)] == ["FAILED"] * 3
    assert "m.parquet" in event["error"]
