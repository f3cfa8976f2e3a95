"""COCO's caption files: `images` and `annotations` in one JSON, several captions an image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softrepa_pipeline.ingestion.sources.base import RawSample, Shard, inside, listed_shards

DESCRIPTION = (
    "COCO's captions_<split>.json, alone (captions without images) or with its images beside it, in images/, <split>/, "
    "../images/ or ../<split>/; a folder that holds one such file, also in annotations/"
)


def find(source: str) -> list[Shard] | None:
    path = Path(source)
    files = [*path.glob("captions_*.json"), *path.glob("annotations/captions_*.json")] if path.is_dir() else [path]
    if not files or files[0].suffix != ".json":
        return None
    if len(files) > 1:
        raise ValueError(f"{path} has several caption files, name one: {', '.join(map(str, sorted(files)))}")
    captions, names = _read(files[0])
    folder = _image_folder(files[0], names)
    return listed_shards(_samples(folder, captions, names))


def _read(file: Path) -> tuple[dict[Any, list[str]], dict[Any, str]]:
    """Captions and file names by image id, in the order of the images; an image without caption has none."""
    try:
        content = json.loads(file.read_bytes())
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        captions: dict[Any, list[str]] = {image_id: [] for image_id in names}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} is no COCO caption file (images with id and file_name, annotations with image_id and caption): "
            f"{error!r}"
        ) from error
    return captions, names


def _image_folder(file: Path, names: dict[Any, str]) -> Path | None:
    """Where the images are: the first of the usual places that has one of them."""
    split = file.stem.removeprefix("captions_")
    parents = (file.parent, file.parent.parent)
    places = [parents[0], *(parent / name for parent in parents for name in ("images", split))]
    existing = [place for place in places if place.is_dir()]
    return next((place for place in existing if any(_exists(place, name) for name in names.values())), None)


def _exists(folder: Path, name: str) -> bool:
    target = inside(name)
    return target is not None and (folder / target).is_file()


def _samples(folder: Path | None, captions: dict[Any, list[str]], names: dict[Any, str]) -> Iterator[RawSample]:
    for image_id, texts in captions.items():
        name = names.get(image_id)
        if name is None:
            yield RawSample(f"image_id {image_id}", b"", (), "caption of an image that the file does not list")
            continue
        target = inside(name)
        image = folder / target if folder and target else None
        if target is None:
            yield RawSample(name, b"", (), "path leaves the folder")
        elif not all(isinstance(text, str) for text in texts):
            yield RawSample(name, image, (), "captions are not text")
        else:
            yield RawSample(name, image, tuple(texts))
