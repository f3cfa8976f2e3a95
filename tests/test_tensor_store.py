"""A store of tensors: nothing is lost or taken for whole that is not, whoever writes, is killed or damages it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from store_work import fill_slowly, keys, rows
from torch import Tensor

from softrepa_pipeline.runners import LocalRunner
from softrepa_pipeline.tensor_store import TensorStore, fill, shard_files


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    """Rows 0 to 8 in three shards, not in order."""
    store = TensorStore(tmp_path / "kind")
    for numbers in ([7, 1, 4], [0, 8, 2], [3, 6, 5]):
        store.add(keys(*numbers), rows(numbers))
    return store


def test_rows_come_in_the_order_that_is_asked_for(store: TensorStore) -> None:
    wanted = [5, 0, 7, 7, 3]
    found = store.rows(keys(*wanted))
    assert (len(found), found.shape) == (5, (5, 2, 3))
    assert torch.equal(found[torch.arange(5)], rows(wanted))
    assert torch.equal(found[torch.tensor([4, 0, 0])], rows([3, 5, 5]))
    assert len(store) == 9


def test_what_is_missing_is_told_in_order_each_once(store: TensorStore, tmp_path: Path) -> None:
    assert store.missing(keys(11, 3, 9, 11, 0, 10)) == keys(11, 9, 10)
    assert TensorStore(tmp_path / "new").missing(keys(2, 1)) == keys(2, 1)
    with pytest.raises(ValueError, match=rf"{store.folder}: 2 of 3 tensors are missing; run the stage that makes them"):
        store.rows(keys(9, 3, 10))


def test_wrong_keys_are_named(store: TensorStore) -> None:
    for wrong in ("A" * 32, "0" * 31, "g" * 32, " " * 32):
        with pytest.raises(ValueError, match=f"is 32 hex digits, not '{wrong}'"):
            store.add([wrong], rows([1]))
    with pytest.raises(ValueError, match="2 keys for 1 rows"):
        store.add(keys(20, 21), rows([1]))
    assert len(store) == 9


def test_keys_with_zeros_at_their_ends_are_told_apart(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "kind")
    zeros = ["0" * 32, "01" + "0" * 30, "0" * 30 + "01", "01" * 2 + "0" * 28]
    store.add(zeros, rows([0, 1, 2, 3]))
    assert torch.equal(store.rows(zeros[::-1])[torch.arange(4)], rows([3, 2, 1, 0]))
    assert store.missing(["02" + "0" * 30]) == ["02" + "0" * 30]


@pytest.mark.parametrize(
    ("shape", "dtype", "count"),
    # SD1.5's latents at 512 pixels, SD3's, and CLIP ViT-B's embeddings.
    [((4, 64, 64), torch.float16, 64), ((16, 64, 64), torch.bfloat16, 16), ((512,), torch.float16, 2048)],
)
def test_a_tensor_takes_hardly_more_than_its_own_bytes(
    shape: tuple[int, ...], dtype: torch.dtype, count: int, tmp_path: Path
) -> None:
    store = TensorStore(tmp_path / "kind")
    whole = torch.zeros(4 * count, *shape, dtype=dtype)
    # A part of a larger tensor: the public code's cache wrote all of it.
    store.add(keys(*range(count)), whole[count : 2 * count])
    on_disk = sum(file.stat().st_size for file in store.folder.rglob("*"))
    assert on_disk <= 1.05 * whole[:count].nbytes


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def replaced_by_text(file: Path) -> None:
    file.write_text("this is no shard")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, emptied, replaced_by_text])
def test_a_damaged_shard_is_set_aside_and_what_it_held_made_anew(
    store: TensorStore, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    file = shard_files(store.folder)[1]
    before = {each.name: each.read_bytes() for each in shard_files(store.folder)}
    damage(file)  # type: ignore[operator]
    assert store.verify() == [file]
    assert f"{file} is damaged or of another kind" in caplog.text
    assert store.verify() == []
    lost = store.missing(keys(*range(9)))
    assert len(lost) == 3
    fill(store, {each: int(each, 16) for each in lost}, rows, LocalRunner(), 3, "rows")
    assert torch.equal(store.rows(keys(*range(9)))[torch.arange(9)], rows(list(range(9))))
    others = {name for name in before if name != file.name}
    assert all((store.folder / name).read_bytes() == before[name] for name in others)


def test_filling_sees_the_damage_of_shards_that_it_needs_only(store: TensorStore) -> None:
    needed = store.rows(keys(0))
    assert len(needed) == 1
    files = {}
    for number in (0, 7):
        for file in shard_files(store.folder):
            before = file.stat().st_mtime_ns
            os.utime(file, ns=(before, before - 10**9))
        store.rows(keys(number))
        files[number] = max(shard_files(store.folder), key=lambda file: file.stat().st_mtime)
    for file in files.values():
        flip_a_bit(file)
    made: list[int] = []

    def compute(numbers: list[int]) -> Tensor:
        made.extend(numbers)
        return rows(numbers)

    fill(store, dict(zip(keys(8, 3, 0), (8, 3, 0), strict=True)), compute, LocalRunner(), 8, "rows")
    assert made == [8, 0]
    assert torch.equal(store.rows(keys(8, 3, 0))[torch.arange(3)], rows([8, 3, 0]))
    assert store.verify() == [files[7]]


def test_a_shard_of_another_kind_is_left_out(store: TensorStore, caplog: pytest.LogCaptureFixture) -> None:
    other = TensorStore(store.folder.parent / "other")
    other.add(keys(20), rows([20]))
    shutil.copy(shard_files(other.folder)[0], store.folder)
    assert store.missing(keys(20, 1)) == keys(20)
    assert "it holds no tensors of kind" in caplog.text
    assert len(store.verify()) == 1
    assert len(store) == 9


def test_tensors_of_two_shapes_are_refused(store: TensorStore) -> None:
    store.add(keys(20), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="hold tensors of different shapes or number formats"):
        store.rows(keys(1))


def write_again_and_again(folder: Path, worker: int) -> None:
    store = TensorStore(folder)
    for number in range(30):
        # Some shards are the same in all processes, some are one's own, some hold the keys of others in another order.
        store.add(keys(number, number + 1), rows([number, number + 1]))
        store.add(keys(100 * worker + number), rows([100 * worker + number]))
        order = [number, 200 + number][:: 1 if worker % 2 else -1]
        store.add(keys(*order), rows(order))
        assert not store.missing(keys(number, 100 * worker + number))


def test_several_writers_do_not_harm_each_other(tmp_path: Path) -> None:
    context, folder = multiprocessing.get_context("fork"), tmp_path / "kind"
    processes = [context.Process(target=write_again_and_again, args=(folder, worker)) for worker in (1, 2, 3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    store = TensorStore(tmp_path / "kind")
    assert store.verify() == []
    assert not list(store.folder.glob("*.partial"))
    written = [*range(31), *range(100, 130), *range(200, 230), *range(300, 330)]
    assert torch.equal(store.rows(keys(*written))[torch.arange(len(written))], rows(written))
    # One for each content: 30 that all write, 3 × 30 of one's own, 2 × 30 in one order or the other.
    assert len(shard_files(store.folder)) == 30 + 90 + 60


def test_workers_end_when_their_parent_is_killed_and_the_next_run_ends_with_the_same_files(
    tmp_path: Path,
) -> None:
    whole = TensorStore(tmp_path / "whole/kind")
    fill_slowly(whole.folder, 1)
    killed = TensorStore(tmp_path / "killed/kind")
    process = multiprocessing.get_context("spawn").Process(target=fill_slowly, args=(killed.folder, 2))
    process.start()
    deadline = time.monotonic() + 60
    while len(shard_files(killed.folder)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert 3 <= len(shard_files(killed.folder)) < 20
    fill_slowly(killed.folder, 1)
    assert [file.name for file in shard_files(killed.folder)] == [file.name for file in shard_files(whole.folder)]
    assert killed.verify() == []


def read_once(folder: Path) -> float:
    TensorStore(folder).rows(keys(1))
    return max(file.stat().st_mtime for file in shard_files(folder))


def test_reading_is_counted_as_use(store: TensorStore) -> None:
    for file in shard_files(store.folder):
        os.utime(file, (1e9, 1e9))
    assert read_once(store.folder) > 1.7e9
    assert [file.stat().st_mtime > 1.7e9 for file in shard_files(store.folder)].count(True) == 1


def test_items_are_computed_only_once(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "kind")
    items = dict(zip(keys(*range(7)), range(7), strict=True))
    fill(store, items, rows, LocalRunner(), 3, "rows")
    assert len(shard_files(store.folder)) == 3

    def never(numbers: list[int]) -> Tensor:
        raise AssertionError(numbers)

    fill(store, items, never, LocalRunner(), 3, "rows")
    assert torch.equal(store.rows(keys(6, 2))[torch.arange(2)], rows([6, 2]))
