"""Two processes against one, each on a core of its own: the same tokens, more pairs a second."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import model_config, published, rendered_data
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from softrepa_pipeline.inference import SamplingConfig
from softrepa_pipeline.soft_tokens import load_soft_tokens
from softrepa_pipeline.training import ExecutionConfig, Job, Provenance, SamplesConfig
from softrepa_pipeline.training.job import run_job

_FAMILY = "sd3"
_STEPS = 20
_BATCH_SIZE = 16
_ROUNDS = 5


def measure() -> dict[str, Any]:
    """`scaling_2p`: pairs a second of two processes over those of one; difference of the tokens; share of waiting."""
    with tempfile.TemporaryDirectory() as folder:
        negatives, latents = _data(Path(folder))
        ratios, waits, differences = [], [], []
        for number in range(_ROUNDS):
            runs = {}
            for size in (1, 2):
                run = Path(folder) / f"{number}-{size}"
                job = _job(latents, negatives, run)
                _launch(job, size)
                runs[size] = (*_figures(run), load_soft_tokens(job.tokens_file)[0])
            ratios.append(runs[2][0] / runs[1][0])
            waits.append(runs[2][1])
            one, two = runs[1][2].state_dict(), runs[2][2].state_dict()
            differences.append(max(float((two[name] - value).norm() / value.norm()) for name, value in one.items()))
            print(f"{runs[1][0]:.0f} pairs/s, {runs[2][0]:.0f} with two processes: {ratios[-1]:.2f}×", flush=True)
    ratio, wait = statistics.median(ratios), statistics.median(waits)
    print(f"scaling {ratio:.2f}, waiting for data {wait:.3f}, tokens differ by {max(differences):.1e}")
    return {"scaling_2p": ratio, "wait_share": wait, "tokens_difference": max(differences)}


def _data(folder: Path) -> tuple[Path, Path]:
    data = rendered_data(_FAMILY, folder)
    columns = {"image_id": data.image_ids, "captions": data.captions, "edits": data.edits}
    pq.write_table(pa.table({**columns, "negatives": data.negatives}), folder / "negatives.parquet")
    return folder / "negatives.parquet", folder / "latents"


def _job(latents: Path, negatives: Path, folder: Path) -> Job:
    fit = published(_FAMILY, _BATCH_SIZE, num_steps=_STEPS)
    execution = ExecutionConfig(max_pairs_in_memory=64, checkpoint_steps=1000)
    samples = SamplesConfig(3.0, SamplingConfig(1, 1), num_prompts=1)
    paths = ((str(latents),), str(negatives), str(folder))
    return Job(model_config(_FAMILY), fit, execution, samples, *paths, Provenance("", "", "", ""))


def _launch(job: Job, size: int) -> None:
    config = LaunchConfig(1, 1, size, run_id="bench", rdzv_backend="c10d", rdzv_endpoint="localhost:0")
    elastic_launch(config, pinned)(job.write())


def pinned(file: Path) -> None:
    """A worker on one core, however many it could have."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["LOCAL_RANK"]) % len(cores)]})
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    run_job(file)


def _figures(folder: Path) -> tuple[float, float]:
    """Medians of pairs a second and of the share of waiting, without the first steps."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][3:]
    return tuple(statistics.median(r[name] for r in records) for name in ("pairs_per_second", "wait_share"))  # type: ignore[return-value]


if __name__ == "__main__":
    measure()
