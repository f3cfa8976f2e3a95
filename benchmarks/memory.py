"""Peak memory above the idle process at 8 × 8 and 64 × 64 pairs, and step time against the number of pairs."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import embedded, memory_mib, published, rendered_data, trainer

from softrepa_pipeline.backbones import inject
from softrepa_pipeline.training.interruption import Interruption
from softrepa_pipeline.training.loading import load_step

_FAMILY = "sd3"
_PAIRS_AT_ONCE = 64
_SIZES = (8, 16, 32, 64)
_MICRO_BATCHES = 128  # the same for every size
# glibc keeps freed blocks of up to 32 MiB for itself, in holes that depend on the order of requests: 10 % and more of
# the peak, not always the same. With a fixed threshold the peak is what is in use.
_EVERY_BLOCK_GOES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}


def measure() -> dict[str, Any]:
    """`memory_ratio`: peak above idle at B = 64 over that at B = 8; and the line that step time follows."""
    peaks = {size: _in_own_process(size, **_EVERY_BLOCK_GOES_BACK)["peak_mib"] for size in (8, 64)}
    ratio = peaks[64] / peaks[8]
    print(f"peak above idle: {peaks[8]:.0f} MiB at B = 8, {peaks[64]:.0f} MiB at B = 64, ratio {ratio:.3f}", flush=True)
    runs = {size: _in_own_process(size) for size in _SIZES}
    for size, run in runs.items():
        print(
            f"B {size}: {run['seconds']:.3f} s a step, {run['peak_mib']:.0f} MiB with the allocator's holes", flush=True
        )
    pairs = np.array([size**2 for size in _SIZES], dtype=float)
    seconds = np.array([run["seconds"] for run in runs.values()])
    slope, start = np.polyfit(pairs, seconds, 1)
    unexplained = ((seconds - start - slope * pairs) ** 2).sum() / ((seconds - seconds.mean()) ** 2).sum()
    print(f"{1000 * slope:.2f} ms a pair + {1000 * start:.0f} ms a step, R² {1 - unexplained:.5f}", flush=True)
    fit = {"milliseconds_a_pair": 1000 * slope, "milliseconds": 1000 * start, "r_squared": 1 - unexplained}
    return {"memory_ratio": ratio, "memory_peak_mib": peaks, "pairs_runs": runs, "pairs_fit": fit}


def _in_own_process(batch_size: int, **environment: str) -> dict[str, float]:
    command = [sys.executable, __file__, str(batch_size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    return json.loads(done.stdout.splitlines()[-1])


def _run(batch_size: int) -> dict[str, float]:
    torch.set_num_threads(1)
    backbone = embedded(_FAMILY)
    with tempfile.TemporaryDirectory() as folder:
        data = rendered_data(_FAMILY, Path(folder))
        made = trainer(backbone, data, published(_FAMILY, batch_size), _PAIRS_AT_ONCE)
        with inject(backbone.denoiser, made.sites, made.method.injected):
            idle = memory_mib("VmRSS")
            made.prepare()
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
            seconds = []
            for step in range(_MICRO_BATCHES * _PAIRS_AT_ONCE // batch_size**2):
                started = time.perf_counter()
                loaded = load_step(backbone, data, made.config, made.progress.density, step, slice(None))
                made.step(step, loaded, 0.0, Interruption())
                seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds), "peak_mib": memory_mib("VmHWM") - idle}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(_run(int(sys.argv[1]))))
    else:
        measure()
