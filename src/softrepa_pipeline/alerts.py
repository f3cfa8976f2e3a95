"""Telling somebody: a command or a webhook gets what happened as JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

_TIMEOUT = 15.0


@dataclass(frozen=True)
class AlertConfig:
    """A command that gets the event on its standard input, and a URL that it is posted to; both may be left out."""

    command: tuple[str, ...] = ()
    url: str | None = None

    def __post_init__(self) -> None:
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"alerts.url must begin with http:// or https://, not {self.url!r}")


def alert(config: AlertConfig, event: Mapping[str, Any]) -> None:
    """Send an event; that it cannot be sent is logged and stops nothing."""
    body = json.dumps(event).encode()
    try:
        if config.command:
            subprocess.run(config.command, input=body, check=True, timeout=_TIMEOUT, stdout=subprocess.DEVNULL)
        if config.url is not None:
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(config.url, body, headers)
            with urllib.request.urlopen(request, timeout=_TIMEOUT):
                pass
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the alert could not be sent: %s", error)
