from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from softrepa_pipeline.alerts import AlertConfig, alert

EVENT = {"event": "gate failed", "because": ["counting: −0.08"]}


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[bytes]]]:
    """A server on this machine, and the bodies that were posted to it."""
    bodies: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/alerts", bodies
        server.shutdown()


def test_a_command_gets_the_event_and_a_webhook_is_posted_to(tmp_path: Path, webhook: tuple[str, list[bytes]]) -> None:
    url, bodies = webhook
    file = tmp_path / "event.json"
    copy = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_bytes(sys.stdin.buffer.read())"
    alert(AlertConfig((sys.executable, "-c", copy, str(file)), url), EVENT)
    assert json.loads(file.read_bytes()) == EVENT
    assert [json.loads(body) for body in bodies] == [EVENT]


@pytest.mark.parametrize(
    "config",
    [
        AlertConfig(("/no/such/command",)),
        AlertConfig((sys.executable, "-c", "raise SystemExit(3)")),
        AlertConfig(url="http://127.0.0.1:9/nobody"),
    ],
)
def test_what_cannot_be_sent_stops_nothing(config: AlertConfig, caplog: pytest.LogCaptureFixture) -> None:
    alert(config, EVENT)
    assert "could not be sent" in caplog.text


def test_another_kind_of_address_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alerts\.url must begin with http"):
        AlertConfig(url="file:///etc/passwd")
