"""What Dagster runs: the pipelines of conf/base/dagster.yml by kedro-dagster, and a sensor on the inbox.

    dagster dev -m softrepa_pipeline.orchestration

KEDRO_ENV names Kedro's environment. Needs the extra `orchestration`: docs/orchestration.md.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from softrepa_pipeline.environment import ROOT, prepare

prepare()

import dagster as dg  # noqa: E402  (kedro-dagster imports MLflow, which reads what `prepare` sets)
from kedro_dagster import KedroProjectTranslator  # noqa: E402
from mlflow import MlflowClient  # noqa: E402

from softrepa_pipeline.alerts import AlertConfig, alert  # noqa: E402
from softrepa_pipeline.config import build  # noqa: E402
from softrepa_pipeline.hooks import close_as_killed  # noqa: E402
from softrepa_pipeline.parameters import read_parameters  # noqa: E402
from softrepa_pipeline.settings import CONFIG_LOADER_ARGS  # noqa: E402

_environment = os.environ.get("KEDRO_ENV", CONFIG_LOADER_ARGS["default_run_env"])
_location = KedroProjectTranslator(env=_environment, project_path=ROOT).to_dagster()
_parameters = read_parameters(_environment)
_watched: Any = {"monitored_jobs": [*_location.named_jobs.values()], "default_status": dg.DefaultSensorStatus.RUNNING}


@dg.sensor(job=_location.named_jobs["retrain"], minimum_interval_seconds=30)
def inbox(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Retrain when the data set's folder has other files than before, and the same at two looks."""
    source = _parameters["source"]
    folder = Path(source["known"].get(source["dataset"], source["dataset"]))
    if not folder.is_dir():
        return dg.SkipReason(f"{folder} is no folder; the inbox is the `dataset` of conf/local/globals.yml")
    seen = listing_digest(folder)
    if context.cursor != seen:
        context.update_cursor(seen)
        return dg.SkipReason(f"{folder} has changed, and may be changing still")
    return dg.RunRequest(run_key=seen)  # no key runs twice


@dg.run_failure_sensor(**_watched)
def failed(context: dg.RunFailureSensorContext) -> None:
    """Send an alert unless Dagster tries again, and close the MLflow run of a process that is gone."""
    # In the place of kedro-dagster's sensor, which calls the name of the error's class, a string (0.8.1).
    run_id, error = _mlflow_run(context), context.failure_event.message
    if run_id is not None:
        run = MlflowClient().get_run(run_id)
        error = run.data.tags.get("error", error)
        if run.info.status == "RUNNING":
            close_as_killed(run_id, "its process was gone")
    if context.dagster_run.tags.get("dagster/will_retry") != "true":
        event = {"event": "run failed", "pipeline": context.dagster_run.job_name, "error": error, "mlflow_run": run_id}
        alert(build(AlertConfig, _parameters["alerts"], "alerts"), event)


@dg.run_status_sensor(run_status=dg.DagsterRunStatus.CANCELED, **_watched)
def canceled(context: dg.RunStatusSensorContext) -> None:
    """Close the MLflow run of a run that somebody canceled."""
    run_id = _mlflow_run(context)
    if run_id is not None:
        close_as_killed(run_id, "canceled in Dagster")


def listing_digest(folder: Path) -> str:
    """Hash of the names, sizes and times of all files below a folder; their content is the ingestion's affair."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        found = file.stat()
        digest.update(f"{file.relative_to(folder)} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _mlflow_run(context: dg.RunStatusSensorContext) -> str | None:
    """kedro-dagster writes it to the run's tags at the first node."""
    return context.dagster_run.tags.get("mlflow_run_id")


defs = dg.Definitions(
    assets=[*_location.named_assets.values()],
    resources=_location.named_resources,
    jobs=[*_location.named_jobs.values()],
    schedules=[*_location.named_schedules.values()],
    sensors=[inbox, failed, canceled],
)
