"""A whole `kedro run` whose MLflow server dies while it trains."""

from __future__ import annotations

import json
import math
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow_servers import Server, wait
from project_runs import ENVIRONMENT, KEDRO

SECONDS_AWAY = 5
SETTINGS = "fit.num_steps=300,fit.batch_size=2,fit.num_negatives=1,fit.held_out_images=8,world.train_images=64"


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_has_every_step_of_the_training(project: Path, tmp_path: Path) -> None:
    def records() -> list[dict[str, Any]]:
        logs = list((project / "data" / "06_models").rglob("metrics.jsonl"))
        lines = logs[0].read_text().splitlines() if logs else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def has_records(count: int) -> bool:
        assert run.poll() is None, (tmp_path / "kedro.log").read_text()
        return len(records()) >= count

    with Server(tmp_path) as server:
        environment = {**ENVIRONMENT, "MLFLOW_TRACKING_URI": server.address}
        command = [KEDRO, "run", "--pipelines", "train", "--env", "coco_sample", "--params", SETTINGS]
        with (tmp_path / "kedro.log").open("w") as log:
            run = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log)
        wait(lambda: has_records(20))
        server.kill()
        at_death = len(records())
        wait(lambda: has_records(at_death + 20))  # the training does not wait for it
        time.sleep(SECONDS_AWAY)
        server.start()
        assert run.wait(600) == 0, (tmp_path / "kedro.log").read_text()

        wanted = records()
        assert {record["step"] for record in wanted} == set(range(300))
        client = MlflowClient(server.address)
        (fit,) = (
            found
            for experiment in client.search_experiments()
            for found in client.search_runs([experiment.experiment_id])
            if found.info.run_name == "fit"
        )
        assert fit.info.status == "FINISHED"
        for name in {key for record in wanted for key in record} - {"step"}:
            curve = {point.step: point.value for point in client.get_metric_history(fit.info.run_id, name)}
            for record in wanted:
                if name in record:
                    assert math.isclose(curve[int(record["step"])], record[name], rel_tol=1e-12), (name, record["step"])
