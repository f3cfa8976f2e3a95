"""A small Kedro project with the real settings, hooks and tracking, run as a user runs it: `kedro run`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from softrepa_pipeline import hooks
from softrepa_pipeline.hooks import (
    USER_ERRORS,
    close_abandoned_runs,
    close_as_killed,
    explain_errors,
    one_line,
    process_tags,
)

ROOT = Path(__file__).parents[1]
KEDRO = Path(sys.executable).with_name("kedro")

REGISTRY = """
import time
from pathlib import Path

from kedro.pipeline import Pipeline, node

from softrepa_pipeline.tracking import log_dataset, nested_run


def ingest(path):
    log_dataset("photos", path, "0123456789abcdef" * 4, rows=24)
    return path


def fit(path, steps):
    with nested_run("fit") as run:
        for step in range(steps):
            run.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
    return {"steps": steps, "skipped": False}


def wait(path):
    with nested_run("fit"):
        Path("waiting").touch()
        time.sleep(600)


def complain(path):
    raise ValueError(f"learning_rate must be\\n  positive, not {path!r}")


def register_pipelines():
    first = [node(ingest, "params:folder", "photos", name="ingest")]
    return {
        "__default__": Pipeline([*first, node(fit, ["photos", "params:fit.steps"], "steps", name="fit")]),
        "wait": Pipeline([*first, node(wait, "photos", None, name="fit")]),
        "complain": Pipeline([*first, node(complain, "photos", None, name="fit")]),
    }
