"""Caches under a limit: what was not used for longest goes first, what a stage has just used never does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from softrepa_pipeline.caches import CacheConfig, limited, prune, usage
from softrepa_pipeline.commands import main
from softrepa_pipeline.tensor_store import TensorStore, shard_files

NOW = time.time()


def add(folder: Path, number: int, days_ago: float) -> Path:
    """A shard of a kilobyte and its header that was last used so long ago."""
    store = TensorStore(folder)
    before = set(shard_files(folder))
    store.add([f"{number:032x}"], torch.full((1, 256), float(number)))
    (file,) = set(shard_files(folder)) - before
    os.utime(file, (NOW - days_ago * 86400,) * 2)
    return file


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four shards in two stores below two folders, the oldest first."""
    stores = (tmp_path / "latents/a", tmp_path / "clip/b")
    return [add(stores[number % 2], number, days_ago=10 - number) for number in range(4)]


def folders(tmp_path: Path) -> list[Path]:
    return [tmp_path / "latents", tmp_path / "clip", tmp_path / "none"]


def left(files: list[Path]) -> list[int]:
    return [number for number, file in enumerate(files) if file.exists()]


def test_the_oldest_go_until_the_limit_holds(files: list[Path], tmp_path: Path) -> None:
    size = sum(file.stat().st_size for file in files)
    assert prune(folders(tmp_path)) == 0
    assert prune(folders(tmp_path), max_bytes=size) == 0
    freed = prune(folders(tmp_path), max_bytes=size * 0.6)
    assert left(files) == [2, 3]
    assert freed == size - sum(file.stat().st_size for file in files[2:])
    assert TensorStore(tmp_path / "latents/a").missing([f"{number:032x}" for number in (0, 2)]) == ["0" * 32]


def test_what_was_not_used_for_long_goes(files: list[Path], tmp_path: Path) -> None:
    prune(folders(tmp_path), unused_since=NOW - 8.5 * 86400)
    assert left(files) == [2, 3]


def test_a_stage_keeps_what_it_has_used(files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with limited(folders(tmp_path), CacheConfig(max_gb=1e-6)):
        TensorStore(tmp_path / "latents/a").rows(["0" * 32])
        new = add(tmp_path / "clip/b", 9, days_ago=0)
        os.utime(new, (time.time(),) * 2)
    assert left([*files, new]) == [0, 4]
    assert "above cache.max_gb, and all of it was just used" in caplog.text
    with limited(folders(tmp_path), CacheConfig()):
        pass
    assert left([*files, new]) == [0, 4]


def test_leftovers_go_but_not_the_file_that_is_being_written(files: list[Path], tmp_path: Path) -> None:
    abandoned, growing = (tmp_path / "clip/b" / f"{name}.safetensors.0.partial" for name in ("old", "new"))
    for file in (abandoned, growing):
        file.write_bytes(bytes(100))
    os.utime(abandoned, (NOW - 7200,) * 2)
    (tmp_path / "clip/b/x.safetensors.damaged").write_bytes(bytes(10))
    assert prune(folders(tmp_path)) == 110
    assert growing.exists()
    assert left(files) == [0, 1, 2, 3]


def test_usage_counts(files: list[Path], tmp_path: Path) -> None:
    first, second = usage(folders(tmp_path))
    assert first.store.folder == tmp_path / "clip/b"
    assert (first.num_tensors, first.num_shards) == (2, 2)
    assert second.num_bytes == sum(file.stat().st_size for file in files[::2])
    assert second.last_used == pytest.approx(NOW - 8 * 86400, abs=1)


def test_a_limit_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cache\.max_gb must be above 0, or null for no limit, not 0"):
        CacheConfig(0.0)


def test_the_command_lists_verifies_and_prunes(files: list[Path], tmp_path: Path) -> None:
    params = (
        f"folders.latents={tmp_path / 'latents'},folders.clip={tmp_path / 'clip'},folders.texts={tmp_path / 'none'}"
    )

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["cache", arguments[0], "--params", params, *arguments[1:]])
        assert done.exit_code == 0, done.output
        return done.output

    lines = run("list").splitlines()
    assert [line.rpartition("/")[2] for line in lines[:2]] == ["b", "a"]
    assert "2 tensors" in lines[0]
    assert lines[-1] == f"{sum(file.stat().st_size for file in files) / 1000:.3g} kB in all"
    files[1].write_bytes(b"")
    assert "1 damaged   " in run("verify")
    size = files[3].stat().st_size
    output = run("prune", "--older-than", "9.5", "--max-gb", str(size / 1e9))
    assert left(files) == [3]
    assert output == f"{2 * size / 1000:.3g} kB freed\n"
