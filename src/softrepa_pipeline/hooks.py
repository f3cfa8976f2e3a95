"""What kedro-mlflow leaves out: node times and status, commit, machine, interruption; and errors a person can read."""

from __future__ import annotations

import atexit
import logging
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import distributions, version
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, final

import mlflow
import psutil
from kedro.config import MissingConfigException
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from omegaconf.errors import OmegaConfBaseException

from softrepa_pipeline.alerts import AlertConfig, alert
from softrepa_pipeline.config import build

logger = logging.getLogger(__name__)

ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]

# The errors that say what a person should change; any other is our fault and keeps its traceback.
USER_ERRORS = (
    ValueError,
    OSError,  # a file that is not there or not allowed, a full disk
    DatasetError,
    MissingConfigException,
    OmegaConfBaseException,
)

_MAX_DIFF = 1_000_000  # characters
_HOST, _PID, _STARTED = "process.host", "process.pid", "process.started"
_ORCHESTRATOR = "dagster_run_id"  # a tag of runs whose nodes may each have a process of their own
_SAME_START = 2.0  # seconds; the kernel's boot time, and with it a process's start, moves by clock corrections


@final
class ProjectHooks:
    """One MLflow run from its start (kedro-mlflow opens it) to its end, which is never FINISHED unless it is."""

    def __init__(self) -> None:
        self._run_id: str | None = None
        self._num_nodes = 0
        self._num_done = 0
        self._started: dict[str, float] = {}
        self._previous_handler: Any = None
        self._alerts: Mapping[str, Any] = {}
        self._is_shared = False

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Remember who is told of a failed run."""
        self._alerts = context.params.get("alerts", {})

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Tag the run, watch for interruption, and close the runs that an earlier process left behind."""
        self._num_nodes, self._num_done = len(pipeline.nodes), 0
        run = mlflow.active_run()
        self._is_shared = run is not None and _ORCHESTRATOR in MlflowClient().get_run(run.info.run_id).data.tags
        if not self._is_shared:
            self._watch_for_interruption()
        if run is None:
            return
        self._run_id = run.info.run_id
        _set_tags(self._run_id, {**({} if self._is_shared else process_tags()), **_pipeline_tags(run_params)})
        killed = close_abandoned_runs(run.info.experiment_id, self._run_id)
        _set_tags(self._run_id, {**_hardware_tags(), **_commit_tags(Path(run_params["project_path"]))})
        _log_sources(self._run_id, Path(run_params["project_path"]))
        if killed:
            _set_tags(self._run_id, {"found_killed": ",".join(killed)})
            logger.info("marked as KILLED in MLflow, their process is gone: %s", ", ".join(killed))

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Start the node's clock."""
        if self._run_id is None and (run := mlflow.active_run()) is not None:
            # The run was begun by another process, see orchestration.py.
            self._run_id, self._is_shared = run.info.run_id, True
        self._started[node.short_name] = time.perf_counter()
        self._report(node.short_name, "running")

    @hook_impl
    def after_node_run(self, node: Node, outputs: dict[str, Any]) -> None:
        """Log the node's duration, and whether its stage had to run."""
        self._num_done += 1
        skipped = [value["skipped"] for value in outputs.values() if isinstance(value, dict) and "skipped" in value]
        if self._run_id is not None and skipped:
            _set_tags(self._run_id, {f"cache.{node.short_name}": "hit" if all(skipped) else "miss"})
        seconds = self._report(node.short_name, "done")
        logger.info("%s: done in %.1f s (%d of %d)", node.short_name, seconds, self._num_done, self._num_nodes)

    @hook_impl
    def on_node_error(self, error: Exception, node: Node) -> None:
        """Log the node's failure; a run that is shared with other processes ends here, where the error is known."""
        self._report(node.short_name, "failed")
        if self._is_shared:
            self._log_error(error)
            mlflow.end_run("FAILED")
            self._end()

    @hook_impl
    def on_pipeline_error(self, error: Exception, run_params: dict[str, Any]) -> None:
        """Keep the traceback with the run, which kedro-mlflow has just marked FAILED, and send an alert."""
        self._log_error(error)
        pipeline = _pipeline_tags(run_params)["kedro.pipeline"]
        event = {"event": "run failed", "pipeline": pipeline, "error": one_line(error), "mlflow_run": self._run_id}
        alert(build(AlertConfig, self._alerts, "alerts"), event)
        self._end()

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Say where the run can be seen."""
        if self._run_id is not None:
            logger.info("MLflow run %s in %s; `make ui` opens it", self._run_id, mlflow.get_tracking_uri())
        if self._is_shared:
            mlflow.end_run()  # kedro-mlflow leaves a run open that it did not begin
        self._end()

    def _log_error(self, error: Exception) -> None:
        if self._run_id is not None:
            _set_tags(self._run_id, {"error": one_line(error)})
            MlflowClient().log_text(self._run_id, "".join(traceback.format_exception(error)), "traceback.txt")

    def _report(self, name: str, status: str) -> float:
        seconds = time.perf_counter() - self._started[name]
        if status != "running":
            del self._started[name]
        if self._run_id is not None:
            key = re.sub(r"[^\w./ -]", "_", name)
            duration = (
                [Metric(f"seconds/{key}", seconds, time.time_ns() // 1_000_000, 0)] if status != "running" else []
            )
            MlflowClient().log_batch(self._run_id, metrics=duration, tags=[RunTag(f"status.{key}", status)])
        return seconds

    def _watch_for_interruption(self) -> None:
        """SIGTERM becomes KeyboardInterrupt; at exit an open run becomes KILLED.

        Kedro calls no hook on KeyboardInterrupt, and MLflow's own exit handler would call the run FINISHED; ours is
        registered after it and so called before it.
        """
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)
        atexit.unregister(self._close_interrupted_run)
        atexit.register(self._close_interrupted_run)

    def _close_interrupted_run(self) -> None:
        if self._run_id is None:
            return
        run_id = self._run_id
        for name in list(self._started):
            self._report(name, "interrupted")
        close_as_killed(run_id, "interrupted by Ctrl-C or SIGTERM")
        mlflow.end_run("KILLED")
        self._run_id = None
        logger.info("interrupted: MLflow run %s is marked as KILLED; the same command goes on from here", run_id)

    def _end(self) -> None:
        self._run_id, self._is_shared = None, False
        self._started.clear()
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None


def close_abandoned_runs(experiment_id: str, own_run_id: str) -> list[str]:
    """Mark this host's RUNNING runs whose process is gone (`kill -9`, power cut) as KILLED; return their ids."""
    running = MlflowClient().search_runs(
        [experiment_id], f"attributes.status = 'RUNNING' and tags.`{_HOST}` = '{socket.gethostname()}'"
    )
    abandoned = [run.info.run_id for run in running if run.info.run_id != own_run_id and not _is_alive(run)]
    for run_id in abandoned:
        # Another run that starts at the same moment closes them too, and one of both comes second.
        with suppress(MlflowException):
            close_as_killed(run_id, f"its process was gone when run {own_run_id} started")
    return abandoned


