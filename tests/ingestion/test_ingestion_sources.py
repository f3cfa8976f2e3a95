"""Every accepted layout gives the same samples, in a fixed order; faults stay with their sample."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softrepa_pipeline.ingestion import RawSample
from softrepa_pipeline.ingestion import open_source as find_source

SAMPLE = Path(__file__).parents[2] / "data/01_raw/coco_sample"


def open_source(path: Path) -> Iterator[RawSample]:
    return find_source(str(path)).samples()


def write_metadata(folder: Path, *records: Any) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_packaged_sample_is_complete_and_credited() -> None:
    samples = list(open_source(SAMPLE))
    notice = (SAMPLE / "NOTICE.txt").read_text()
    assert len(samples) == 24
    for sample in samples:
        assert not sample.problem
        assert len(sample.captions) == 5
        assert f"{sample.name}\n  COCO id {int(sample.name[:-4])} (" in notice
    assert notice.count("https://www.flickr.com/photo.gne?id=") == 24
    assert notice.count("Attribution 2.0 Generic (CC BY 2.0), http://creativecommons.org/licenses/by/2.0/") == 24
    assert sum(file.stat().st_size for file in SAMPLE.iterdir()) < 1_000_000


def test_metadata_keys_and_images_in_subfolders(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg", "deep/b.PNG", "c.webp")
    write_metadata(
        tmp_path,
        {"file_name": "deep/b.PNG", "captions": ["one", "two"]},
        {"file": "a.jpg", "text": "three"},
        {"file_name": "c.webp", "caption": "four"},
    )
    assert list(open_source(tmp_path)) == [
        RawSample("deep/b.PNG", tmp_path / "deep/b.PNG", ("one", "two")),
        RawSample("a.jpg", tmp_path / "a.jpg", ("three",)),
        RawSample("c.webp", tmp_path / "c.webp", ("four",)),
    ]


def test_metadata_in_a_subfolder_is_relative_to_it(tmp_path: Path) -> None:
    write_images(tmp_path, "train/a.jpg")
    write_metadata(tmp_path / "train", {"file_name": "a.jpg", "text": "a"})
    assert list(open_source(tmp_path)) == [RawSample("train/a.jpg", tmp_path / "train/a.jpg", ("a",))]


def test_images_that_no_line_names_come_after_without_captions(tmp_path: Path) -> None:
    write_images(tmp_path, "z.jpg", "b.jpg", "a.jpg", ".hidden.jpg", "notes.md")
    write_metadata(tmp_path, {"file_name": "./z.jpg", "text": "known"})
    assert [(sample.name, sample.captions) for sample in open_source(tmp_path)] == [
        ("z.jpg", ("known",)),
        ("a.jpg", ()),
        ("b.jpg", ()),
    ]


@pytest.mark.parametrize("target", ["../secret.jpg", "/etc/passwd", "in/../../secret.jpg", "..", "nul\0.jpg"])
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "data"
    write_images(tmp_path, "secret.jpg", "data/good.jpg")
    write_metadata(folder, {"file_name": target, "text": "x"}, {"file_name": "in/../good.jpg", "text": "y"})
    bad, good = open_source(folder)
    assert bad == RawSample(target, b"", (), "path leaves the folder")
    assert good == RawSample("good.jpg", folder / "good.jpg", ("y",))


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    write_images(tmp_path, "blobs/1.bin", "data/keep")
    (tmp_path / "data/a.jpg").symlink_to(tmp_path / "blobs/1.bin")
    (tmp_path / "data/broken.jpg").symlink_to(tmp_path / "blobs/2.bin")
    (tmp_path / "data/a.txt").write_text("a\n")
    assert [sample.name for sample in open_source(tmp_path / "data")] == ["a.jpg", "broken.jpg"]


def test_metadata_lines_that_cannot_be_read_are_single_faults(tmp_path: Path) -> None:
    lines = [b"{not json", b'"text"', b'{"text": "no file"}', b"\xff\xfe", b"[" * 100_000, b"  "]
    lines += [b'{"file_name": "a.jpg", "text": 5}', b'{"file_name": "a.jpg", "captions": ["x", null]}']
    write_images(tmp_path, "a.jpg")
    (tmp_path / "metadata.jsonl").write_bytes(b"\n".join(lines))
    samples = list(open_source(tmp_path))
    assert [(sample.name, sample.problem) for sample in samples] == [
        ("metadata.jsonl:1", "metadata line is not JSON in UTF-8"),
        ("metadata.jsonl:2", "metadata line without file_name"),
        ("metadata.jsonl:3", "metadata line without file_name"),
        ("metadata.jsonl:4", "metadata line is not JSON in UTF-8"),
        ("metadata.jsonl:5", "metadata line is not JSON in UTF-8"),
        ("a.jpg", "captions are not text"),
        ("a.jpg", ""),
    ]
    assert samples[-1].captions == ("x", "")


def test_sidecars_hold_one_caption_a_line(tmp_path: Path) -> None:
    write_images(tmp_path, "b.jpg", "a/a.png", "lonely.jpg", "latin.jpg")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbffirst\r\n\r\nsecond\n")
    (tmp_path / "a/a.txt").write_text("only")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "NOTICE.txt").write_text("not a caption")
    assert list(open_source(tmp_path)) == [
        RawSample("a/a.png", tmp_path / "a/a.png", ("only",)),
        RawSample("b.jpg", tmp_path / "b.jpg", ("first", "second")),
        RawSample("latin.jpg", tmp_path / "latin.jpg", (), "captions are not UTF-8"),
        RawSample("lonely.jpg", tmp_path / "lonely.jpg", ()),
    ]


@pytest.mark.parametrize("column", ["caption", "text"])
def test_parquet_with_bytes(tmp_path: Path, column: str) -> None:
    pq.write_table(pa.table({"image": [b"1", b"2"], column: ["one", None], "other": [1, 2]}), tmp_path / "x.parquet")
    expected = [RawSample("x.parquet:0", b"1", ("one",)), RawSample("x.parquet:1", b"2", ())]
    assert list(open_source(tmp_path / "x.parquet")) == expected
    assert list(open_source(tmp_path)) == expected


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    write_images(tmp_path, "b.jpg")
    images = [
        {"bytes": b"1", "path": "a.jpg"},
        {"bytes": None, "path": "b.jpg"},
        {"bytes": None, "path": "../c.jpg"},
        {"bytes": None, "path": None},
        None,
    ]
    pq.write_table(pa.table({"image": images, "captions": [["x", "y"]] * 5}), tmp_path / "train.parquet")
    assert list(open_source(tmp_path)) == [
        RawSample("train.parquet:0", b"1", ("x", "y")),
        RawSample("train.parquet:1", tmp_path / "b.jpg", ("x", "y")),
        RawSample("train.parquet:2", b"", (), "path leaves the folder"),
        RawSample("train.parquet:3", b"", (), "no image"),
        RawSample("train.parquet:4", b"", (), "no image"),
    ]


def test_parquet_shards_with_paths_in_sorted_order(tmp_path: Path) -> None:
    for shard in ("2", "1"):
        rows = {"image": [f"{shard}-{row}.jpg" for row in range(40)], "caption": ["x"] * 40}
        pq.write_table(pa.table(rows), tmp_path / f"part-{shard}.parquet")
    samples = list(open_source(tmp_path))
    assert [sample.image for sample in samples] == [tmp_path / f"{s}-{row}.jpg" for s in "12" for row in range(40)]
    assert [samples[0].name, samples[-1].name] == ["part-1.parquet:0", "part-2.parquet:39"]


def test_samples_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg")
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.jpg", "text": "x"}\n' * 10_000)
    samples = open_source(tmp_path)
    assert isinstance(samples, Iterator)
    assert next(samples).name == "a.jpg"


def test_parquet_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    images = [bytes([number % 256]) * 20_000 for number in range(1_000)]
    table = {"image": images, "caption": ["x"] * 1_000}
    pq.write_table(pa.table(table), tmp_path / "x.parquet", row_group_size=50, use_dictionary=False, compression="none")
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in open_source(tmp_path))
    assert 0 < peak < 5_000_000


def test_missing_source_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open_source(tmp_path / "nowhere")
    assert str(caught.value) == (
        f"no data at {tmp_path / 'nowhere'}; set `source.known.<name>` or pass --params dataset=FOLDER"
    )


@pytest.mark.parametrize("name", ["notes.md", "alone.jpg"])
def test_folder_with_nothing_usable_names_the_formats(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=r"accepted are: .* \.parquet .* \.tar .* metadata\.jsonl, .* \.txt"):
            open_source(path)


def test_parquet_faults_are_found_at_the_call(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b"1"], "caption": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has the columns picture, caption; accepted is"):
        open_source(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"a\.parquet is not a readable Parquet file"):
        open_source(tmp_path)
