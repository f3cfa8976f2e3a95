"""Near-duplicates, leaks between splits and floods: found, reported, and taken out where they must not be."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from ingestion_samples import ingest_folder, items, rows, write_images, write_jsonl, write_sidecars
from PIL import Image

from softrepa_pipeline.ingestion import iter_pairs, leaks
from softrepa_pipeline.ingestion.duplicates import hamming, near_duplicates, near_others, pairs_within

SAMPLE = Path(__file__).parents[2] / "data/01_raw/coco_sample"


def neighbours(count: int, seed: int) -> np.ndarray:
    """Random hashes, and half as many that differ from them in 0 to 9 bits."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, np.uint64, endpoint=False)
    near = rng.choice(hashes, count // 2)
    for index in range(len(near)):
        for bit in rng.choice(64, index % 10, replace=False):
            near[index] ^= np.uint64(1) << np.uint64(bit)
    return rng.permutation(np.concatenate([hashes, near]))


@pytest.mark.parametrize("distance", [0, 1, 4, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_pairs_are_those_that_comparing_all_finds(distance: int, seed: int) -> None:
    hashes = neighbours(200, seed)
    distances = hamming(hashes[:, None], hashes[None, :])
    one, other = np.nonzero(np.triu(distances <= distance, 1))
    assert set(zip(*pairs_within(hashes, distance), strict=True)) == set(zip(one, other, strict=True))
    assert len(one) > 5

    rows, originals, found = near_duplicates(hashes, distance)
    distances[np.triu_indices(len(hashes))] = 99  # only earlier ones count
    nearest = distances.argmin(axis=1)
    is_near = distances.min(axis=1) <= distance
    assert np.array_equal(rows, np.flatnonzero(is_near))
    # Images with the same hash stand for each other, so that the nearest may be named by another of the same hash.
    assert np.array_equal(hashes[originals] ^ hashes[rows], hashes[nearest[rows]] ^ hashes[rows])
    assert np.array_equal(found, distances.min(axis=1)[rows])
    assert (originals < rows).all()


@pytest.mark.parametrize("distance", [0, 4])
def test_neighbours_in_another_set_are_those_that_comparing_all_finds(distance: int) -> None:
    every = neighbours(200, 2)
    hashes, others = every[:100], every[100:]
    distances = hamming(hashes[:, None], others[None, :])
    rows, originals, found = near_others(hashes, others, distance)
    assert np.array_equal(rows, np.flatnonzero(distances.min(axis=1) <= distance))
    assert np.array_equal(originals, distances.argmin(axis=1)[rows])
    assert np.array_equal(found, distances.min(axis=1)[rows])
    assert len(rows) > 2


def test_no_images_have_no_duplicates() -> None:
    nothing = np.empty(0, np.uint64)
    assert [len(part) for part in (*near_duplicates(nothing, 4), *near_others(nothing, nothing, 4))] == [0] * 6


def again(file: Path, kind: str) -> bytes:
    """The photo as it comes back from elsewhere."""
    image = Image.open(file).convert("RGB")
    buffer = BytesIO()
    if kind == "smaller":
        image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(buffer, "JPEG")
    elif kind == "brighter":
        image.point(lambda value: min(255, int(value * 1.1) + 5)).save(buffer, "JPEG")
    else:
        image.save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["smaller", "brighter", "compressed"])
def test_photos_that_came_back_changed_are_near_duplicates_and_no_others(tmp_path: Path, kind: str) -> None:
    photos = sorted(SAMPLE.glob("*.jpg"))
    found = {file.name: (file.read_bytes(), [f"photo {file.name}"]) for file in photos}
    found |= {f"x{file.name}": (again(file, kind), ["again"]) for file in photos[::2]}
    manifest = ingest_folder(write_jsonl(tmp_path / "raw", found), tmp_path / "out")
    source_of = {row["image_id"]: row["source"] for row in rows(tmp_path / "out/pairs.parquet")}
    table = rows(tmp_path / "out/duplicates.parquet")
    assert {source_of[row["image_id"]]: source_of[row["duplicate_of"]] for row in table} == {
        f"x{file.name}": file.name for file in photos[::2]
    }
    assert all(0 <= row["distance"] <= 4 for row in table)
    assert manifest["num_near_duplicates"] == len(table) == 12
    # They are reported, not removed.
    assert manifest["num_images"] == 36


def test_what_is_in_the_evaluation_set_does_not_stay_in_the_training_set(tmp_path: Path) -> None:
    photos = sorted(SAMPLE.glob("*.jpg"))
    captions = {file.name: [f"photo {index}", f"picture {index}"] for index, file in enumerate(photos)}
    training = {file.name: (file.read_bytes(), captions[file.name]) for file in photos}
    evaluation = {
        "exact.jpg": (photos[0].read_bytes(), ["another caption"]),
        "near.jpg": (again(photos[1], "compressed"), ["another caption still"]),
        "other.jpg": (items(1)["0000.jpg"][0], ["photo 2", "photo 3", "picture 3"]),
    }
    ingest_folder(write_jsonl(tmp_path / "test", evaluation), tmp_path / "evaluation")
    whole = ingest_folder(write_jsonl(tmp_path / "train", training), tmp_path / "whole")
    found = leaks(tmp_path / "whole/pairs.parquet", tmp_path / "evaluation/pairs.parquet", 4)
    assert sorted(found.images.values()) == ["evaluation image", "near-duplicate of an evaluation image"]
    assert set(found.captions) == {"photo 2", "photo 3", "picture 3"}

    output = tmp_path / "out"
    manifest = ingest_folder(tmp_path / "train", output, evaluation=str(tmp_path / "evaluation"))
    names = [file.name for file in photos]
    assert [row["file"] for row in rows(output / "quarantine.parquet")] == [*names[:3], names[3], names[3]]
    assert manifest["reasons"] == {
        "evaluation caption": 3,
        "evaluation image": 1,
        "near-duplicate of an evaluation image": 1,
    }
    assert (whole["num_leaked"], manifest["num_leaked"], manifest["num_images"]) == (0, 3, 21)
    kept = list(iter_pairs(output))
    assert [pair.image for pair in kept] == [photos[index].read_bytes() for index in (2, *range(4, 24))]
    assert kept[0].captions == ("picture 2",)


def test_an_evaluation_set_that_was_not_ingested_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ingest\.evaluation is .*nowhere, where there is no pairs\.parquet"):
        ingest_folder(
            write_sidecars(tmp_path / "raw", items(1)), tmp_path / "out", evaluation=str(tmp_path / "nowhere")
        )


def test_floods_are_taken_out_above_their_limits(tmp_path: Path) -> None:
    found = items(30)
    flooded = {name: (data, [*captions, "buy now"]) for name, (data, captions) in list(found.items())[:8]}
    only = {"0009.jpg": (found["0009.jpg"][0], ["buy now"])}
    wordy = {"0010.jpg": (found["0010.jpg"][0], [f"caption {number}" for number in range(21)])}
    source = write_sidecars(tmp_path / "raw", found | flooded | only | wordy)
    settings = {"max_captions_per_image": 20, "max_images_per_caption": 8}
    manifest = ingest_folder(source, tmp_path / "out", **settings)
    assert manifest["reasons"] == {"caption of more than 8 images": 9, "more than 20 captions": 1}
    assert manifest["num_images"] == 28
    kept = {pair.captions for pair in iter_pairs(tmp_path / "out")}
    assert ("photo 3", "the 3th picture") in kept
    assert not any("buy now" in captions for captions in kept)
    assert (manifest["most_images_of_a_caption"], manifest["most_captions_of_an_image"]) == (9, 21)

    manifest = ingest_folder(source, tmp_path / "out", max_captions_per_image=21, max_images_per_caption=9)
    assert (manifest["num_images"], manifest["num_quarantined"]) == (30, 0)


def test_a_flooded_data_set_stops_the_run(tmp_path: Path) -> None:
    found = {name: (data, ["buy now"]) for name, (data, _) in items(20).items()}
    source = tmp_path / "raw"
    write_images(source, found)
    write_sidecars(source, found)
    with pytest.raises(ValueError, match=r"20 of 20 samples .* caption of more than 10 images \(20\)"):
        ingest_folder(source, tmp_path / "out", max_images_per_caption=10)


@pytest.mark.parametrize("name", ["max_images_per_caption", "max_captions_per_image", "near_duplicate_bits"])
def test_limits_that_make_no_sense_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"ingest\.{name}"):
        ingest_folder(write_sidecars(tmp_path / "raw", items(1)), tmp_path / "out", **{name: -1})
