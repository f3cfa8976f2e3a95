"""Ingestion end to end: nothing is lost, every fault is in the quarantine table, too many faults stop it."""

import hashlib
import json
import shutil
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from softrepa_pipeline.ingestion import IngestConfig, Limits, iter_pairs, open_source
from softrepa_pipeline.ingestion import ingest as ingest_source

TABLES = ["duplicates.parquet", "pairs.parquet", "parts", "quarantine.parquet"]
SAMPLE = Path(__file__).parents[2] / "data/01_raw/coco_sample"


def photo(seed: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 48, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def huge_png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(2_501 * 20_000))) + chunk(b"IEND", b"")


def write_parquet(folder: Path, images: list[bytes], captions: list[list[str]]) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": images, "captions": captions}), folder / "data.parquet")
    return folder


def config(source: Path, output: Path, **settings: Any) -> IngestConfig:
    return IngestConfig(str(source), str(output), Limits(), **settings)


def ingest(config: IngestConfig) -> dict[str, Any]:
    return ingest_source(config, open_source(config.source))


def rows(file: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(file).to_pylist())


def test_the_packaged_photos(tmp_path: Path) -> None:
    manifest = ingest(config(SAMPLE, tmp_path))
    table = rows(tmp_path / "pairs.parquet")
    assert {key: manifest[key] for key in ("num_images", "num_captions", "num_quarantined", "reasons")} == {
        "num_images": 24,
        "num_captions": 120,
        "num_quarantined": 0,
        "reasons": {},
    }
    assert manifest["folder"] == str(tmp_path)
    assert json.loads(json.dumps(manifest)) == manifest
    assert sorted(file.name for file in tmp_path.iterdir()) == TABLES
    for row in table:
        data = (SAMPLE / row["source"]).read_bytes()
        assert row["image_id"] == hashlib.sha256(data).hexdigest()[:32]
        assert (row["width"], row["height"]) == Image.open(BytesIO(data)).size
    pairs = list(iter_pairs(tmp_path))
    assert [(pair.image_id, pair.image, list(pair.captions)) for pair in pairs] == [
        (row["image_id"], (SAMPLE / row["source"]).read_bytes(), row["captions"]) for row in table
    ]


def test_every_fault_is_in_the_quarantine_and_every_good_photo_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "raw"
    shutil.copytree(SAMPLE, source)
    names = sorted(file.name for file in source.glob("*.jpg"))
    (source / "truncated.jpg").write_bytes((source / names[0]).read_bytes()[:5_000])
    (source / "text.jpg").write_text("404 not found")
    (source / "silent.jpg").write_bytes(photo(0))
    (source / "huge.png").write_bytes(huge_png())
    (source / "unlisted.jpg").write_bytes(photo(1))
    (source / "folder.jpg").mkdir()
    faults = ["truncated.jpg", "text.jpg", "silent.jpg", "huge.png", "missing.jpg", "folder.jpg", "../out.jpg"]
    with (source / "metadata.jsonl").open("a") as lines:
        for name in faults:
            lines.write(json.dumps({"file_name": name, "text": " \n" if name == "silent.jpg" else "a caption"}) + "\n")

    manifest = ingest(config(source, tmp_path / "out"))
    assert {(row["file"], row["reason"]) for row in rows(tmp_path / "out/quarantine.parquet")} == {
        ("truncated.jpg", "damaged image"),
        ("text.jpg", "not an image"),
        ("silent.jpg", "empty caption"),
        ("huge.png", "more than 64000000 pixels"),
        ("missing.jpg", "file not found"),
        ("folder.jpg", "not a file"),
        ("../out.jpg", "path leaves the folder"),
        ("unlisted.jpg", "no caption"),
    }
    sizes = {row["file"]: row["bytes"] for row in rows(tmp_path / "out/quarantine.parquet")}
    assert (sizes["truncated.jpg"], sizes["text.jpg"], sizes["missing.jpg"], sizes["../out.jpg"]) == (5_000, 13, 0, 0)
    assert [row["source"] for row in rows(tmp_path / "out/pairs.parquet")] == names
    assert manifest["num_samples"] == 32
    assert manifest["num_quarantined"] == sum(manifest["reasons"].values()) == 8


def test_a_bad_caption_costs_only_itself(tmp_path: Path) -> None:
    captions = [["good", "", "x" * 3_000, "good ", "better"], ["", "\x00"]]
    source = write_parquet(tmp_path / "raw", [photo(0), photo(1)], captions)
    manifest = ingest(config(source, tmp_path / "out"))
    assert [pair.captions for pair in iter_pairs(tmp_path / "out")] == [("good", "better")]
    assert manifest["reasons"] == {"caption longer than 2000 characters": 1, "empty caption": 3}
    assert [row["file"][-1] for row in rows(tmp_path / "out/quarantine.parquet")] == ["0", "0", "1", "1"]


