"""A second ingestion does only what has changed, and ends as a first one would."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from ingestion_samples import ingest_folder, items, photo, rows, tables, write_jsonl, write_sidecars

from softrepa_pipeline.ingestion import iter_pairs, open_source
from softrepa_pipeline.ingestion.sources import base

NUM_IMAGES = 120


def many(count: int) -> dict[str, tuple[bytes, list[str]]]:
    """One photo made many: bytes after the end of a JPEG are no fault."""
    data = photo(0)
    return {
        f"{number:05d}.jpg": (data + number.to_bytes(4, "big"), [f"photo {number}", "a photo"])
        for number in range(100, 100 + count)
    }


def parts(output: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (output / "parts").iterdir()}


def assert_as_from_nothing(source: Path, output: Path, tmp_path: Path) -> None:
    ingest_folder(source, tmp_path / "fresh", max_images_per_caption=10_000)
    assert tables(output) == tables(tmp_path / "fresh")


def ingest(source: Path, output: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Returns the line of the log that says what has changed."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        ingest_folder(source, output, max_images_per_caption=10_000)
    return next(record.getMessage() for record in caplog.records if "unchanged" in record.getMessage())


@pytest.fixture(params=[write_sidecars, write_jsonl])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    written: Path = request.param(tmp_path / "raw", many(NUM_IMAGES))
    return written


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_MEAN_SAMPLES", 16)


def edit_caption(source: Path, number: int, captions: list[str]) -> None:
    sidecar, metadata = source / f"{number:05d}.txt", source / "metadata.jsonl"
    if sidecar.exists():
        sidecar.write_text("\n".join(captions))
        return
    records = [json.loads(line) for line in metadata.read_text().splitlines()]
    for record in records:
        if record["file_name"] == f"{number:05d}.jpg":
            record["captions"] = captions
    metadata.write_text("".join(json.dumps(record) + "\n" for record in records))


def add(source: Path, name: str, seed: int, captions: list[str], first: bool = False) -> None:
    (source / name).write_bytes(photo(seed))
    metadata = source / "metadata.jsonl"
    if not metadata.exists():
        (source / name).with_suffix(".txt").write_text("\n".join(captions))
        return
    line, before = json.dumps({"file_name": name, "captions": captions}) + "\n", metadata.read_text()
    metadata.write_text(line + before if first else before + line)


def test_only_what_changed_is_done_again(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "out"
    assert ingest(source, output, caplog) == f"ingest: {NUM_IMAGES} new, 0 changed, 0 removed, 0 unchanged"
    before, digest = parts(output), open_source(str(source)).digest
    assert len(before) >= 6
    assert ingest(source, output, caplog) == f"ingest: 0 new, 0 changed, 0 removed, {NUM_IMAGES} unchanged"
    assert parts(output) == before
    assert open_source(str(source)).digest == digest

    edit_caption(source, 150, ["quite another"])
    assert open_source(str(source)).digest != digest
    assert ingest(source, output, caplog) == f"ingest: 0 new, 1 changed, 0 removed, {NUM_IMAGES - 1} unchanged"
    # Two files of the one shard that has it.
    assert len(parts(output).items() - before.items()) == 2
    assert_as_from_nothing(source, output, tmp_path)


@pytest.mark.parametrize("name", ["00000.jpg", "00150a.jpg", "zzz.jpg"])
def test_new_samples_are_found_wherever_their_names_sort(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    ingest(source, tmp_path / "out", caplog)
    before = parts(tmp_path / "out")
    add(source, name, 7, ["new here"], first=name == "00000.jpg")
    assert ingest(source, tmp_path / "out", caplog) == f"ingest: 1 new, 0 changed, 0 removed, {NUM_IMAGES} unchanged"
    # In metadata the lines after a new one have moved, but no fault is reported by their number.
    assert len(parts(tmp_path / "out").items() - before.items()) == 2
    assert_as_from_nothing(source, tmp_path / "out", tmp_path)


def test_removed_replaced_and_late(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_sidecars(tmp_path / "raw", items(6))
    (source / "0004.txt").unlink()
    assert ingest(source, tmp_path / "out", caplog) == "ingest: 5 new, 0 changed, 0 removed, 0 unchanged"
    assert rows(tmp_path / "out/quarantine.parquet")[0]["reason"] == "no caption"
    (source / "0000.jpg").unlink()
    (source / "0000.txt").unlink()
    (source / "0001.jpg").write_bytes(photo(50))
    (source / "0004.txt").write_text("late, but here")
    (source / "0005.txt").write_text("photo 5\nand one more")
    assert ingest(source, tmp_path / "out", caplog) == "ingest: 1 new, 2 changed, 1 removed, 2 unchanged"
    captions = [pair.captions for pair in iter_pairs(tmp_path / "out")]
    assert ("late, but here",) in captions
    assert ("photo 5", "and one more") in captions
    assert rows(tmp_path / "out/quarantine.parquet") == []
    assert_as_from_nothing(source, tmp_path / "out", tmp_path)


def test_a_touched_file_is_read_again_but_changes_nothing_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_sidecars(tmp_path / "raw", items(6))
    ingest(source, tmp_path / "out", caplog)
    digest = ingest_folder(source, tmp_path / "out")["digest"]
    os.utime(source / "0003.jpg", ns=(1, 1))
    assert ingest(source, tmp_path / "out", caplog).endswith("0 removed, 6 unchanged")
    assert ingest_folder(source, tmp_path / "out")["digest"] == digest


def test_lines_that_moved_are_reported_where_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_jsonl(tmp_path / "raw", items(6))
    metadata = source / "metadata.jsonl"
    metadata.write_text(metadata.read_text() + "{\n")
    ingest(source, tmp_path / "out", caplog)
    metadata.write_text('{"file_name": "new.jpg", "text": "x"}\n' + metadata.read_text())
    ingest(source, tmp_path / "out", caplog)
    files = [row["file"] for row in rows(tmp_path / "out/quarantine.parquet")]
    assert files == ["new.jpg", "metadata.jsonl:8"]
    assert_as_from_nothing(source, tmp_path / "out", tmp_path)
