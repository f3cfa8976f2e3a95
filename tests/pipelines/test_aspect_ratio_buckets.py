"""The fit stage on images of several shapes, which keep them."""

from __future__ import annotations

import json
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ingestion_samples import ingest_folder, write_sidecars
from PIL import Image

from softrepa_pipeline.caches import stores_under
from softrepa_pipeline.ingestion import image_ids
from softrepa_pipeline.pipelines.fit.nodes import fit_tokens

SIZES = {(32, 32): "square1-32", (40, 24): "crop1-40x24", (24, 40): "crop1-24x40"}

# Words that the tiny models know, or all captions would be one to them.
CAPTIONS = [" ".join(words) for words in product(("a", "two"), ("red", "blue", "green"), ("circle", "squares", "left"))]


def drawing(number: int, size: tuple[int, int]) -> bytes:
    buffer, rng = BytesIO(), np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 255, (3 * size[0], 3 * size[1], 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_each_shape_has_a_store_and_training_reads_them(sd3_folder: Path, tmp_path: Path) -> None:
    names = [(f"{height}x{width}-{number}.png", (height, width)) for height, width in SIZES for number in range(5)]
    found = {name: (drawing(place, size), [f"picture {place}"]) for place, (name, size) in enumerate(names)}
    pairs = ingest_folder(write_sidecars(tmp_path / "raw", found), tmp_path / "pairs")
    ids = image_ids(tmp_path / "pairs")
    columns = {"image_id": ids, "captions": [[caption] for caption in CAPTIONS[: len(ids)]]}
    table = pa.table({**columns, "edits": [[[]]] * len(ids), "negatives": [["a red triangle"]] * len(ids)})
    pq.write_table(table, tmp_path / "negatives.parquet")

    model = {"family": "sd3", "base": str(sd3_folder), "max_sequence_length": 0}
    changes = {"aspect_ratio_buckets": True, "flip": True, "batch_size": 2, "num_steps": 6, "held_out_images": 2}
    parameters = {"preset": "embedded", "objective": "softrepa", "layers": [0, 1], "resolution": 32, **changes}
    sampling = {"guidance": 2.0, "settings": {"num_inference_steps": 2, "batch_size": 4}, "num_prompts": 2}
    folders = {name: str(tmp_path / name) for name in ("latents", "clip", "texts", "tokens")}
    mined = {"folder": str(tmp_path), "digest": "0"}
    result = fit_tokens(pairs, mined, model, parameters, {}, sampling, folders, {}, {}, force=False)
    assert Path(result["file"]).is_file()

    stores = {store.kind: len(store) for store in stores_under([tmp_path / "latents"])}
    for name in SIZES.values():
        assert [count for kind, count in stores.items() if kind.endswith(name)] == [5]
        assert [count for kind, count in stores.items() if kind.endswith(f"{name}-mirrored")] == [5]
    (curve,) = (tmp_path / "tokens").rglob("metrics.jsonl")
    losses = [record["loss"] for record in map(json.loads, curve.read_text().splitlines()) if "loss" in record]
    assert len(losses) == 6
    assert np.isfinite(losses).all()
