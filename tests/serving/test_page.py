"""The page in a real browser: a prompt is drawn twice from one noise, and the slider draws the soft image anew."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from browser import Browser, find_chromium
from PIL import Image
from serving_samples import DEFAULTS, Served, base_of, write_tokens

from softrepa_pipeline.serving.app import create_app
from softrepa_pipeline.serving.painter import Drawing, Painter, load_painter

# What a person sees, not what the server sent.
_PIXELS = """(() => {
    const image = document.getElementById(%s), canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
})()"""
_OTHER = """{method: "POST", headers: {"Content-Type": "application/json"}, body: '{"prompt": "a"}'}"""
_DRAWN = "['base', 'soft'].every(id => document.getElementById(id).naturalWidth) && !drawing"


@pytest.fixture(scope="module")
def painter(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Painter:
    tokens = write_tokens(tmp_path_factory.mktemp("tokens") / "soft_tokens.safetensors")
    return load_painter(base_of(model_folders["sd3"]), tokens, DEFAULTS)


async def pixels(browser: Browser, image: str) -> bytes:
    return bytes(await browser.value(_PIXELS % json.dumps(image)))


def drawn(painter: Painter, strength: float) -> bytes:
    png = painter.draw(Drawing(prompt="a red <circle>", seed=7, strength=strength))
    return Image.open(io.BytesIO(png)).convert("RGBA").tobytes()


async def use_the_page(browser: Browser, address: str, painter: Painter) -> None:
    await browser.open(address)
    assert (
        await browser.value("fields.guidance.value + ' ' + fields.steps.value + ' ' + shown.textContent") == "4 2 1.00"
    )
    await browser.value("fields.seed.value = 7")
    await browser.type("a red <circle>")
    await browser.press("Enter")
    await browser.until(_DRAWN)
    base = await browser.value("document.getElementById('base').src")
    assert await pixels(browser, "base") == drawn(painter, 0.0)
    assert await pixels(browser, "soft") == drawn(painter, 1.0)

    await browser.value("fields.strength.focus()")
    for _ in range(10):
        await browser.press("ArrowLeft")
    assert await browser.value("shown.textContent") == "0.50"
    await browser.until(_DRAWN)
    assert await pixels(browser, "soft") == drawn(painter, 0.5)
    assert await browser.value("document.querySelectorAll('figcaption')[1].textContent") == "Soft tokens, strength 0.50"
    assert await browser.value("document.getElementById('base').src") == base
    assert await browser.value("document.getElementById('status').textContent") == ""
    assert browser.messages == []

    await browser.value("form.noValidate = true; fields.steps.value = 101; form.requestSubmit()")
    await browser.until("document.getElementById('status').className === 'error'")
    status = await browser.value("document.getElementById('status').textContent")
    assert status == "steps: Input should be less than or equal to 100"


def in_a_browser(painter: Painter, folder: Path, max_waiting: int, use: Callable[..., Awaitable[None]]) -> None:
    find_chromium()

    async def scenario(address: str) -> None:
        async with Browser(folder / "profile") as browser:
            await use(browser, address, painter)
            await browser.photograph(folder / "page.png")

    with Served(create_app(painter, "sd3", max_waiting)) as served:
        asyncio.run(scenario(served.address))


def test_a_prompt_is_drawn_and_the_slider_draws_again(painter: Painter, tmp_path: Path) -> None:
    in_a_browser(painter, tmp_path, 1, use_the_page)
    assert Image.open(tmp_path / "page.png").width == 1000


async def come_while_another_draws(browser: Browser, address: str, painter: Painter) -> None:
    await browser.open(address)
    with painter._turn:
        await browser.value(f"void fetch('api/draw', {_OTHER})")
        await browser.type("a red <circle>")
        await browser.press("Enter")
        await browser.until(
            "document.getElementById('status').textContent === 'Others are drawing; asking again in 1 s.'"
        )
    await browser.until(_DRAWN)
    assert await browser.value("document.getElementById('status').textContent") == ""


def test_the_page_comes_back_when_the_line_was_full(painter: Painter, tmp_path: Path) -> None:
    in_a_browser(painter, tmp_path, 0, come_while_another_draws)
