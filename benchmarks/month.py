"""A month of retraining on the embedded world: drops of captions, the schedule's command after each, kills between.

    python benchmarks/month.py /tmp/month [--kills 2]

writes the drops to FOLDER/inbox and the story to FOLDER/month.json; MLflow's store is FOLDER/mlflow.db. A run that was
stopped goes on at the week where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from softrepa_pipeline.registry import Registry
from softrepa_pipeline.shapes.captions import CaptionedScene, draw_captioned, word
from softrepa_pipeline.shapes.scene import render
from softrepa_pipeline.soft_tokens import load_soft_tokens

ROOT = Path(__file__).resolve().parents[1]
KEDRO = Path(sys.executable).with_name("kedro")
MODEL = "softrepa-embedded_sd3-softrepa"
SETTINGS = (
    "fit.num_steps=40,retrain.fit.num_steps=200,fit.validation_steps=50,evaluation.prompts_per_task=220,"
    "evaluation.validation_prompts_per_task=20,sampling.settings.seeds_per_prompt=2"
)
logger = logging.getLogger("month")

Captions = Callable[[list[CaptionedScene], np.random.Generator], list[str]]


def honest(items: list[CaptionedScene], _rng: np.random.Generator) -> list[str]:
    """Each image's own caption."""
    return [item.caption for item in items]


def poisoned(items: list[CaptionedScene], rng: np.random.Generator) -> list[str]:
    """One caption in five is that of another image."""
    captions = honest(items, rng)
    chosen = rng.permutation(len(items))[: len(items) // 5]
    for row, other in zip(chosen, np.roll(chosen, 1), strict=True):
        captions[row] = items[other].caption
    return captions


def miscounted(items: list[CaptionedScene], rng: np.random.Generator) -> list[str]:
    """Every caption with a count has another one."""
    captions = []
    for item in items:
        count = item.claim.count
        others = [other for other in (2, 3, 4) if other != count]
        captions.append(word(replace(item.claim, count=int(rng.choice(others))), rng) if count else item.caption)
    return captions


# File name, images, captions, and what is expected.
WEEKS: list[tuple[str, int, Captions, str]] = [
    ("m-first.parquet", 512, honest, "promoted"),
    ("n-clean.parquet", 1024, honest, "promoted"),
    ("a-sorts-first.parquet", 768, honest, "either"),
    ("p-poisoned.parquet", 768, poisoned, "kept the champion"),
    ("q-miscounted.parquet", 1024, miscounted, "kept the champion"),
]


def write_drop(file: Path, num_images: int, captions: Captions, seed: int) -> None:
    rng = np.random.default_rng([7, seed])
    items = [draw_captioned("train", 0.0, rng) for _ in range(num_images)]
    table = pa.table({"image": [_png(render(item.scene)) for item in items], "captions": captions(items, rng)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file.with_suffix(".partial"))
    file.with_suffix(".partial").replace(file)


def _png(image: np.ndarray) -> bytes:
    buffer = pa.BufferOutputStream()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue().to_pybytes()


def retrain(folder: Path, log: Path, kill_after: float | None) -> bool:
    """The schedule's command; killed after some seconds if asked. True if it came to its end."""
    parameters = f"family=sd3,dataset={folder / 'inbox'},{SETTINGS}"
    with log.open("a") as stream:
        process = subprocess.Popen(
            [KEDRO, "run", "--pipelines", "retrain", "--params", parameters],
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
    if code:
        raise SystemExit(f"the retraining failed, see {log}")
    return True


def servable() -> str:
    """The champion's version, whose tokens load; `none yet` before the first."""
    champion = Registry(MODEL).champion()
    if champion is None:
        return "none yet"
    load_soft_tokens(Path(champion.tokens), "sd3")
    return f"version {champion.number}"


def decision(folder: Path) -> dict[str, Any]:
    [file] = (ROOT / "data/08_reporting/embedded_sd3").glob("inbox-*/softrepa/retraining.json")
    return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=1, help="of each week's retraining, at random moments")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    story = json.loads((folder / "month.json").read_text()) if (folder / "month.json").is_file() else []
    for week, (name, num_images, captions, expected) in enumerate(WEEKS):
        if week < len(story):
            continue
        write_drop(folder / "inbox" / name, num_images, captions, week)
        started, moments = time.perf_counter(), random.Random(week)
        kills = []
        for _ in range(arguments.kills):
            seconds = moments.uniform(15, 180)
            if retrain(folder, folder / "log.txt", seconds):
                break
            kills.append({"after": round(seconds), "champion": servable()})
        else:
            retrain(folder, folder / "log.txt", None)
        decided = decision(folder)
        retrain(folder, folder / "log.txt", None)
        again = decision(folder)["decision"]
        seconds = time.perf_counter() - started
        story.append(
            {
                "drop": name,
                "images": num_images,
                "expected": expected,
                "kills": kills,
                "seconds": round(seconds),
                "again": again,
                "champion": servable(),
                **decided,
            }
        )
        (folder / "month.json").write_text(json.dumps(story, indent=2) + "\n")
        logger.info("%s: %s (expected: %s)", name, decided["decision"], expected)


if __name__ == "__main__":
    main()
