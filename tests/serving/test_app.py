"""The page's server: what it draws, whom it turns away, and that nothing malformed brings it down."""

from __future__ import annotations

import asyncio
import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
from conftest import load
from fastapi.testclient import TestClient
from PIL import Image
from serving_samples import DEFAULTS, Served, base_of, write_tokens

from softrepa_pipeline.inference import SamplingConfig, add_tokens, draw_batch
from softrepa_pipeline.serving.app import MAX_BODY, create_app
from softrepa_pipeline.serving.line import Line, LineFull
from softrepa_pipeline.serving.painter import MAX_PROMPT, Defaults, Drawing, Painter, load_painter
from softrepa_pipeline.soft_tokens import load_soft_tokens

CIRCLE = {"prompt": "a red circle", "seed": 7}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "soft_tokens.safetensors")


@pytest.fixture(scope="module")
def painter(model_folders: dict[str, Path], tokens: Path) -> Painter:
    return load_painter(base_of(model_folders["sd3"]), tokens, DEFAULTS)


@pytest.fixture(scope="module")
def client(painter: Painter) -> Iterator[TestClient]:
    # A failure must show as the answer that a client gets, not as an exception of the test.
    with TestClient(create_app(painter, "sd3"), raise_server_exceptions=False) as client:
        yield client


