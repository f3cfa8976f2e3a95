"""Parts of an ingested folder, as encoding and embedding read them."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from softrepa_pipeline.ingestion import image_ids, iter_captions, iter_pairs, load_rgb, read_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven images in two parts, each of which holds one more in front, in row groups of four."""
    (tmp_path / "parts").mkdir()
    rows = []
    for part, numbers in (("a", range(6)), ("b", range(6, 11))):
        images = [b"taken from the pairs"]
        for row, number in enumerate(numbers, start=1):
            buffer = BytesIO()
            Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
            images.append(buffer.getvalue())
            place = {"part": part, "row": row}
            rows.append({"image_id": f"{number:032x}", "captions": [f"the {number}th", "one"], **place})
        pq.write_table(pa.table({"image": images}), tmp_path / "parts" / part, row_group_size=4)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    return tmp_path


@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4], [3, 4, 10], [9, 2, 2, 5, 1], [10], []])
def test_images_come_in_the_order_of_the_places(folder: Path, places: list[int]) -> None:
    assert [image.getpixel((0, 0)) for image in read_images(folder, places)] == [(place, 0, 0) for place in places]


def test_all_readers_have_one_order(folder: Path) -> None:
    pairs, ids = list(iter_pairs(folder)), image_ids(folder)
    assert ids == [pair.image_id for pair in pairs]
    assert list(iter_captions(folder)) == [(pair.image_id, pair.captions) for pair in pairs]
    for image, pair in zip(read_images(folder, list(range(11))), pairs, strict=True):
        np.testing.assert_array_equal(image, load_rgb(pair.image))
