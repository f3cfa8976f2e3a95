"""Hard negatives: captions close to an image, yet not so close that they may be true of it.

Beside them stand structured ones, the image's own captions with a contradiction in them (`mining.structured`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from softrepa_pipeline.mining.corpus import Corpus, gather
from softrepa_pipeline.mining.embeddings import Embeddings
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
from softrepa_pipeline.mining.screen import Misfit, without_misfits
from softrepa_pipeline.mining.structured import CaptionEditor
from softrepa_pipeline.randomness import numpy_generator

_SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "captions": pa.list_(pa.string()),
        "edits": pa.list_(pa.list_(pa.string())),
        "edit_kinds": pa.list_(pa.list_(pa.string())),
        "negatives": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
    }
)
_MISFITS = pa.schema({"image_id": pa.string(), "caption": pa.string(), "fit": pa.float32()})
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

    Captions without images have `caption_to_caption` alone, with its defaults where it is null. Captions whose fit to
    their own image is below `min_fit` are taken out before (mining/screen.py); null keeps all.
    """

    clip: str
    caption_to_caption: Policy | None = field(default_factory=Policy)
    image_to_caption: Policy | None = None
    image_to_image: Policy | None = None
    guards: Guards = field(default_factory=Guards)
    index: IndexConfig = field(default_factory=IndexConfig)
    min_fit: float | None = 1.0
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
    """What mining reads of a pair: an identity and captions."""

    image_id: str
    captions: tuple[str, ...]


def mine(
    config: MineConfig, pairs: Iterable[Captioned], embeddings: Embeddings, output: Path, has_images: bool = True
) -> dict[str, Any]:
    """Embed pairs, or captions without images, and write their negatives and the report to `output`.

    Raises:
        ValueError: fewer than two distinct captions.
    """
    image_ids, captions_of = [], []
    for pair in pairs:
        image_ids.append(pair.image_id)
        captions_of.append(pair.captions)
    captions, own = gather(captions_of)
    images = embeddings.of_images(image_ids) if has_images else None
    corpus = Corpus(image_ids, own, captions, embeddings.of_captions(captions), images)
    misfits: list[Misfit] = []
    if config.min_fit is not None:
        corpus, misfits = without_misfits(corpus, config.min_fit)
    thumbnails = {}
    if has_images:
        place_of, rows = {image_id: place for place, image_id in enumerate(image_ids)}, _shown(config, corpus)
        shown = embeddings.read([place_of[corpus.image_ids[row]] for row in rows])
        thumbnails = {row: thumbnail(image) for row, image in zip(rows, shown, strict=True)}
    return mine_corpus(config, corpus, output, thumbnails, misfits)


def mine_corpus(
    config: MineConfig,
    corpus: Corpus,
    output: Path,
    thumbnails: dict[int, str] | None = None,
    misfits: Sequence[Misfit] = (),
) -> dict[str, Any]:
    """Write `negatives.parquet` and `report.html` for captions and images that are embedded; return their figures.

    The table has image_id, captions, edits (a list of structured negatives for each of the image's captions, in their
    order), edit_kinds, negatives and their scores. `thumbnails` are data URIs by row of an image, for the report;
    `misfits`, captions that were taken out before, go to `misfits.parquet` (image_id, caption, fit).

    Raises:
        ValueError: fewer than two distinct captions, so that nothing can be a negative.
    """
    if len(corpus.captions) < 2:
        raise ValueError(f"mining needs at least two distinct captions, but the data set has {len(corpus.captions)}")
    output.mkdir(parents=True, exist_ok=True)
    indexes = _build_indexes(config, corpus, output)
    wanted = max(policy.num_negatives for policy in config.policies(corpus.images is not None).values())
    report = Report(corpus, wanted, _shown(config, corpus), thumbnails or {}, misfits)
    editor = CaptionEditor(corpus.captions)
    partial = output / "negatives.parquet.partial"
    with pq.ParquetWriter(partial, _SCHEMA) as writer:
        for block, choices in _chosen(config, corpus, indexes):
            rows = [_row(corpus, editor, image, chosen) for image, chosen in zip(block, choices, strict=True)]
            writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
            report.add(block, choices, rows)
    os.replace(partial, output / "negatives.parquet")
    partial = output / "misfits.parquet.partial"
    pq.write_table(pa.Table.from_pylist([asdict(misfit) for misfit in misfits], _MISFITS), partial)
    os.replace(partial, output / "misfits.parquet")
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
    for start in tqdm(starts, desc="mining negatives", unit="block", mininterval=2):
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
    edits = [editor.edits(caption, own) for caption in own]
    return {
        "image_id": corpus.image_ids[image],
        "captions": own,
        "edits": [[edit.text for edit in each] for each in edits],
        "edit_kinds": [[edit.kind for edit in each] for each in edits],
        "negatives": [corpus.captions[row] for row in ranked],
        "scores": [score_of[row] for row in ranked],
    }


def _shown(config: MineConfig, corpus: Corpus) -> list[int]:
    """The rows of the images that the report shows."""
    order = numpy_generator(config.seed, "contact sheet").permutation(len(corpus.own))
    return sorted(order[:_NUM_SHOWN].tolist())
