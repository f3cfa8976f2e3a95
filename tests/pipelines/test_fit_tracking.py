"""A whole `kedro run` whose MLflow server dies while it trains."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow_servers import Server, wait
from project_runs import ENVIRONMENT, KEDRO

SETTINGS = "fit.batch_size=2,fit.num_negatives=1,fit.held_out_images=8,world.train_images=64"


@pytest.mark.slow
@pytest.mark.parametrize(("num_steps", "returns_at"), [(300, 60), (60, 60)], ids=["while it trains", "when it is done"])
def test_a_server_that_is_killed_and_comes_back_has_every_step_of_the_training(
    project: Path, tmp_path: Path, num_steps: int, returns_at: int
) -> None:
    def records() -> list[dict[str, Any]]:
        logs = list((project / "data" / "06_models").rglob("metrics.jsonl"))
        lines = logs[0].read_text().splitlines() if logs else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def has_records(count: int) -> bool:
        assert run.poll() is None, (tmp_path / "kedro.log").read_text()
        return len(records()) >= count

    with Server(tmp_path) as server:
        environment = {**ENVIRONMENT, "MLFLOW_TRACKING_URI": server.address}
        settings = f"fit.num_steps={num_steps},{SETTINGS}"
        command = [KEDRO, "run", "--pipelines", "train", "--env", "coco_sample", "--params", settings]
        with (tmp_path / "kedro.log").open("w") as log:
            run = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log)
        wait(lambda: has_records(20))
        server.kill()
        wait(lambda: has_records(returns_at))  # the training does not wait for it
        server.start()
        assert run.wait(600) == 0, (tmp_path / "kedro.log").read_text()

        wanted = records()
        assert {record["step"] for record in wanted} == set(range(num_steps))
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
