"""kill -9 at any moment: the next ingestion completes, and its tables are those of one that nobody disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ingestion_samples import ingest_folder, items, tables, write_jsonl, write_tars

NUM_TARS = 8
INGEST = """
import sys
from softrepa_pipeline.ingestion import IngestConfig, Limits, ingest, open_source
from softrepa_pipeline.runners import LocalRunner
source, output, num_processes = sys.argv[1:]
config = IngestConfig(source, output, Limits())
print("ready", flush=True)
ingest(config, open_source(source), LocalRunner(int(num_processes)))
print("done", flush=True)
"""


def start(source: Path, output: Path, num_processes: int) -> subprocess.Popen[str]:
    """An ingestion in a process of its own, which has just begun."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", INGEST, str(source), str(output), str(num_processes)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def seconds_of(process: subprocess.Popen[str]) -> float:
    started = time.perf_counter()
    assert process.stdout is not None
    assert process.stdout.read() == "done\n"
    assert process.wait() == 0
    return time.perf_counter() - started


def make_source(folder: Path) -> Path:
    """Tars with a duplicate, a flood of faults and a damaged end, so that every table has rows."""
    found = items(NUM_TARS * 20)
    found["0150.jpg"] = (found["0003.jpg"][0], ["photo 3 once more"])
    found["0151.jpg"] = (b"damaged", ["nothing to see"])
    write_tars(folder, found, size=20)
    (folder / "99999.tar").write_bytes(b"no tar")
    return folder


@pytest.mark.parametrize(
    ("num_kills", "num_processes"),
    [(3, 1), pytest.param(20, 1, marks=pytest.mark.slow), pytest.param(20, 2, marks=pytest.mark.slow)],
)
def test_killed_at_random_moments_the_next_run_ends_with_the_same_bytes(
    tmp_path: Path, num_kills: int, num_processes: int
) -> None:
    source = make_source(tmp_path / "raw")
    whole = seconds_of(start(source, tmp_path / "wanted", num_processes))
    wanted = tables(tmp_path / "wanted")
    assert len([name for name in wanted if name.startswith("parts/")]) == 2 * (NUM_TARS + 1)
    rng = np.random.default_rng(num_kills)
    num_cut = 0
    for number in range(num_kills):
        output = tmp_path / f"out{number}"
        process = start(source, output, num_processes)
        time.sleep(rng.uniform(0, whole))
        num_cut += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = {name: content for name, content in tables(output).items() if not name.endswith(".partial")}
        # What stands under its name is whole, whenever the kill came.
        assert before.items() <= wanted.items()
        ingest_folder(source, output)
        assert tables(output) == wanted
    assert num_cut > num_kills / 2


@pytest.mark.slow
def test_killed_again_and_again_it_gets_on(tmp_path: Path) -> None:
    source = make_source(tmp_path / "raw")
    whole = seconds_of(start(source, tmp_path / "wanted", 1))
    num_parts = []
    for _ in range(3):
        process = start(source, tmp_path / "out", 1)
        time.sleep(whole / 3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        parts = tmp_path / "out/parts"
        num_parts.append(len(list(parts.glob("*.parquet"))) if parts.is_dir() else 0)
    assert num_parts == sorted(num_parts)
    assert num_parts[-1] > 0
    ingest_folder(source, tmp_path / "out")
    assert tables(tmp_path / "out") == tables(tmp_path / "wanted")


def test_interrupted_by_ctrl_c_it_goes_on(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "raw", items(200))
    process = start(source, tmp_path / "out", 2)
    parts = tmp_path / "out/parts"
    while not (parts.is_dir() and list(parts.glob("*.parquet"))) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait()
    ingest_folder(source, tmp_path / "out")
    ingest_folder(source, tmp_path / "wanted")
    assert tables(tmp_path / "out") == tables(tmp_path / "wanted")
