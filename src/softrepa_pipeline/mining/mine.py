"""Hard negatives: captions close to an image, yet not so close that they may be true of it.

Beside them stand structured ones, the image's own captions with a contradiction in them (`mining.edits`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from softrepa_pipeline.mining.corpus import Corpus, gather
from softrepa_pipeline.mining.edits import CaptionEditor
from softrepa_pipeline.mining.embed import ClipEncoder
from softrepa_pipeline.mining.index import IndexConfig, build_index
from softrepa_pipeline.mining.neighbors import (
    Indexes,
    Neighbors,
    anchors,
    caption_to_caption,
    image_to_caption,
    image_to_image,
)
from softrepa_pipeline.mining.policy import Choice, Guards, Policy, choose
from softrepa_pipeline.mining.report import Report, thumbnail
from softrepa_pipeline.randomness import numpy_generator

_SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "captions": pa.list_(pa.string()),
        "edits": pa.list_(pa.list_(pa.string())),
        "negatives": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
    }
)
_BLOCK = 256
_NUM_SHOWN = 12
_SEARCHES: dict[str, Neighbors] = {
    "caption_to_caption": caption_to_caption,
    "image_to_caption": image_to_caption,
    "image_to_image": image_to_image,
}


@dataclass(frozen=True)
class MineConfig:
    """Neighbours of three kinds, each with its policy or null; an image's negatives are the union of what they choose.

    Captions without images have `caption_to_caption` alone, with its defaults where it is null.
    """

    clip: str
    caption_to_caption: Policy | None = field(default_factory=Policy)
    image_to_caption: Policy | None = None
    image_to_image: Policy | None = None
    guards: Guards = field(default_factory=Guards)
    index: IndexConfig = field(default_factory=IndexConfig)
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.policies(True):
            raise ValueError(f"mine needs a policy: set one of {', '.join(f'mine.{name}' for name in _SEARCHES)}")

    def policies(self, has_images: bool) -> dict[str, Policy]:
        """The policies in use, by the kind of neighbours."""
        if not has_images:
            return {"caption_to_caption": self.caption_to_caption or Policy()}
        return {name: policy for name in _SEARCHES if (policy := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Captioned:
    """What mining reads of a pair: an identity, an RGB image (None: captions only) and its captions."""

    image_id: str
    image: Image.Image | None
    captions: tuple[str, ...]


def mine(config: MineConfig, pairs: Iterable[Captioned], total: int, output: Path) -> dict[str, Any]:
    """Embed pairs, and write their negatives and the report to `output`; as `mine_corpus`.

    Raises:
        ValueError: fewer than two distinct captions, or only some of the pairs have an image.
    """
    clip = ClipEncoder(config.clip, config.device)
    shown = set(_shown(config.seed, total))
    image_ids, captions_of, embeddings, thumbnails = [], [], [], {}
    for batch in _batches(tqdm(pairs, total=total, desc="embedding images", mininterval=2), 128):
        images = [pair.image for pair in batch if pair.image is not None]
        thumbnails |= {
            row: thumbnail(pair.image)
            for row, pair in enumerate(batch, start=len(image_ids))
            if row in shown and pair.image is not None
        }
        image_ids += [pair.image_id for pair in batch]
        captions_of += [pair.captions for pair in batch]
        embeddings += [clip.images(images)] if images else []
    images_found = sum(len(part) for part in embeddings)
    if images_found not in (0, len(image_ids)):
        raise ValueError(f"{len(image_ids) - images_found} of {len(image_ids)} pairs have no image; mine those apart")
    captions, own = gather(captions_of)
    images = np.concatenate(embeddings) if embeddings else None
    return mine_corpus(config, Corpus(image_ids, own, captions, clip.captions(captions), images), output, thumbnails)


def mine_corpus(
    config: MineConfig, corpus: Corpus, output: Path, thumbnails: dict[int, str] | None = None
) -> dict[str, Any]:
    """Write `negatives.parquet` and `report.html` for captions and images that are embedded; return their figures.

    The table has image_id, captions, edits (a list of structured negatives for each of the image's captions, in their
    order), negatives and their scores. `thumbnails` are data URIs by row of an image, for the report.

    Raises:
        ValueError: fewer than two distinct captions, so that nothing can be a negative.
    """
    if len(corpus.captions) < 2:
        raise ValueError(f"mining needs at least two distinct captions, but the data set has {len(corpus.captions)}")
    output.mkdir(parents=True, exist_ok=True)
    indexes = _build_indexes(config, corpus, output)
    wanted = max(policy.num_negatives for policy in config.policies(corpus.images is not None).values())
    report = Report(corpus, wanted, _shown(config.seed, len(corpus.own)), thumbnails or {})
    editor = CaptionEditor(corpus.captions)
    partial = output / "negatives.parquet.partial"
    with pq.ParquetWriter(partial, _SCHEMA) as writer:
        for block, choices in _chosen(config, corpus, indexes):
            rows = [_row(corpus, editor, image, chosen) for image, chosen in zip(block, choices, strict=True)]
            writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
            report.add(block, choices, rows)
    os.replace(partial, output / "negatives.parquet")
    figures = {"folder": str(output), **report.figures(), "indexes": indexes.report()}
    report.write(output / "report.html", figures)
    return figures


def choose_negatives(config: MineConfig, corpus: Corpus, indexes: Indexes, block: range) -> list[list[Choice]]:
    """For each image of a block of rows what each policy in use chooses."""
    policies = config.policies(corpus.images is not None)
    found = [_SEARCHES[name](corpus, indexes, block, policy) for name, policy in policies.items()]
    choices = []
    block_anchors = anchors(corpus, indexes, block, config.guards.max_image_similarity)
    for anchor, candidates in zip(block_anchors, zip(*found, strict=True), strict=True):
        rng = numpy_generator(config.seed, f"negatives of {corpus.image_ids[anchor.image]}")
        sides = zip(policies.values(), candidates, strict=True)
        choices.append([choose(policy, config.guards, corpus, anchor, side, rng) for policy, side in sides])
    return choices


def _chosen(config: MineConfig, corpus: Corpus, indexes: Indexes) -> Iterator[tuple[range, list[list[Choice]]]]:
    starts = range(0, len(corpus.own), _BLOCK)
    for start in tqdm(starts, desc="mining negatives", unit=f"{_BLOCK} images", mininterval=2):
        block = range(start, min(start + _BLOCK, len(corpus.own)))
        yield block, choose_negatives(config, corpus, indexes, block)


def _build_indexes(config: MineConfig, corpus: Corpus, output: Path) -> Indexes:
    queries = corpus.texts if corpus.images is None else corpus.images
    texts = build_index(corpus.texts, config.index, queries, output / "captions.faiss")
    if corpus.images is None:
        return Indexes(texts, None)
    return Indexes(texts, build_index(corpus.images, config.index, file=output / "images.faiss"))


def _row(corpus: Corpus, editor: CaptionEditor, image: int, choices: list[Choice]) -> dict[str, Any]:
    """An image's row of the table: what its policies chose, the hardest first, each caption once."""
    score_of = {
        int(row): float(score)
        for choice in choices
        for row, score in zip(choice.negatives.rows, choice.negatives.scores, strict=True)
    }
    ranked = sorted(score_of, key=lambda row: (-score_of[row], row))
    own = [corpus.captions[row] for row in corpus.own[image]]
    edits = [editor.edits(caption) for caption in own]
    return {
        "image_id": corpus.image_ids[image],
        "captions": own,
        "edits": edits,
        "edit_kinds": [["one word changed, or two swapped"] * len(each) for each in edits],
        "negatives": [corpus.captions[row] for row in ranked],
        "scores": [score_of[row] for row in ranked],
    }


def _shown(seed: int, total: int) -> list[int]:
    """The rows of the images that the report shows."""
    return sorted(numpy_generator(seed, "contact sheet").permutation(total)[:_NUM_SHOWN].tolist())


def _batches(items: Iterable[Captioned], size: int) -> Iterator[list[Captioned]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