"""

PYPROJECT = """
[tool.kedro]
package_name = "tiny_project"
project_name = "tiny_project"
kedro_init_version = "1.7.0"
source_dir = "src"
"""


class Project:
    """A project folder, `kedro run` in it, and the MLflow store that this writes."""

    def __init__(self, folder: Path) -> None:
        package = folder / "src" / "tiny_project"
        package.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(PYPROJECT)
        (package / "__init__.py").touch()
        (package / "settings.py").write_text("from softrepa_pipeline.settings import *\n")
        (package / "pipeline_registry.py").write_text(REGISTRY)
        (folder / "conf/base").mkdir(parents=True)
        (folder / "conf/base/parameters.yml").write_text(
            "folder: ${project:photos}\nfit: {steps: 3, rate: 0.1}\nalerts: {command: [tee, alert.json]}\n"
        )
        (folder / "conf/base/catalog.yml").write_text("{}\n")
        (folder / "conf/other").mkdir()
        (folder / "conf/other/parameters.yml").write_text("fit: {rate: 0.2}\n")
        shutil.copy(ROOT / "conf/base/mlflow.yml", folder / "conf/base/mlflow.yml")
        shutil.copy(ROOT / "conf/logging.yml", folder / "conf/logging.yml")
        self.folder = folder
        self.client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `kedro run` with the usual reaction to SIGINT, which a shell's background job would not have."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "KEDRO_"))}
        return subprocess.Popen(
            [KEDRO, "run", *arguments],
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run to the end; return the exit code and the output."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def stop_while_waiting(self, number: signal.Signals) -> tuple[int, str]:
        """Run the waiting pipeline and send it a signal while its node is at work."""
        marker = self.folder / "waiting"
        marker.unlink(missing_ok=True)
        process = self.start("--pipelines", "wait")
        while not marker.exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def artifact(self, name: str) -> str:
        """A text that the latest run has logged."""
        [file] = (self.folder / "mlartifacts").glob(f"{self.latest()[0].info.run_id}/artifacts/{name}")
        return file.read_text()

    def latest(self) -> tuple[Run, Run | None]:
        """Return the latest parent run, and its child where it has one."""
        experiment = self.client.get_experiment_by_name("softrepa")
        assert experiment is not None
        runs = self.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
        parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        return parent, children[0] if children else None


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


def test_a_run_is_finished_with_times_tags_and_its_child(project: Project) -> None:
    code, output = project.run("--env", "other")
    assert code == 0, output
    assert "make ui" in output.splitlines()[-1]
    assert "Warning" not in output
    parent, child = project.latest()
    assert parent.info.status == "FINISHED"
    assert {"seconds/ingest", "seconds/fit"} <= parent.data.metrics.keys()
    tags = parent.data.tags
    assert (tags["status.ingest"], tags["status.fit"]) == ("done", "done")
    assert tags["kedro.env"] == "other"
    assert tags["git.commit"] == "none"
    assert {"python", "torch", "cpu", "cpu.cores", "memory.gib", "gpu", "process.pid"} <= tags.keys()
    assert tags["cache.fit"] == "miss"
    assert "cache.ingest" not in tags
    assert f"torch=={tags['torch']}" in project.artifact("environment.txt").splitlines()
    assert parent.data.params["folder"] == str(project.folder / "photos")
    assert parent.data.params["fit.steps"] == "3", "an environment adds to a parameter group, it does not replace it"
    dataset = parent.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("photos", ("0123456789abcdef" * 4)[:36])
    assert child is not None
    assert child.info.status == "FINISHED"
    assert [m.step for m in project.client.get_metric_history(child.info.run_id, "loss")] == [0, 1, 2]


def test_what_is_not_committed_stays_with_the_run(tmp_path: Path) -> None:
    project = Project(tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "conf", "src"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "conf/base/parameters.yml").write_text("folder: ${project:photos}\nfit: {steps: 4, rate: 0.1}\n")
    code, output = project.run()
    assert code == 0, output
    assert project.latest()[0].data.tags["git.commit"].endswith("-dirty")
    assert "+fit: {steps: 4, rate: 0.1}" in project.artifact("uncommitted.diff")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_run_is_killed(project: Project, number: signal.Signals) -> None:
    code, output = project.stop_while_waiting(number)
    assert code != 0, output
    assert "Traceback" not in output
    parent, child = project.latest()
    assert child is not None
    assert (parent.info.status, child.info.status) == ("KILLED", "KILLED"), output
    assert parent.data.tags["status.fit"] == "interrupted"


def test_a_user_error_fails_the_run_and_ends_with_one_clear_line(project: Project) -> None:
    code, output = project.run("--pipelines", "complain")
    assert code == 1
    message = f"learning_rate must be positive, not '{project.folder / 'photos'}'"
    assert output.splitlines()[-1] == f"error: {message}"
    assert "Traceback" not in output
    parent, _ = project.latest()
    assert parent.info.status == "FAILED"
    assert parent.data.tags["error"] == message
    assert parent.data.tags["status.fit"] == "failed"
    alert = json.loads((project.folder / "alert.json").read_text())
    assert alert == {"event": "run failed", "pipeline": "complain", "error": message, "mlflow_run": parent.info.run_id}
    assert "traceback.txt" in [file.path for file in project.client.list_artifacts(parent.info.run_id)]


def test_the_next_start_closes_what_kill_9_left_and_nothing_else(project: Project) -> None:
    project.stop_while_waiting(signal.SIGKILL)
    abandoned, child = project.latest()
    assert child is not None
    assert (abandoned.info.status, child.info.status) == ("RUNNING", "RUNNING")
    alive = project.client.create_run(abandoned.info.experiment_id, tags=_tags_of_this_process(abandoned))
    reused = {**_tags_of_this_process(abandoned), "process.started": "1.0"}
    stranger = project.client.create_run(abandoned.info.experiment_id, tags=reused)

    code, output = project.run("--pipelines", "complain")

    assert code == 1, output
    ids = [run.info.run_id for run in (abandoned, child, stranger, alive)]
    assert [project.client.get_run(run_id).info.status for run_id in ids] == ["KILLED", "KILLED", "KILLED", "RUNNING"]
    assert "was gone" in project.client.get_run(ids[0]).data.tags["killed"]
    project.client.set_terminated(alive.info.run_id)


def test_runs_that_start_at_once_close_what_was_left_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = threading.Barrier(4)

    def close(run_id: str, reason: str) -> None:
        at_once.wait(20)
        close_as_killed(run_id, reason)

    monkeypatch.setattr(hooks, "close_as_killed", close)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    try:
        experiment = mlflow.create_experiment("left behind", str(tmp_path / "artifacts"))
        gone = {**process_tags(), "process.started": "1.0"}
        left = [MlflowClient().create_run(experiment, tags=gone).info.run_id for _ in range(8)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda own: close_abandoned_runs(experiment, f"run {own}"), range(4)))
        assert {mlflow.get_run(run_id).info.status for run_id in left} == {"KILLED"}
    finally:
        mlflow.set_tracking_uri(previous)


def _tags_of_this_process(run: Run) -> dict[str, str]:
    process = psutil.Process()
    host = run.data.tags["process.host"]
    return {"process.host": host, "process.pid": str(process.pid), "process.started": str(process.create_time())}


def test_only_user_errors_lose_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passed_on: list[BaseException] = []
    show = explain_errors(lambda kind, error, trace: passed_on.append(error))
    fault, mistake = KeyError("x"), FileNotFoundError("no folder data/photos: set `dataset`")

    show(KeyError, fault, None)
    show(FileNotFoundError, mistake, None)
    assert passed_on == [fault]
    assert capsys.readouterr().err == "error: no folder data/photos: set `dataset`\n"

    monkeypatch.setenv("SOFTREPA_TRACEBACK", "1")
    show(FileNotFoundError, mistake, None)
    assert passed_on == [fault, mistake]
    assert issubclass(FileNotFoundError, USER_ERRORS)
    assert one_line(ValueError()) == "ValueError"
