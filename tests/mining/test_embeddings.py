"""CLIP embeddings: kept by content, so that only what is new is embedded, and the same whoever embeds."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from encoder_work import CLIP, embed, killed_at_random, outputs
from PIL import Image
from store_work import keys, picture, read

from softrepa_pipeline.mining import ClipEncoder, Embeddings, embeddings
from softrepa_pipeline.runners import LocalRunner

CAPTIONS = [
    f"{number} {color} {shape}" for number in "ab" for color in ("red", "blue") for shape in ("circle", "square")
]


def numbered(numbers: list[int], seen: list[int], places: list[int]) -> Iterator[Image.Image]:
    for place in places:
        seen.append(numbers[place])
        yield picture(numbers[place])


@pytest.fixture
def clip() -> ClipEncoder:
    return ClipEncoder(str(CLIP))


def test_embeddings_are_clip_s_in_half_precision_with_unit_length(clip: ClipEncoder, tmp_path: Path) -> None:
    kept = Embeddings(str(CLIP), tmp_path, partial(read, [0, 1, 2]))
    for found, expected in (
        (kept.of_images(keys(0, 1, 2)), clip.images([picture(number) for number in range(3)])),
        (kept.of_captions(CAPTIONS), clip.captions(CAPTIONS)),
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        # Half precision has 11 bits; the length moves by as much at most.
        np.testing.assert_allclose(found, expected, rtol=2**-10, atol=1e-6)
    (file,) = next(folder for folder in tmp_path.iterdir() if folder.name.endswith("captions")).iterdir()
    assert file.stat().st_size <= len(CAPTIONS) * (128 * 2 + 16) + 400


def test_a_second_data_set_embeds_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    first = Embeddings(str(CLIP), tmp_path, partial(numbered, [0, 1, 2, 3], seen)).of_images(keys(0, 1, 2, 3))
    again = Embeddings(str(CLIP), tmp_path, partial(numbered, [3, 7, 1], seen)).of_images(keys(3, 7, 1))
    assert seen == [0, 1, 2, 3, 7]
    np.testing.assert_array_equal(again[[0, 2]], first[[3, 1]])

    embedded: list[str] = []
    original = ClipEncoder.captions

    def noted(self: ClipEncoder, captions: list[str]) -> np.ndarray:
        embedded.extend(captions)
        return original(self, captions)

    monkeypatch.setattr(ClipEncoder, "captions", noted)
    kept = Embeddings(str(CLIP), tmp_path, partial(read, [0, 1, 2]))
    before = kept.of_captions(CAPTIONS)
    edited = [*CAPTIONS[:3], "a green circle", *CAPTIONS[4:], CAPTIONS[0]]
    after = kept.of_captions(edited)
    assert embedded == [*CAPTIONS, "a green circle"]
    np.testing.assert_array_equal(after[[0, 1, 2, 4, 5, 6, 7, 8]], before[[0, 1, 2, 4, 5, 6, 7, 0]])


def test_another_clip_has_embeddings_of_its_own(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(CLIP, other)
    config = other / "preprocessor_config.json"
    config.write_text(config.read_text() + "\n")
    for clip in (CLIP, other):
        Embeddings(str(clip), tmp_path / "kept", partial(read, [])).of_captions(CAPTIONS)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_processes_embed_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_SHARD_ROWS", 8)
    numbers = list(range(20))
    for num_processes in (1, 2):
        kept = Embeddings(
            str(CLIP), tmp_path / str(num_processes), partial(read, numbers), runner=LocalRunner(num_processes)
        )
        kept.of_images(keys(*numbers))
    assert outputs(tmp_path / "1") == outputs(tmp_path / "2")
    assert len(outputs(tmp_path / "1")) == 3


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_embedding_ends_with_the_same_files(
    tmp_path: Path, processes: multiprocessing.context.ForkServerContext, num_kills: int
) -> None:
    killed_at_random(processes, embed, tmp_path, num_kills, num_files=16)
