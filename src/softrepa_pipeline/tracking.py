"""What a node reports to MLflow. Without an active run every call does nothing, so nodes run in tests as they are.

Everything goes through `MlflowClient` with explicit run ids: MLflow's stack of active runs is per thread, and
kedro-mlflow owns it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH
from PIL import Image
from requests.exceptions import RequestException

_MAX_DIGEST = 36
_MAX_PARAMS_PER_BATCH = 100
_MAX_METRICS_PER_BATCH = 1000

# What a tracking server that is away, or broken, raises.
UNREACHABLE = (MlflowException, RequestException)


@final
class NestedRun:
    """A child of the active run, open inside a `with` block; `run_id` is None where no run is active.

    It ends FINISHED, FAILED after an Exception, KILLED after KeyboardInterrupt or SystemExit.
    """

    def __init__(self, name: str, tags: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.run_id: str | None = None
        self._tags = dict(tags or {})

    def __enter__(self) -> Self:
        parent = mlflow.active_run()
        if parent is not None:
            tags = {**self._tags, MLFLOW_PARENT_RUN_ID: parent.info.run_id}
            run = MlflowClient().create_run(parent.info.experiment_id, run_name=self.name, tags=tags)
            self.run_id = run.info.run_id
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.run_id is None:
            return
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        MlflowClient().set_terminated(self.run_id, status)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log all metrics of one step in one request."""
        _log_curves(self.run_id, [{**metrics, "step": step}])

    def log_curves(self, records: Sequence[Mapping[str, float]]) -> None:
        """Log the metrics of many steps; each record has its `step`."""
        _log_curves(self.run_id, records)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; long values are cut to MLflow's limit."""
        _log_params(self.run_id, params)

    def log_image(self, image: Path | str | Image.Image, name: str, step: int = 0) -> None:
        """Log an image (a file or a PIL image) under a name that the UI shows along the steps."""
        _log_image(self.run_id, image, name, step)

    def log_artifact(self, path: Path | str, artifact_path: str | None = None) -> None:
        """Copy a file or a folder into the run's artifacts, under the folder `artifact_path`."""
        _log_artifact(self.run_id, path, artifact_path)

    def set_tag(self, key: str, value: object) -> None:
        """Set a tag."""
        _set_tag(self.run_id, key, value)


def nested_run(name: str, tags: Mapping[str, str] | None = None) -> NestedRun:
    """Open a child run of the active run: `with nested_run("fit") as run: run.log_metrics({"loss": 0.1}, step=1)`."""
    return NestedRun(name, tags)


def log_metrics(metrics: Mapping[str, float], step: int = 0) -> None:
    """Log metrics to the active run."""
    _log_curves(active_run_id(), [{**metrics, "step": step}])


def log_params(params: Mapping[str, object]) -> None:
    """Log parameters to the active run; long values are cut to MLflow's limit."""
    _log_params(active_run_id(), params)


def log_image(image: Path | str | Image.Image, name: str, step: int = 0) -> None:
    """Log an image to the active run, see `NestedRun.log_image`."""
    _log_image(active_run_id(), image, name, step)


def log_artifact(path: Path | str, artifact_path: str | None = None) -> None:
    """Copy a file or a folder into the active run's artifacts, under the folder `artifact_path`."""
    _log_artifact(active_run_id(), path, artifact_path)


def set_tag(key: str, value: object) -> None:
    """Set a tag of the active run."""
    _set_tag(active_run_id(), key, value)


def log_dataset(name: str, source: Path | str, digest: str, rows: int, context: str = "training") -> None:
    """Log a data set as an input of the active run, with our own content digest (MLflow keeps 36 characters of it)."""
    run_id = active_run_id()
    if run_id is None:
        return
    dataset = Dataset(
        name=name,
        digest=digest[:_MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": str(source)}),
        profile=json.dumps({"num_rows": rows}),
    )
    MlflowClient().log_inputs(run_id, [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])])


def active_run_id() -> str | None:
    """The run that everything here reports to."""
    run = mlflow.active_run()
    return run.info.run_id if run is not None else None


def _log_curves(run_id: str | None, records: Sequence[Mapping[str, float]]) -> None:
    if run_id is None:
        return
    now = time.time_ns() // 1_000_000
    metrics = [
        Metric(name, float(value), now, int(record["step"]))
        for record in records
        for name, value in record.items()
        if name != "step"
    ]
    for start in range(0, len(metrics), _MAX_METRICS_PER_BATCH):
        MlflowClient().log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS_PER_BATCH])


def _log_params(run_id: str | None, params: Mapping[str, object]) -> None:
    if run_id is None:
        return
    entries = [Param(key, str(value)[:MAX_PARAM_VAL_LENGTH]) for key, value in params.items()]
    for start in range(0, len(entries), _MAX_PARAMS_PER_BATCH):
        MlflowClient().log_batch(run_id, params=entries[start : start + _MAX_PARAMS_PER_BATCH])


def _log_image(run_id: str | None, image: Path | str | Image.Image, name: str, step: int) -> None:
    if run_id is None:
        return
    opened: Any = image if isinstance(image, Image.Image) else Image.open(image)
    MlflowClient().log_image(run_id, opened.convert("RGB"), key=name, step=step, synchronous=True)


def _log_artifact(run_id: str | None, path: Path | str, artifact_path: str | None) -> None:
    if run_id is None:
        return
    log = MlflowClient().log_artifacts if Path(path).is_dir() else MlflowClient().log_artifact
    log(run_id, str(path), artifact_path)


def _set_tag(run_id: str | None, key: str, value: object) -> None:
    if run_id is not None:
        MlflowClient().set_tag(run_id, key, value)
