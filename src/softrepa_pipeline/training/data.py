"""What a training step reads: latents, and for each image one of its captions and its negatives."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from softrepa_pipeline.randomness import numpy_generator
from softrepa_pipeline.tensor_store import StoredRows
from softrepa_pipeline.training.buckets import BucketedRows, whole_batches
from softrepa_pipeline.training.config import FitConfig
from softrepa_pipeline.training.texts import StoredTexts

Latents = Tensor | StoredRows | BucketedRows
LatentsOf = Callable[[list[str]], Latents]

# Of these words a mirror image makes another.
_SIDE = re.compile(r"\b(left|right)|clockwise", re.IGNORECASE)


@dataclass(frozen=True)
class Candidates:
    """Captions scored for each image of a step: `captions[i][0]` is its own, the others are negatives.

    Captions that are true of the image as well stand in the batch, but `is_candidate` (images, captions) is False.
    """

    rows: Tensor
    captions: list[list[str]]
    is_candidate: Tensor


@dataclass(frozen=True)
class TrainingSet:
    """Latents (images, channels, height, width) with captions and mined negatives, in the same order.

    `members` are the images that this set draws from; captions of the others may still be negatives. `mirrored` are the
    latents of the mirrored images, `texts` the text states of all captions that are drawn, where they are kept.
    """

    latents: Latents
    image_ids: list[str]
    captions: list[list[str]]
    edits: list[list[list[str]]]
    negatives: list[list[str]]
    all_captions: list[str]
    members: np.ndarray
    mirrored: Latents | None = None
    texts: StoredTexts | None = None

    @classmethod
    def read(cls, latents_of: LatentsOf, negatives_file: Path, mirrored_of: LatentsOf | None = None) -> TrainingSet:
        """The images of mining's table, with the latents that `latents_of` gives for their identities.

        Raises:
            ValueError: an image has every caption there is.
        """
        columns = pq.read_table(negatives_file, columns=["image_id", "captions", "edits", "negatives"]).to_pydict()
        captions = columns["captions"]
        all_captions = sorted({caption for own in captions for caption in own})
        if any(len(set(own)) == len(all_captions) for own in captions):
            raise ValueError(f"{negatives_file}: one image has every caption, so that none can be its negative")
        image_ids, edits, negatives = (columns[name] for name in ("image_id", "edits", "negatives"))
        members = np.arange(len(captions))
        mirrored = None if mirrored_of is None else mirrored_of(image_ids)
        return cls(latents_of(image_ids), image_ids, captions, edits, negatives, all_captions, members, mirrored)

    def __len__(self) -> int:
        return len(self.members)

    def split(self, config: FitConfig) -> tuple[TrainingSet, TrainingSet]:
        """The set to train on, and `config.held_out_images` drawn from it, or from its largest bucket, for validation.

        Raises:
            ValueError: nothing would be left to train on.
        """
        members = self.members
        if isinstance(self.latents, BucketedRows):
            bucket_of = self.latents.bucket_of[members]
            members = members[bucket_of == np.bincount(bucket_of).argmax()]
        if config.held_out_images >= len(members):
            raise ValueError(f"fit.held_out_images is {config.held_out_images}, but there are {len(members)} images")
        held_out = numpy_generator(config.seed, "held out").permutation(members)[: config.held_out_images]
        kept = replace(self, members=np.setdiff1d(self.members, held_out))
        if not kept.epoch_length(config):
            raise ValueError(f"fit.batch_size is {config.batch_size}, more than any aspect-ratio bucket has images")
        return kept, replace(self, members=np.sort(held_out))

    def epoch_length(self, config: FitConfig) -> int:
        """Images of an epoch: all, or with buckets as many of each as fill whole steps."""
        if not isinstance(self.latents, BucketedRows):
            return len(self)
        counts = np.bincount(self.latents.bucket_of[self.members])
        return int((counts // config.batch_size * config.batch_size).sum())

    def latent_shape(self, config: FitConfig, positions: range) -> torch.Size:
        """(channels, height, width) of the images at these positions."""
        if isinstance(self.latents, BucketedRows):
            return self.latents.shape_of(int(self._rows(config, positions[:1])[0]))
        return self.latents.shape[1:]

    def drawn_captions(self, config: FitConfig) -> list[str]:
        """Every caption that a training with these settings can score, sorted: those that there are bound them."""
        found = set(self.all_captions)
        if config.held_out_images or (config.objective != "dsm" and config.candidates == "sampled"):
            edited, mined = (max(shares) for shares in zip(config.shares_at(0.0), config.shares_at(1.0), strict=True))
            if edited:
                found.update(text for own in self.edits for texts in own for text in texts)
            if mined:
                found.update(text for negatives in self.negatives for text in negatives)
        return sorted(found)

    def candidates(self, config: FitConfig, positions: range, part: slice = slice(None)) -> Candidates:
        """The images at these positions of the endless sample order, and their candidates.

        A pure function of (seed, positions); with `candidates: batch` images compete with the captions of all
        positions. Only the images of `part` are returned.
        """
        rows = self._rows(config, positions)
        rngs = [numpy_generator(config.seed, "captions", position) for position in positions]
        own = [_one_of(self.captions[row], rng) for row, rng in zip(rows, rngs, strict=True)]
        chosen = range(len(rows))[part]
        if config.objective == "dsm":
            captions = [[own[i]] for i in chosen]
        elif config.candidates == "batch":
            captions = [_own_first(own, i, config.num_candidates - 1, rngs[i]) for i in chosen]
        else:
            done = positions.start / (config.batch_size * config.steps_for(self.epoch_length(config)))
            shares = config.shares_at(min(1.0, done))
            captions = [
                self._candidates_of(rows[i], own[i], config.num_candidates - 1, shares, rngs[i]) for i in chosen
            ]
        is_candidate = [
            [index == 0 or caption not in self.captions[rows[i]] for index, caption in enumerate(scored)]
            for i, scored in zip(chosen, captions, strict=True)
        ]
        return Candidates(torch.from_numpy(rows[part]), captions, torch.tensor(is_candidate))

    def latents_at(self, config: FitConfig, candidates: Candidates, positions: range) -> Tensor:
        """Latents of the candidates' images, which stand at these positions; with `flip` some are the mirrored image's.

        Raises:
            ValueError: with `flip`, there are no latents of mirrored images.
        """
        latents = self.latents[candidates.rows]
        if config.flip:
            if self.mirrored is None:
                raise ValueError("fit.flip needs the latents of the mirrored images")
            is_mirrored = torch.tensor(
                [
                    numpy_generator(config.seed, "flip", position).random() < 0.5 and not any(map(_SIDE.search, scored))
                    for position, scored in zip(positions, candidates.captions, strict=True)
                ]
            )
            if is_mirrored.any():  # or there is no shape to take none of
                latents[is_mirrored] = self.mirrored[candidates.rows[is_mirrored]]
        return latents

    def _rows(self, config: FitConfig, positions: range) -> np.ndarray:
        """Position by position through a fresh permutation for each epoch: the same for any number of processes."""
        epochs, places = np.divmod(np.array(positions), self.epoch_length(config))
        orders = {epoch: self._order(config, int(epoch)) for epoch in np.unique(epochs)}
        return np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)])

    def _order(self, config: FitConfig, epoch: int) -> np.ndarray:
        """An epoch's images; with buckets in steps of one bucket each, which come in random order."""
        order = numpy_generator(config.seed, "order", epoch).permutation(self.members)
        if not isinstance(self.latents, BucketedRows):
            return order
        batches = whole_batches(order, self.latents.bucket_of, config.batch_size)
        return numpy_generator(config.seed, "order of steps", epoch).permutation(batches).flatten()

    def _candidates_of(
        self, row: int, own: str, count: int, shares: tuple[float, float], rng: np.random.Generator
    ) -> list[str]:
        belonging = self.captions[row]
        edited = _some(self.edits[row][belonging.index(own)], count * shares[0], rng)
        mined = _some(self.negatives[row], count * shares[1], rng)
        taken = [own, *edited, *mined]
        while len(taken) < 1 + count:
            caption = _one_of(self.all_captions, rng)
            if caption not in belonging:
                taken.append(caption)
        return taken


def _one_of(captions: list[str], rng: np.random.Generator) -> str:
    return captions[int(rng.integers(len(captions)))]


def _own_first(own: list[str], index: int, count: int, rng: np.random.Generator) -> list[str]:
    """An image's own caption, then `count` of the others', in their order, drawn uniformly where that is not all."""
    others = np.delete(np.arange(len(own)), index)
    chosen = others if count == len(others) else np.sort(rng.choice(others, count, replace=False))
    return [own[index], *(own[i] for i in chosen)]


def _some(captions: list[str], count: float, rng: np.random.Generator) -> list[str]:
    """As many as there are of `count`, drawn without replacement; of 0.3 one in three times out of ten."""
    order, whole = rng.permutation(len(captions)), int(count)
    if count > whole:
        whole += rng.random() < count - whole
    return [captions[i] for i in order[:whole]]