def close_as_killed(run_id: str, reason: str) -> None:
    """Mark a run and those of its children that still run as KILLED."""
    client = MlflowClient()
    experiment_id = client.get_run(run_id).info.experiment_id
    children = client.search_runs(
        [experiment_id], f"attributes.status = 'RUNNING' and tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}'"
    )
    for closed in [*(child.info.run_id for child in children), run_id]:
        client.set_tag(closed, "killed", reason)
        client.set_terminated(closed, "KILLED")


def process_tags() -> dict[str, str]:
    """Return what tells this process from any other that had its number."""
    process = psutil.Process()
    return {_HOST: socket.gethostname(), _PID: str(process.pid), _STARTED: f"{process.create_time():.2f}"}


def one_line(error: BaseException) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def explain_errors(otherwise: ExceptHook) -> ExceptHook:
    """Return an excepthook that ends with `error: <what to do>` for a user's error, without a traceback.

    SOFTREPA_TRACEBACK=1 shows the traceback too. Other exceptions go to the hook `otherwise`.
    """

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, USER_ERRORS):
            otherwise(kind, error, trace)
            return
        sys.stdout.flush()
        if os.environ.get("SOFTREPA_TRACEBACK", "0") != "0":
            otherwise(kind, error, trace)
        sys.stderr.write(f"error: {one_line(error)}\n")

    return show


def _raise_keyboard_interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _is_alive(run: Run) -> bool:
    pid, started = int(run.data.tags[_PID]), float(run.data.tags[_STARTED])
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < _SAME_START
    except psutil.NoSuchProcess:
        return False


def _set_tags(run_id: str, tags: dict[str, str]) -> None:
    MlflowClient().log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _pipeline_tags(run_params: dict[str, Any]) -> dict[str, str]:
    names = run_params.get("pipeline_names") or [run_params.get("pipeline_name") or "__default__"]
    return {"kedro.env": str(run_params["env"] or "local"), "kedro.pipeline": "+".join(names)}


def _commit_tags(project: Path) -> dict[str, str]:
    """Return the commit, with `-dirty` behind it where the tree differs; `none` outside git or before a commit."""
    commit, status = _git(project, "rev-parse", "HEAD"), _git(project, "status", "--porcelain")
    return {"git.commit": "none" if commit is None else commit.strip() + ("-dirty" if status else "")}


def _log_sources(run_id: str, project: Path) -> None:
    """Keep what the commit does not say: the installed packages, and how the tree differs."""
    packages = sorted({f"{own.name}=={own.version}" for own in distributions()}, key=str.lower)
    MlflowClient().log_text(run_id, "\n".join(packages) + "\n", "environment.txt")
    if difference := _git(project, "diff", "HEAD"):
        MlflowClient().log_text(run_id, difference[:_MAX_DIFF], "uncommitted.diff")


def _git(project: Path, *arguments: str) -> str | None:
    """What git says; None where it cannot say anything."""
    try:
        return subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True, check=True).stdout
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None


def _hardware_tags() -> dict[str, str]:
    import torch  # here, so that `kedro --help` does not wait for it

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "cpu": _cpu_model(),
        "cpu.cores": str(os.cpu_count()),
        "memory.gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "gpu": ", ".join(gpus) or "none",
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found.group(1) if found else platform.processor() or platform.machine()
