"""`torchrun --nproc-per-node 2 -m softrepa_pipeline.training JOB.json`: one process of a training."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from softrepa_pipeline.training.job import run_job

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) != 2:
        raise SystemExit(
            f"usage: {Path(sys.argv[0]).name} JOB.json (the training node writes one into its run's folder)"
        )
    record(run_job)(Path(sys.argv[1]))
