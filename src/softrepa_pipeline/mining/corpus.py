"""What is mined: distinct captions with their embeddings, and the images that own them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from softrepa_pipeline.randomness import numpy_generator

_SAMPLE = 1024  # others that an image and a caption are compared with: the deviation is then known to 2 %
_BLOCK = 65536  # rows at once: bounds the memory


@dataclass(frozen=True)
class Corpus:
    """Images (their ids, and the rows of their captions) and the distinct `captions`.

    `texts` (captions, width) and `images` (images, width) are unit vectors, float32 or float16, memory-mapped or not;
    `images` is None for captions without pictures, where an id stands for a group of captions of one scene.
    """

    image_ids: list[str]
    own: list[np.ndarray]
    captions: list[str]
    texts: np.ndarray
    images: np.ndarray | None

    @cached_property
    def text_keys(self) -> np.ndarray:
        """A number for each caption (captions,): equal where only case, spacing or punctuation differ."""
        return np.unique([" ".join(words_of(caption)) for caption in self.captions], return_inverse=True)[1]

    @cached_property
    def words(self) -> sparse.csr_array:
        """Which words a caption has: 1 or absent, (captions, vocabulary)."""
        vocabulary: dict[str, int] = {}
        places, ends = [], [0]
        for caption in self.captions:
            places += sorted({vocabulary.setdefault(word, len(vocabulary)) for word in words_of(caption)})
            ends.append(len(places))
        shape = (len(self.captions), len(vocabulary))
        return sparse.csr_array((np.ones(len(places), np.int32), places, ends), shape=shape)

    def scores(self, image: int, rows: np.ndarray) -> np.ndarray:
        """How well captions fit an image, (rows,): their cosine with it, or with the nearest of its own captions."""
        texts = as_float32(self.texts[rows])
        if self.images is not None:
            return texts @ as_float32(self.images[image])
        return (texts @ as_float32(self.texts[self.own[image]]).T).max(axis=1)

    def fits(self, image: int, rows: np.ndarray) -> np.ndarray:
        """How well captions fit an image, whatever CLIP and data set, (rows,): about 0 for a caption of another image.

        The cosine of the two in deviations above that of the image with other captions, and of the caption with other
        images, averaged. Nine of ten captions that are true of an image have 1.3 or more on the embedded world.
        """
        by_image, by_caption = self._typical
        similarity = self.scores(image, rows)
        above_captions = (similarity - by_image[image, 0]) / by_image[image, 1]
        above_images = (similarity - by_caption[rows, 0]) / by_caption[rows, 1]
        return (above_captions + above_images) / 2

    @cached_property
    def _typical(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of the cosine of each image with captions (images, 2), of each caption with images."""
        assert self.images is not None, "captions without images fit nothing"
        rng = numpy_generator(0, "typical cosines")
        captions, images = (
            vectors[np.sort(rng.choice(len(vectors), min(len(vectors), _SAMPLE), replace=False))]
            for vectors in (self.texts, self.images)
        )
        return _moments(self.images, captions), _moments(self.texts, images)

    def positive(self, image: int) -> float:
        """How well an image's own captions fit it: the best cosine with the image.

        Without an image each caption is scored like a candidate, against the others, and the mean is taken; a caption
        that is alone has no positive score: NaN.
        """
        own = self.own[image]
        if self.images is not None:
            return float(self.scores(image, own).max())
        if len(own) == 1:
            return float("nan")
        texts = as_float32(self.texts[own])
        similarity = texts @ texts.T
        np.fill_diagonal(similarity, -np.inf)
        return float(similarity.max(axis=1).mean())


def captions_of(own: list[np.ndarray], images: np.ndarray) -> np.ndarray:
    """The rows of the captions of some images, each once."""
    return np.unique(np.concatenate([own[image] for image in images] or [np.empty(0, int)]))


def gather(captions: Iterable[tuple[str, ...]]) -> tuple[list[str], list[np.ndarray]]:
    """The distinct captions, sorted, and for each image the rows of its own."""
    own = [tuple(dict.fromkeys(each)) for each in captions]
    distinct = sorted({caption for each in own for caption in each})
    row_of = {caption: row for row, caption in enumerate(distinct)}
    return distinct, [np.array([row_of[caption] for caption in each]) for each in own]


def words_of(caption: str) -> list[str]:
    """A caption's words, whatever their case and what stands between them."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", caption).casefold())


def _moments(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean and deviation (vectors, 2) of each vector's similarity with others."""
    parts = []
    for start in range(0, len(vectors), _BLOCK):
        similarity = as_float32(vectors[start : start + _BLOCK]) @ as_float32(others).T
        parts.append(np.stack([similarity.mean(axis=1), similarity.std(axis=1) + 1e-6], axis=1))
    return np.concatenate(parts)


def as_float32(vectors: np.ndarray) -> np.ndarray:
    """Vectors as products and FAISS take them; a copy only where they are stored otherwise."""
    return np.ascontiguousarray(vectors, dtype=np.float32)
