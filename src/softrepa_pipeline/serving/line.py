"""A bounded line before the one device that draws."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from anyio import to_thread

T = TypeVar("T")


class LineFull(Exception):
    """Nobody else may wait; `retry_after` says in how many seconds the line should be gone."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"busy; try again in {retry_after} s")
        self.retry_after = retry_after


class GivenUp(Exception):
    """Whoever asked has gone before the turn came."""


class Line:
    """Runs one job at a time in a thread, in the order of arrival; at most `length` others wait."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._inside = 0
        self._turn = asyncio.Lock()
        self._seconds = 1.0  # of the last job

    async def run(self, job: Callable[[], T], is_given_up: Callable[[], Awaitable[bool]]) -> T:
        """Wait for a turn, then run the job off the event loop, unless it was given up meanwhile.

        Raises:
            LineFull: too many wait already.
            GivenUp: it was.
        """
        if self._inside > self._length:
            raise LineFull(math.ceil(self._seconds * self._inside))
        self._inside += 1
        try:
            async with self._turn:
                if await is_given_up():
                    raise GivenUp
                start = time.monotonic()
                result = await to_thread.run_sync(job)
                self._seconds = time.monotonic() - start
                return result
        finally:
            self._inside -= 1
