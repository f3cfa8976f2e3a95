"""Every accepted format gives the same pairs; what a format cannot give is said."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path
from typing import Any

import datasets
import pytest
from ingestion_samples import (
    WRITERS,
    coco_json,
    ingest_folder,
    items,
    photo,
    rows,
    write_coco,
    write_images,
    write_jsonl,
    write_parquet,
    write_sidecars,
    write_tar,
)

from softrepa_pipeline.ingestion import iter_pairs, open_source


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("it asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_pairs(tmp_path: Path, name: str) -> None:
    found = items(10)
    wanted = ingest_folder(write_sidecars(tmp_path / "wanted", found), tmp_path / "out")
    source = WRITERS[name](tmp_path / "raw", found)
    manifest = ingest_folder(source, tmp_path / "other")
    # A CSV has one row a caption, so that an image is found twice.
    assert {key: manifest[key] for key in ("digest", "num_images", "num_captions", "has_images", "reasons")} == {
        "digest": wanted["digest"],
        "num_images": 10,
        "num_captions": 20,
        "has_images": True,
        "reasons": {},
    }
    assert {pair.image for pair in iter_pairs(tmp_path / "other")} == {data for data, _ in found.values()}


@pytest.mark.parametrize("name", ["caption file", "jsonl", "jsonl.gz"])
def test_captions_without_images(tmp_path: Path, name: str) -> None:
    found = items(5)
    lines = "".join(json.dumps({"image_id": name, "captions": own}) + "\n" for name, (_, own) in found.items())
    source = tmp_path / {"caption file": "captions_train2017.json", "jsonl": "x.jsonl", "jsonl.gz": "x.jsonl.gz"}[name]
    content = (coco_json(found) if name == "caption file" else lines).encode()
    source.write_bytes(gzip.compress(content) if name == "jsonl.gz" else content)
    manifest = ingest_folder(source, tmp_path / "out")
    assert (manifest["num_images"], manifest["num_captions"], manifest["has_images"]) == (5, 10, False)
    assert [(pair.image, pair.captions) for pair in iter_pairs(tmp_path / "out")] == [
        (None, tuple(captions)) for _, captions in found.values()
    ]
    table = rows(tmp_path / "out/pairs.parquet")
    assert all(row[key] is None for row in table for key in ("width", "height", "bytes", "perceptual_hash"))
    assert len({row["image_id"] for row in table}) == 5


def test_a_record_with_a_misspelt_key_is_not_taken_for_a_caption_alone(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"image_id": 1, "filename": "a.jpg", "caption": "x"}\n')
    assert [sample.problem for sample in open_source(str(tmp_path / "x.jsonl")).samples()] == [
        "metadata line without file_name"
    ]


@pytest.mark.parametrize("place", ["beside", "images", "../images", "../train2017", "train2017"])
def test_a_caption_file_s_images_are_looked_for_in_the_usual_places(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "coco/annotations"
    write_images(folder if place == "beside" else folder / place, items(3))
    (folder).mkdir(exist_ok=True)
    (folder / "captions_train2017.json").write_text(coco_json(items(4)))
    manifest = ingest_folder(folder / "captions_train2017.json", tmp_path / "out")
    assert (manifest["num_images"], manifest["has_images"]) == (3, True)
    # Some images are there, so that one which is not is a fault.
    assert manifest["reasons"] == {"file not found": 1}


def test_coco_s_faults(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "coco", items(3)) / "annotations/captions_val2017.json"
    content = json.loads(source.read_text())
    content["images"][0]["file_name"] = "../val2017/0000.jpg"
    content["annotations"] += [{"image_id": 99, "caption": "lost"}, {"image_id": 1, "caption": None}]
    source.write_text(json.dumps(content))
    assert ingest_folder(source, tmp_path / "out")["reasons"] == {
        "caption of an image that the file does not list": 1,
        "captions are not text": 1,
        "path leaves the folder": 1,
    }
    (source.parent / "captions_train2017.json").write_text("{}")
    with pytest.raises(ValueError, match=r"several caption files, name one: .*train2017\.json, .*val2017\.json"):
        open_source(str(tmp_path / "coco"))
    with pytest.raises(ValueError, match=r"captions_train2017\.json is no COCO caption file"):
        open_source(str(source.parent / "captions_train2017.json"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_members_make_samples_by_their_name_up_to_the_first_dot(tmp_path: Path, mode: str) -> None:
    suffix = ".tar.gz" if mode == "w:gz" else ".tar"
    members = {
        "a/1.jpg": photo(1),
        "a/1.txt": b"one\nuno",
        "a/2.png": photo(2),
        "a/2.json": b'{"caption": "two"}',
        "a/2.seg.png": photo(9),
        "b/2.webp": photo(3),
        "b/2.caption": b"another two",
        "4.jpg": photo(4),
        "4.jpeg": photo(5),
        "4.txt": b"four",
        "5.txt": b"no image",
        "6.jpg": photo(6),
        "7.jpg": photo(7),
        "7.txt": b"\xff\xfe",
        "8.jpg": photo(8),
        "8.json": b"{",
    }
    write_tar(tmp_path / f"x{suffix}", members, mode)
    samples = list(open_source(str(tmp_path / f"x{suffix}")).samples())
    assert [(sample.name.split(":")[1], sample.captions, sample.problem) for sample in samples] == [
        ("a/1.jpg", ("one", "uno"), ""),
        ("a/2.png", ("two",), ""),
        ("b/2.webp", ("another two",), ""),
        ("4.jpg", ("four",), ""),
        ("4.jpeg", (), "second image of a sample"),
        ("5", (), "no image"),
        ("6.jpg", (), ""),
        ("7.jpg", (), "captions are not UTF-8"),
        ("8.jpg", (), "captions are not JSON in UTF-8"),
    ]


def test_saved_data_sets_with_several_splits_ask_for_one(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"image": [photo(0)], "text": ["x"]})
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"several splits, name one: .*saved/train, .*saved/test"):
        open_source(str(tmp_path / "saved"))
    assert ingest_folder(tmp_path / "saved/test", tmp_path / "out")["num_images"] == 1


def test_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"picture": [1], "label": [2]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="has the columns picture, label; accepted is"):
        open_source(f"hf:{tmp_path}")
    (tmp_path / "y").mkdir()
    (tmp_path / "y/metadata.csv").write_text("file_name,words\n")
    with pytest.raises(ValueError, match="has the columns file_name, words; one of captions, caption, text"):
        open_source(str(tmp_path / "y"))


def test_a_folder_that_can_be_read_in_two_ways_is_not_read_in_one(tmp_path: Path) -> None:
    write_parquet(write_jsonl(tmp_path / "raw", items(2)), items(2))
    with pytest.raises(ValueError, match="can be read as parquet or as folder; name the one"):
        open_source(str(tmp_path / "raw"))


def test_csv_rows_with_faults(tmp_path: Path) -> None:
    write_images(tmp_path, items(2))
    big = "x" * 200_000
    text = f'file_name,text\n0000.jpg,"two\nlines, one caption"\n../a.jpg,x\n0001.jpg,{big}\n0001.jpg,ok\n'
    (tmp_path / "metadata.csv").write_bytes(text.encode() + "0001.jpg,café\n".encode("latin-1") + b"0000.jpg\n")
    found: list[tuple[Any, ...]] = [
        (sample.name, sample.captions, sample.problem) for sample in open_source(str(tmp_path)).samples()
    ]
    assert found == [
        ("0000.jpg", ("two\nlines, one caption",), ""),
        ("../a.jpg", (), "path leaves the folder"),
        ("metadata.csv:5", (), "metadata line is not CSV"),
        ("0001.jpg", ("ok",), ""),
        ("0001.jpg", (), "captions are not UTF-8"),
        ("0000.jpg", (), ""),
    ]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write_sidecars(tmp_path / "elsewhere", items(2))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "elsewhere")
    assert [sample.name for sample in open_source(str(tmp_path / "raw")).samples()] == [
        "link/0000.jpg",
        "link/0001.jpg",
    ]
