"""Small data sets in every accepted format, and ingestion of them, for the tests."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from softrepa_pipeline.ingestion import IngestConfig, Limits, ingest, open_source
from softrepa_pipeline.runners import LocalRunner, Runner

Items = Mapping[str, tuple[bytes, Sequence[str]]]


def photo(seed: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 48, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def items(count: int) -> dict[str, tuple[bytes, list[str]]]:
    """Photos by file name, each with two captions."""
    return {f"{seed:04d}.jpg": (photo(seed), [f"photo {seed}", f"the {seed}th picture"]) for seed in range(count)}


def ingest_folder(source: Path | str, output: Path, runner: Runner | None = None, **settings: Any) -> dict[str, Any]:
    config = IngestConfig(str(source), str(output), Limits(), **settings)
    return ingest(config, open_source(config.source), runner or LocalRunner())


def rows(file: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(file).to_pylist())


def tables(output: Path) -> dict[str, bytes]:
    """Everything that an ingestion wrote, by name."""
    files = (file for file in output.rglob("*") if file.is_file())
    return {file.relative_to(output).as_posix(): file.read_bytes() for file in files}


def write_images(folder: Path, found: Items) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (data, _) in found.items():
        (folder / name).write_bytes(data)


def write_sidecars(folder: Path, found: Items) -> Path:
    write_images(folder, found)
    for name, (_, captions) in found.items():
        (folder / name).with_suffix(".txt").write_text("\n".join(captions))
    return folder


def write_jsonl(folder: Path, found: Items, name: str = "metadata.jsonl", key: str = "file_name") -> Path:
    write_images(folder, found)
    lines = (json.dumps({key: file, "captions": list(captions)}) for file, (_, captions) in found.items())
    (folder / name).write_text("".join(line + "\n" for line in lines))
    return folder


def write_csv(folder: Path, found: Items) -> Path:
    """One row a caption."""
    write_images(folder, found)
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "caption"])
        table.writerows((name, caption) for name, (_, captions) in found.items() for caption in captions)
    return folder


def write_parquet(folder: Path, found: Items, group: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    images, captions = zip(*found.values(), strict=True)
    pq.write_table(pa.table({"image": images, "captions": captions}), folder / "data.parquet", row_group_size=group)
    return folder


def write_parquet_of_paths(folder: Path, found: Items) -> Path:
    write_images(folder / "images", found)
    table = {"image": [f"images/{name}" for name in found], "captions": [captions for _, captions in found.values()]}
    pq.write_table(pa.table(table), folder / "data.parquet")
    return folder / "data.parquet"


def write_tar(file: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
    return file


def write_tars(folder: Path, found: Items, size: int = 4) -> Path:
    """Captions in turn as text and as JSON."""
    names = list(found)
    for start in range(0, len(names), size):
        members: dict[str, bytes] = {}
        for name in names[start : start + size]:
            data, captions = found[name]
            stem = f"part/{Path(name).stem}"
            as_json = int(Path(name).stem) % 2
            text = json.dumps({"captions": list(captions), "id": 1}) if as_json else "\n".join(captions)
            members |= {
                f"{stem}.jpg": data,
                f"{stem}.{'json' if as_json else 'txt'}": text.encode(),
                f"{stem}.cls": b"3",
            }
        write_tar(folder / f"{start:05d}.tar", members)
    return folder


def coco_json(found: Items) -> str:
    numbers = {name: number for number, name in enumerate(found)}
    annotations = [
        {"image_id": numbers[name], "id": 7, "caption": caption}
        for name, (_, captions) in found.items()
        for caption in captions
    ]
    images = [{"id": number, "file_name": name, "width": 48, "height": 40} for name, number in numbers.items()]
    return json.dumps({"info": {}, "images": images, "annotations": annotations})


def write_coco(folder: Path, found: Items) -> Path:
    write_images(folder / "val2017", found)
    (folder / "annotations").mkdir()
    (folder / "annotations/captions_val2017.json").write_text(coco_json(found))
    return folder


def _dataset(found: Items) -> datasets.Dataset:
    columns = {"image": [data for data, _ in found.values()], "captions": [list(own) for _, own in found.values()]}
    features = {"image": datasets.Image(), "captions": datasets.Sequence(datasets.Value("string"))}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def write_saved_dataset(folder: Path, found: Items) -> Path:
    _dataset(found).save_to_disk(folder, num_shards=2)
    return folder


def write_streamed_dataset(folder: Path, found: Items) -> str:
    (folder / "data").mkdir(parents=True)
    table = _dataset(found)
    for index in range(2):
        table.shard(2, index).to_parquet(folder / f"data/test-0000{index}-of-00002.parquet")
    return f"hf:{folder}:test"


WRITERS: dict[str, Callable[[Path, Items], Path | str]] = {
    "sidecars": write_sidecars,
    "metadata.jsonl": write_jsonl,
    "pairs.jsonl": lambda folder, found: write_jsonl(folder, found, "pairs.jsonl", "file"),
    "metadata.csv": write_csv,
    "parquet": write_parquet,
    "parquet of paths": write_parquet_of_paths,
    "webdataset": write_tars,
    "coco": write_coco,
    "save_to_disk": write_saved_dataset,
    "load_dataset": write_streamed_dataset,
}
