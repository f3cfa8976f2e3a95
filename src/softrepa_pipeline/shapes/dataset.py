"""The embedded world on disk: an ordinary captioned image data set in three splits, its prompts with their truth."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from softrepa_pipeline.files import write_whole
from softrepa_pipeline.shapes.captions import CaptionedScene, draw_captioned, word
from softrepa_pipeline.shapes.claims import TASKS, Claim, ObjectClaim
from softrepa_pipeline.shapes.renderers import RENDERERS
from softrepa_pipeline.shapes.scene import Scene, Split
from softrepa_pipeline.shapes.wordings import MAX_WORDS, WORDINGS

_MAX_DRAWS = 200


@dataclass(frozen=True)
class WorldConfig:
    """How many images each split gets; every evaluation image comes with a prompt that no other one has.

    `captions_per_image` paraphrases are written for a training image. `prompts_per_task` is the most that a task gets;
    tasks with few distinct prompts get fewer. A `renderer` of RENDERERS draws all images; the prompts are put in a
    `wording` of WORDINGS, and speak of held-out combinations or, without `held_out`, of those that training has too.
    """

    train_images: int
    validation_prompts_per_task: int
    test_prompts_per_task: int
    captions_per_image: int = 3
    seed: int = 0
    renderer: str = "plain"
    wording: str = "plain"
    held_out: bool = True

    def __post_init__(self) -> None:
        for name, known in (("renderer", RENDERERS), ("wording", WORDINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"world.{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class Prompt:
    """A prompt of the embedded world with its ground truth."""

    text: str
    claim: Claim


def write_world(config: WorldConfig, folder: Path) -> dict[str, Any]:
    """Render all splits to `folder/<split>/pairs.parquet`; returns their sizes and digests."""
    train = _draw_train(config)
    counts = {"train": len(train)}
    draw = RENDERERS[config.renderer]
    digests = {"train": _write(folder / "train", train, draw)}
    seen = {caption for item in train for caption in item[1]}
    splits: dict[Split, int] = {
        "validation": config.validation_prompts_per_task,
        "test": config.test_prompts_per_task,
    }
    for split, per_task in splits.items():
        items = _draw_prompts(split, per_task, config, seen)
        counts[split], digests[split] = len(items), _write(folder / split, items, draw)
        seen |= {caption for item in items for caption in item[1]}
    return {"folder": str(folder), "num_images": counts, "digests": digests}


def _draw_train(config: WorldConfig) -> list[tuple[CaptionedScene, list[str]]]:
    rng = np.random.default_rng([config.seed, 0])
    items = []
    for _ in tqdm(range(config.train_images), desc="rendering the embedded world"):
        item = draw_captioned("train", 0.0, rng)
        wordings = [item.caption, *(word(item.claim, rng) for _ in range(config.captions_per_image - 1))]
        items.append((item, list(dict.fromkeys(wordings))))
    return items


def _draw_prompts(
    split: Split, per_task: int, config: WorldConfig, seen: set[str]
) -> list[tuple[CaptionedScene, list[str]]]:
    rng = np.random.default_rng([config.seed, {"validation": 1, "test": 2}[split]])
    reworded, of_split = WORDINGS[config.wording], split if config.held_out else "train"
    items: list[tuple[CaptionedScene, list[str]]] = []
    for task in TASKS:
        found: dict[str, CaptionedScene] = {}
        for _ in range(per_task * _MAX_DRAWS // 10):
            if len(found) == per_task:
                break
            item = reworded(draw_captioned(of_split, 0.0, rng, task), rng)
            if item is None or item.claim.split != of_split or len(item.caption.split()) > MAX_WORDS:
                continue
            if item.caption not in seen:
                found.setdefault(item.caption, item)
        items += [(item, [caption]) for caption, item in found.items()]
    return items


def _write(folder: Path, items: list[tuple[CaptionedScene, list[str]]], draw: Callable[[Scene], np.ndarray]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "image": [_png(draw(item.scene)) for item, _ in items],
            "captions": [captions for _, captions in items],
            "claim": [json.dumps(asdict(item.claim)) for item, _ in items],
        }
    )
    return hashlib.sha256(write_table(table, folder / "pairs.parquet")).hexdigest()[:16]


def write_table(table: pa.Table, file: Path) -> bytes:
    """Write a Parquet file, whole or not at all; returns its content."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content = sink.getvalue().to_pybytes()
    write_whole(file, content)
    return content


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def read_prompts(folder: Path, split: Split, per_task: int | None = None) -> list[Prompt]:
    """The prompts of a split in file order, at most `per_task` of each task."""
    table = pq.read_table(folder / split / "pairs.parquet", columns=["captions", "claim"]).to_pylist()
    prompts = [Prompt(row["captions"][0], claim_from_dict(json.loads(row["claim"]))) for row in table]
    if per_task is None:
        return prompts
    by_task = {task: [prompt for prompt in prompts if prompt.claim.task == task] for task in TASKS}
    return [prompt for task in TASKS for prompt in by_task[task][:per_task]]


def claims_of(folder: Path) -> dict[str, Claim]:
    """What each validation and test prompt claims."""
    splits: tuple[Split, ...] = ("validation", "test")
    return {prompt.text: prompt.claim for split in splits for prompt in read_prompts(folder, split)}


def claim_from_dict(values: dict[str, Any]) -> Claim:
    return Claim(**{**values, "objects": tuple(ObjectClaim(**item) for item in values["objects"])})


def read_images(folder: Path, split: Split, limit: int) -> tuple[np.ndarray, list[Prompt]]:
    """Evenly spaced images of a split, uint8 (images, 32, 32, 3), with their prompts."""
    rows = pq.read_table(folder / split / "pairs.parquet").to_pylist()
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int)]
    images = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]))) for row in chosen])
    return images, [Prompt(row["captions"][0], claim_from_dict(json.loads(row["claim"]))) for row in chosen]