def pixels(answer: httpx2.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return np.array(Image.open(io.BytesIO(answer.content)))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_it_draws_what_sample_draws(client: TestClient, sd3_folder: Path, tokens: Path, strength: float) -> None:
    backbone = load(sd3_folder, "sd3")
    with add_tokens(backbone, load_soft_tokens(tokens)[0], strength):
        expected = draw_batch(backbone, [("a red circle", 0)], SamplingConfig(2, 1, seed=7), 4.0)[0]
    drawn = pixels(client.post("/api/draw", json={**CIRCLE, "strength": strength}))
    assert (drawn == expected).all()


def test_in_one_branch_it_draws_what_sample_draws_there(model_folders: dict[str, Path], tokens: Path) -> None:
    own = load_painter(base_of(model_folders["sd3"]), tokens, replace(DEFAULTS, conditional_only=True))
    backbone, sampling = load(model_folders["sd3"], "sd3"), SamplingConfig(2, 1, seed=7)
    base = draw_batch(backbone, [("a red circle", 0)], sampling, 4.0)[0]
    with add_tokens(backbone, load_soft_tokens(tokens)[0]):
        both, one = (
            draw_batch(backbone, [("a red circle", 0)], sampling, 4.0, conditional_only=only)[0]
            for only in (False, True)
        )
    assert (one != both).any()
    for strength, expected in ((1.0, one), (0.0, base)):
        drawn = np.array(Image.open(io.BytesIO(own.draw(Drawing(**CIRCLE, strength=strength)))))
        assert (drawn == expected).all()


def test_every_field_changes_the_image(client: TestClient) -> None:
    changes = [
        {},
        {"strength": 0},
        {"strength": 1.5},
        {"guidance": 1},
        {"steps": 3},
        {"seed": 8},
        {"prompt": "a square"},
    ]
    assert len({client.post("/api/draw", json={**CIRCLE, **change}).content for change in changes}) == len(changes)


def test_prompts_of_any_script_are_drawn(client: TestClient) -> None:
    for prompt in (
        "红色的圆",
        "🟥 ⬤",
        "a\tb\nc\0d",
        "../../etc/passwd",
        "<script>alert(1)</script>",
        "{{ 7 * 7 }}",
        "x" * 1000,
    ):
        pixels(client.post("/api/draw", json={"prompt": prompt}))


def test_the_longest_prompt_fits_into_a_body(client: TestClient) -> None:
    escaped = json.dumps({**CIRCLE, "prompt": "🟥" * MAX_PROMPT})  # twelve bytes a character
    pixels(client.post("/api/draw", content=escaped, headers={"Content-Type": "application/json"}))


def test_the_page_is_whole_and_asks_nobody_else(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "http" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert 'name="steps" type="number" min="1" max="100" step="1" value="2"' in page.text


def test_the_title_is_text(painter: Painter) -> None:
    page = TestClient(create_app(painter, "<b>sd3</b>")).get("/").text
    assert "&lt;b&gt;sd3" in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "prompt: Field required"),
        ({"prompt": " "}, "prompt: String should have at least 1 character"),
        ({"prompt": "x" * 1001}, "prompt: String should have at most 1000 characters"),
        ({**CIRCLE, "strength": 1.6}, "strength: Input should be less than or equal to 1.5"),
        ({**CIRCLE, "steps": 101}, "steps: Input should be less than or equal to 100"),
        ({**CIRCLE, "base": "/etc"}, "base: Extra inputs are not permitted"),
        ({**CIRCLE, "seed": "7"}, "seed: Input should be a valid integer"),
        ({**CIRCLE, "seed": True}, "seed: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, body: dict[str, object], message: str) -> None:
    answer = client.post("/api/draw", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"] == message


def malformed() -> list[tuple[bytes, str]]:
    """200 bodies, each with its content type: wrong JSON, wrong values, wrong encodings, wrong kinds."""
    draws = random.Random(0)
    json_type = "application/json"
    texts: list[bytes] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"prompt"',
        b"NaN",
        b"1e999",
        b"9" * 5000,
        b"{}" * 9,
        b"\xff\xfe{}",
    ]
    texts += [
        b"[" * 8000,
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
        b'{"prompt": "a" ' * 3,
        '{"prompt": "ä"}'.encode("latin-1"),
    ]
    texts += ['{"prompt": "a"}'.encode(code)[:-1] for code in ("utf-16", "utf-32")]
    texts += [
        b"\0" * 100,
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "\\ud800": 1}',
        b'{"prompt": "a", "seed": 1e400}',
    ]
    values = [None, True, [], {}, "", "x", "1", -1, 1.5, 2**64, 10**400, -(10**400), 1e308, [[1]], {"a": {"b": []}}]
    for field in ("prompt", "seed", "strength", "guidance", "steps"):
        for value in values:
            allowed = {"prompt": ("x", "1"), "guidance": (None, 1.5), "steps": (None,), "strength": (1.5,)}.get(
                field, ()
            )
            if not any(value is one or (value == one and type(value) is type(one)) for one in allowed):
                texts.append(json.dumps({"prompt": "a", field: value}).encode())
        texts += [
            f'{{"prompt": "a", "{field}": {word}}}'.encode()
            for word in ("NaN", "Infinity", "-Infinity", "1" * 4400, "undefined", "0x1")
        ]
    bodies = [(text, json_type) for text in texts]
    good = json.dumps(CIRCLE).encode()
    kinds = (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "image/png",
        "",
        "application/xml",
    )
    bodies += [(good, kind) for kind in kinds]
    bodies += [(good + b" " * size, json_type) for size in (MAX_BODY, 10 * MAX_BODY)]
    while len(bodies) < 200:
        cut = draws.randrange(1, len(good))
        noise = bytes(draws.randrange(256) for _ in range(draws.randrange(1, 40)))
        bodies.append((draws.choice((good[:cut], good[:cut] + noise, noise, noise + good)), json_type))
    return bodies


def test_two_hundred_malformed_bodies_are_the_callers_error(painter: Painter) -> None:
    bodies = malformed()
    assert len(bodies) >= 200
    statuses = Counter()
    with Served(create_app(painter, "sd3")) as served, httpx2.Client(base_url=served.address, timeout=60) as client:
        for body, kind in bodies:
            answer = client.post("/api/draw", content=body, headers={"Content-Type": kind})
            assert 400 <= answer.status_code < 500, (body[:80], kind, answer.status_code, answer.text[:200])
            assert set(answer.json()) == {"detail"}
            assert "Traceback" not in answer.text
            assert 'File "' not in answer.text
            statuses[answer.status_code] += 1
        chunks = client.post(
            "/api/draw", content=(b" " * 1000 for _ in range(100)), headers={"Content-Type": "application/json"}
        )
        assert chunks.status_code == 413
        pixels(client.post("/api/draw", json=CIRCLE))
    assert set(statuses) == {400, 413, 422}, statuses


def test_other_paths_and_methods_are_refused(client: TestClient) -> None:
    nothing = (
        "/api",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.html",
        "/docs",
        "/api/draw/" + "x" * 5000,
    )
    for path in nothing:
        assert client.get(path).status_code == 404
    assert client.get("/api/draw").status_code == 405
    assert client.put("/api/draw", json=CIRCLE).status_code == 405


def test_a_failure_is_one_plain_line(painter: Painter, model_folders: dict[str, Path], tokens: Path) -> None:
    broken = load_painter(base_of(model_folders["sd3"]), tokens, DEFAULTS)
    broken._backbone.pipeline.vae = None  # as a device that fails in the middle of a drawing
    answer = TestClient(create_app(broken, "sd3"), raise_server_exceptions=False).post("/api/draw", json=CIRCLE)
    assert answer.status_code == 500
    assert answer.json() == {"detail": "the drawing failed; the server's log says why"}


@pytest.mark.parametrize(
    ("guidance", "steps", "named"), [(-1.0, 2, "guidance"), (4.0, 0, "steps"), (4.0, 101, "steps")]
)
def test_defaults_are_checked(guidance: float, steps: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Defaults(guidance, steps)


def test_threads_take_turns(painter: Painter) -> None:
    drawings = [Drawing(prompt="a red circle", strength=strength) for strength in (0.0, 0.5, 1.0, 1.5)] * 3
    alone = {one.strength: painter.draw(one) for one in drawings[:4]}
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda one=one: found.append(painter.draw(one) == alone[one.strength]))
        for one in drawings
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * len(drawings)


async def wanted() -> bool:
    return False


def test_a_line_keeps_order_and_length() -> None:
    done: list[int] = []
    going, gate = threading.Event(), threading.Event()

    def job(index: int) -> None:
        going.set()
        gate.wait(30)
        done.append(index)

    async def scenario() -> None:
        line = Line(2)
        tasks = [asyncio.create_task(line.run(lambda index=index: job(index), wanted)) for index in range(3)]
        await asyncio.to_thread(going.wait, 30)
        with pytest.raises(LineFull, match=r"busy; try again in 3 s"):
            await line.run(lambda: None, wanted)
        gate.set()
        await asyncio.gather(*tasks)
        await line.run(lambda: done.append(3), wanted)

    asyncio.run(scenario())
    assert done == [0, 1, 2, 3]


def test_a_job_that_fails_or_is_given_up_leaves_the_line() -> None:
    async def scenario() -> None:
        line = Line(0)
        with pytest.raises(ZeroDivisionError):
            await line.run(lambda: 1 / 0, wanted)
        given_up = asyncio.create_task(line.run(lambda: None, wanted))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert await line.run(lambda: "next", wanted) == "next"

    asyncio.run(scenario())


def test_who_has_gone_is_not_drawn_for(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = painter.draw
    monkeypatch.setattr(painter, "draw", lambda drawing: (drawn.append(drawing.seed), draw(drawing))[1])
    with Served(create_app(painter, "sd3")) as served:
        with ThreadPoolExecutor(1) as pool, painter._turn:  # the first is being drawn, and takes long
            pool.submit(httpx2.post, served.address + "/api/draw", json={**CIRCLE, "seed": 0}, timeout=60)
            while not drawn:
                time.sleep(0.01)
            for seed in (1, 2):
                with pytest.raises(httpx2.TimeoutException):
                    httpx2.post(served.address + "/api/draw", json={**CIRCLE, "seed": seed}, timeout=1)
        pixels(httpx2.post(served.address + "/api/draw", json={**CIRCLE, "seed": 3}, timeout=60))
    assert drawn == [0, 3]


def test_fifty_at_once_are_drawn_or_told_when_to_come_back(painter: Painter) -> None:
    async def ask(address: str) -> list[httpx2.Response]:
        async with httpx2.AsyncClient(timeout=120, limits=httpx2.Limits(max_connections=50)) as client:
            asked = [client.post(address + "/api/draw", json={**CIRCLE, "seed": seed}) for seed in range(50)]
            return await asyncio.gather(*asked)

    with Served(create_app(painter, "sd3", max_waiting=16)) as served:
        answers = asyncio.run(ask(served.address))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) <= {200, 503}
        assert statuses[200] >= 17
        for seed, answer in enumerate(answers):
            if answer.status_code == 200:
                assert answer.content == painter.draw(Drawing(prompt="a red circle", seed=seed))
            else:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["detail"].startswith("busy; try again in ")
        assert httpx2.post(served.address + "/api/draw", json=CIRCLE, timeout=60).status_code == 200
