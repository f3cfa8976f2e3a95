"""Peak memory and time of an ingestion against the number of images, each in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from softrepa_pipeline.ingestion import IngestConfig, Limits, ingest, open_source

_SIZES = (1_000, 50_000)
_FORMATS = ("parquet", "jsonl", "sidecars")


def measure() -> dict[str, Any]:
    """`ingest_memory`: for each format the peak at both sizes in MiB, and their ratio."""
    results = {}
    for kind in _FORMATS:
        runs = {}
        for count in _SIZES:
            with tempfile.TemporaryDirectory() as folder:
                _write(kind, count, Path(folder) / "source")
                command = [sys.executable, __file__, folder]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                runs[count] = json.loads(done.stdout.splitlines()[-1])
        ratio = runs[_SIZES[1]]["peak_mib"] / runs[_SIZES[0]]["peak_mib"]
        results[kind] = {"ratio": ratio, **{str(count): run for count, run in runs.items()}}
        print(f"{kind}: {runs}, peak × {ratio:.3f}", flush=True)
    return {"ingest_memory": results}


def _images(count: int) -> Iterator[bytes]:
    """Small JPEGs, all different: bytes after the end of one are no fault."""
    encoded = []
    for seed in range(100):
        buffer = BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
        encoded.append(buffer.getvalue())
    return (encoded[number % 100] + number.to_bytes(4, "little") for number in range(count))


def _captions(number: int) -> list[str]:
    return [f"image number {number}, caption {index} of five, as long as a usual one is" for index in range(5)]


def _write(kind: str, count: int, folder: Path) -> None:
    folder.mkdir()
    if kind == "parquet":
        schema = pa.schema({"image": pa.binary(), "captions": pa.list_(pa.string())})
        with pq.ParquetWriter(folder / "data.parquet", schema) as writer:
            rows: list[dict[str, Any]] = []
            for number, image in enumerate(_images(count)):
                rows.append({"image": image, "captions": _captions(number)})
                if len(rows) == 500 or number == count - 1:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows = []
        return
    with (folder / "metadata.jsonl").open("w") as lines:
        for number, image in enumerate(_images(count)):
            name = f"{number // 1000:03d}/{number:06d}.jpg"
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(image)
            if kind == "jsonl":
                lines.write(json.dumps({"file_name": name, "captions": _captions(number)}) + "\n")
            else:
                (folder / name).with_suffix(".txt").write_text("\n".join(_captions(number)))
    if kind == "sidecars":
        (folder / "metadata.jsonl").unlink()


def _run(folder: Path) -> dict[str, float]:
    """Ingest twice: from nothing, and again with every shard checked."""
    config = IngestConfig(str(folder / "source"), str(folder / "out"), Limits())
    started = time.perf_counter()
    ingest(config, open_source(config.source))
    first = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    open_source(config.source)
    return {"peak_mib": peak, "seconds": first, "seconds_to_find_nothing_new": time.perf_counter() - started}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(_run(Path(sys.argv[1]))))
    else:
        measure()
