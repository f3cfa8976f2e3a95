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
# Seconds: MLflow's own retries go on for four minutes, with pauses that grow to two; nobody waits so long after Ctrl-C.
_LAST_WAIT = 300.0
_LAST_WAIT_AFTER_ERROR = 60.0


@contextmanager
def following(run: tracking.NestedRun, folder: Path) -> Iterator[None]:
    """Within it the curves in `folder/metrics.jsonl` and the images in `folder/samples` appear in the run."""
    follower = _Follower(run, folder)
    done = threading.Event()
    thread = threading.Thread(target=follower.work, args=(done,), name="softrepa-tracking", daemon=True)
    thread.start()
    last_wait = _LAST_WAIT_AFTER_ERROR
    try:
        yield
        last_wait = _LAST_WAIT
    finally:
        done.set()
        thread.join(last_wait)
        if follower.is_behind or thread.is_alive():
            logger.warning("the tracking server is away: curves of this training are only in %s", folder)


@dataclass
class _Follower:
    run: tracking.NestedRun
    folder: Path
    is_behind: bool = False
    _sent: list[str] = field(default_factory=list)
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
        lines = [line for line in log.read_text().splitlines() if line.endswith("}")] if log.is_file() else []
        # A rollback cuts the log: what comes after it is new again, however long the log has grown.
        is_same = [sent == line for sent, line in zip(self._sent, lines, strict=False)]
        new = [json.loads(line) for line in lines[[*is_same, False].index(False) :]]
        self.run.log_curves(new)
        self._sent = lines
        for image in sorted((self.folder / "samples").glob("step-???????.png")):
            if image not in self._sent_images:
                self.run.log_image(image, "samples", int(image.stem.removeprefix("step-")))
                self._sent_images.add(image)
