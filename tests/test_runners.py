"""The map over shards gives the same, in the same order, wherever it runs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from ingestion_samples import ingest_folder, items, tables, write_sidecars, write_tars
from runner_work import process_of, refuse_three
from store_work import Counting

from softrepa_pipeline.runners import LocalRunner, Runner, RunnerConfig, in_fresh_process, make_runner

needs_spark = pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None, reason="needs pyspark and Java"
)
MASTER = "local-cluster[2,1,1024]"


@pytest.mark.parametrize("num_processes", [1, 2])
def test_results_come_in_the_order_of_the_shards(num_processes: int) -> None:
    results = list(LocalRunner(num_processes).map(process_of, range(20)))
    assert [shard for shard, _ in results] == list(range(20))
    assert len({process for _, process in results}) == num_processes
    assert (os.getpid() in {process for _, process in results}) is (num_processes == 1)
    assert list(LocalRunner(num_processes).map(process_of, [])) == []


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_failure_ends_the_map(num_processes: int) -> None:
    with pytest.raises(ValueError, match="shard 3 is bad"):
        list(LocalRunner(num_processes).map(refuse_three, range(10)))


def test_fresh_work_shares_no_process() -> None:
    processes = {in_fresh_process(process_of, 0)[1] for _ in range(2)}
    assert len(processes) == 2
    assert os.getpid() not in processes
    with pytest.raises(ValueError, match="shard 3 is bad"):
        in_fresh_process(refuse_three, 3)


WORKERS = """
import os, signal, sys, time
from softrepa_pipeline.runners import LocalRunner
from runner_work import process_of
results = LocalRunner(2).map(process_of, range(1000))
print(*{process for _, process in (next(results) for _ in range(20))}, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_of_a_killed_parent_end() -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, "-c", WORKERS]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=False
    )
    workers = [Path(f"/proc/{process}") for process in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(worker.exists() and "zombie" not in (worker / "status").read_text() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("setting", [{"engine": "dask"}, {"num_processes": 0}])
def test_settings_that_make_no_sense_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"runner\.{next(iter(setting))}"):
        RunnerConfig(**setting)  # type: ignore[arg-type]


def same_everywhere(tmp_path: Path, runner: Runner) -> None:
    found = items(30)
    write_sidecars(tmp_path / "raw", found)
    write_tars(tmp_path / "tars", {**found, "0040.jpg": found["0002.jpg"]})
    for name in ("raw", "tars"):
        (tmp_path / name / "9999.tar").write_bytes(b"damaged") if name == "tars" else None
        wanted = ingest_folder(tmp_path / name, tmp_path / "out" / name)
        found_again = ingest_folder(tmp_path / name, tmp_path / "other" / name, runner)
        assert {**found_again, "folder": ""} == {**wanted, "folder": ""}
        assert tables(tmp_path / "other" / name) == tables(tmp_path / "out" / name)


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    same_everywhere(tmp_path, LocalRunner(2))


@pytest.mark.slow
@needs_spark
def test_a_spark_cluster_of_two_executors_writes_the_same_bytes(tmp_path: Path) -> None:
    runner = make_runner(RunnerConfig("spark", master=MASTER))
    processes = {process for _, process in runner.map(process_of, range(6))}
    assert len(processes) == 2
    assert os.getpid() not in processes
    same_everywhere(tmp_path, runner)


def test_a_process_is_given_its_work_once() -> None:
    counts = defaultdict(list)
    shards = list(range(12))
    for shard, (returned, process, count) in zip(shards, LocalRunner(2).map(Counting(), shards), strict=True):
        assert returned == shard
        counts[process].append(count)
    assert os.getpid() not in counts
    for found in counts.values():
        assert found == list(range(1, len(found) + 1))
