"""What a training writes into its folder, sent to MLflow while it trains: it never waits for the tracking server."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from softrepa_pipeline import tracking

logger = logging.getLogger(__name__)

_INTERVAL = 2.0  # seconds
_LAST_WAIT = 60.0  # seconds
_RECORD_STEPS = 5


@contextmanager
def following(run: tracking.NestedRun, folder: Path) -> Iterator[None]:
    """Within it the curves in `folder/metrics.jsonl` and the images in `folder/samples` appear in the run."""
    follower = _Follower(run, folder)
    done = threading.Event()
    thread = threading.Thread(target=follower.work, args=(done,), name="softrepa-tracking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(_LAST_WAIT)
        if follower.is_behind:
            logger.warning("the tracking server is away: curves of this training are only in %s", folder)


@dataclass
class _Follower:
    run: tracking.NestedRun
    folder: Path
    is_behind: bool = False
    _num_sent: int = 0
    _sent_images: set[Path] = field(default_factory=set)

    def work(self, done: threading.Event) -> None:
        while True:
            is_last = done.wait(_INTERVAL)
            try:
                self.send()
                self.is_behind = False
            except tracking.UNREACHABLE as error:
                if not self.is_behind:
                    logger.warning("MLflow did not answer (%s); training goes on, curves will follow", error)
                self.is_behind = True
            if is_last:
                return

    def send(self) -> None:
        """Whatever is new; what could not be sent stays new."""
        log = self.folder / "metrics.jsonl"
        lines = log.read_text().splitlines() if log.is_file() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        # A rollback cuts the log: what comes after it is new again.
        new = records[min(self._num_sent, len(records)) :]
        worth = [record for record in new if record["step"] % _RECORD_STEPS == 0 or "validation_loss" in record]
        self.run.log_curves(worth)
        self._num_sent = len(records)
        for image in sorted((self.folder / "samples").glob("step-???????.png")):
            if image not in self._sent_images:
                self.run.log_image(image, "samples", int(image.stem.removeprefix("step-")))
                self._sent_images.add(image)