def test_samples_with_the_same_image_are_united(tmp_path: Path) -> None:
    images = [photo(0), photo(1), photo(0), photo(0), photo(1)]
    captions = [["a", "b"], ["c"], ["b", "d"], ["e", "a"], ["c"]]
    manifest = ingest(config(write_parquet(tmp_path / "raw", images, captions), tmp_path / "out"))
    table = rows(tmp_path / "out/pairs.parquet")
    assert [(row["source"], row["captions"]) for row in table] == [
        ("data.parquet:0", ["a", "b", "d", "e"]),
        ("data.parquet:1", ["c"]),
    ]
    assert [pair.image for pair in iter_pairs(tmp_path / "out")] == images[:2]
    assert (manifest["num_images"], manifest["num_captions"], manifest["num_merged"]) == (2, 5, 3)
    assert manifest["num_quarantined"] == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == TABLES


def digest(tmp_path: Path, images: list[bytes], captions: list[list[str]]) -> str:
    manifest = ingest(config(write_parquet(tmp_path / "raw", images, captions), tmp_path / "out"))
    return str(manifest["digest"])


def test_digest_follows_the_content_alone(tmp_path: Path) -> None:
    first = digest(tmp_path, [photo(0), photo(1)], [["a", "b"], ["c"]])
    assert digest(tmp_path, [photo(1), photo(0), b"bad"], [["c"], ["a", "b"], ["x"]]) == first
    assert digest(tmp_path, [photo(0), photo(1)], [["a"], ["c"]]) != first
    assert digest(tmp_path, [photo(0), photo(1)], [["a", "b, c"], ["c"]]) != first
    assert digest(tmp_path, [photo(0), photo(2)], [["a", "b"], ["c"]]) != first


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    for output in ("1", "2"):
        ingest(config(SAMPLE, tmp_path / output))
    for name in ("pairs.parquet", "quarantine.parquet"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize(
    ("num_good", "num_bad", "fails"), [(81, 19, False), (80, 20, False), (39, 10, True), (1, 9, False), (0, 3, True)]
)
def test_share_of_bad_samples(tmp_path: Path, num_good: int, num_bad: int, fails: bool) -> None:
    images = [b"bad"] * num_bad + [photo(seed) for seed in range(num_good)]
    source = write_parquet(tmp_path / "raw", images, [["a"]] * len(images))
    if fails:
        with pytest.raises(ValueError, match="are bad") as caught:
            ingest(config(source, tmp_path / "out"))
        assert f"{num_bad} of {len(images)} samples" in str(caught.value)
        assert f"not an image ({num_bad})" in str(caught.value)
        assert str(tmp_path / "out/quarantine.parquet") in str(caught.value)
    else:
        assert ingest(config(source, tmp_path / "out"))["num_images"] == num_good
    assert len(rows(tmp_path / "out/quarantine.parquet")) == num_bad
    assert (tmp_path / "out/pairs.parquet").exists() is not fails
    assert not list((tmp_path / "out").glob("*.partial"))


def test_an_earlier_result_outlives_a_failed_run(tmp_path: Path) -> None:
    ingest(config(SAMPLE, tmp_path / "out"))
    before = (tmp_path / "out/pairs.parquet").read_bytes()
    with pytest.raises(ValueError, match=r"ingest\.max_bad_share"):
        ingest(config(write_parquet(tmp_path / "raw", [b"bad"] * 10, [["a"]] * 10), tmp_path / "out"))
    assert (tmp_path / "out/pairs.parquet").read_bytes() == before


def test_more_images_than_one_row_group(tmp_path: Path) -> None:
    # Bytes after the end of a JPEG are no fault, and make one photo many distinct ones.
    images = [photo(0) + struct.pack(">I", number) for number in range(1_200)]
    manifest = ingest(
        config(
            write_parquet(tmp_path / "raw", images, [[f"caption {number}"] for number in range(1_200)]),
            tmp_path / "out",
        )
    )
    assert manifest["num_images"] == 1_200
    assert [pair.image for pair in iter_pairs(tmp_path / "out")] == images
    assert pq.ParquetFile(tmp_path / "out/pairs.parquet").num_row_groups == 2


def test_names_that_are_not_utf8_are_reported(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/b\udcff.jpg").write_bytes(b"bad")
    (tmp_path / "raw/a.jpg").write_bytes(photo(0))
    (tmp_path / "raw/a.txt").write_text("a")
    assert ingest(config(tmp_path / "raw", tmp_path / "out"))["reasons"] == {"no caption": 1}
    assert rows(tmp_path / "out/quarantine.parquet") == [{"file": "b?.jpg", "reason": "no caption", "bytes": 3}]


def test_output_is_never_its_own_source(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "pairs.parquet"):
        with pytest.raises(ValueError, match="would overwrite"):
            config(source, tmp_path)
    with pytest.raises(ValueError, match="max_bad_share"):
        config(SAMPLE, tmp_path, max_bad_share=2.0)


def test_missing_source_leaves_no_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--params dataset=FOLDER"):
        ingest(config(tmp_path / "nowhere", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
