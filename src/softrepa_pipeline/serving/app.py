"""The page on which a person tries soft tokens, and the HTTP interface behind it (docs/serving.md)."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.resources import files

import jinja2
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from softrepa_pipeline.serving import painter as limits
from softrepa_pipeline.serving.body_limit import BodyLimit
from softrepa_pipeline.serving.line import GivenUp, Line, LineFull
from softrepa_pipeline.serving.painter import Drawing, Painter

MAX_BODY = 16_384  # bytes: the longest prompt in four-byte characters, escaped, fits
MAX_WAITING = 16

# The page is one file, asks this server alone and shows what that drew; nothing else may run or load in it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src blob: data:; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(painter: Painter, title: str, max_waiting: int = MAX_WAITING) -> FastAPI:
    """`GET /` is the page, `POST /api/draw` takes a `Drawing` as JSON and answers with a PNG.

    What is wrong with a request is answered with a 4xx, a full line with a 503 that says when to come back.
    """
    app = FastAPI(title=f"softrepa: {title}", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(LineFull, _busy)
    app.add_exception_handler(GivenUp, _given_up)
    app.add_exception_handler(Exception, _failed)
    line, page = Line(max_waiting), _page(painter, title)

    @app.get("/", response_class=HTMLResponse)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=_HEADERS)

    @app.post("/api/draw", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    async def draw(drawing: Drawing, request: Request) -> Response:
        png = await line.run(functools.partial(painter.draw, drawing), request.is_disconnected)
        return Response(png, media_type="image/png", headers={"X-Content-Type-Options": "nosniff"})

    return app


def _page(painter: Painter, title: str) -> str:
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (files(__package__) / "page.html").read_text("utf-8")
    )
    return template.render(title=title, defaults=painter.defaults, limits=limits)


def _answer(status: int, detail: object, headers: Mapping[str, str] | None = None) -> Response:
    # In ASCII: a request may have named a field by half a surrogate pair, which UTF-8 cannot say.
    return Response(json.dumps({"detail": detail}), status, headers, media_type="application/json")


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    named = [(".".join(str(part) for part in one["loc"][1:]), one["msg"]) for one in error.errors()]
    return _answer(422, "; ".join(f"{name}: {message}" if name else message for name, message in named))


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(error.status_code, error.detail, error.headers)


async def _busy(_: Request, error: Exception) -> Response:
    assert isinstance(error, LineFull)
    return _answer(503, str(error), {"Retry-After": str(error.retry_after)})


async def _given_up(_: Request, error: Exception) -> Response:
    return _answer(408, "given up before its turn came")


async def _failed(_: Request, error: Exception) -> Response:
    return _answer(500, "the drawing failed; the server's log says why")
