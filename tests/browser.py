"""Headless Chromium over its DevTools protocol: enough to load a page, run a line of script in it and photograph it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
_FLAGS += ("--disable-background-networking", "--remote-debugging-port=0")


def find_chromium() -> str:
    """Its program; the test is skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium here")


class Browser:
    """One page of a browser of its own, inside an `async with` block; `messages` is what its console said."""

    def __init__(self, profile: Path) -> None:
        self._profile, self._ids = profile, itertools.count()
        self.messages: list[str] = []

    async def __aenter__(self) -> Browser:
        command = [find_chromium(), *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        chosen = self._profile / "DevToolsActivePort"
        await self._until(lambda: chosen.is_file() and chosen.read_text().strip())
        port = chosen.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [one for one in await answer.json() if one["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        self._process.terminate()
        self._process.wait(30)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            if message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.messages.append(str(message["params"]))

    async def open(self, address: str, width: int = 1000, height: int = 900) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.call("Page.navigate", url=address)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def value(self, script: str) -> Any:
        """What an expression or a promise evaluates to in the page."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        code = {"Enter": 13, "ArrowLeft": 37}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    async def until(self, script: str) -> None:
        """Wait for an expression to become true."""
        for _ in range(600):
            if await self.value(script):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(
            f"{script} did not come true; the page says: {await self.value('document.body.innerText')}"
        )

    async def photograph(self, file: Path) -> None:
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    async def _until(self, happened: Any) -> None:
        for _ in range(600):
            if happened():
                return
            assert self._process.poll() is None, "Chromium has ended"
            await asyncio.sleep(0.1)
        raise AssertionError("Chromium does not answer")
