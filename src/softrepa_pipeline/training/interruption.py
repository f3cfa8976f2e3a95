"""Ctrl-C and SIGTERM end a training after the step that runs, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interruption:
    """Whether the process was asked to stop."""

    is_requested: bool = False


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Within it the first signal only asks to stop, the second one acts as ever."""
    state = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def ask(number: int, _frame: FrameType | None) -> None:
        state.is_requested = True
        signal.signal(number, before[signal.Signals(number)])

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
