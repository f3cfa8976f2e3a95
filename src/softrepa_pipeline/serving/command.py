"""`softrepa serve`: a base and its soft tokens on a page of one's own machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softrepa_pipeline.command_options import SAMPLING, base_options, model_config

_MAX_CONNECTIONS = 200
_SHUTDOWN_SECONDS = 3


@click.command()
@base_options
@click.option("--tokens", type=click.Path(path_type=Path), required=True, help="Soft-token file.")
@click.option("--steps", type=int, help="Where the page names none; the family's published number unless given.")
@click.option("--guidance", type=float, help="Likewise; the family's published scale unless given.")
@click.option("--conditional-only", is_flag=True, help="Tokens act on guidance's conditional branch alone.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines in.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
def serve(
    family: str,
    tokens: Path,
    steps: int | None,
    guidance: float | None,
    conditional_only: bool,
    host: str,
    port: int,
    **base: Any,
) -> None:
    """Open a page where base and soft tokens draw side by side, with a slider for the tokens' strength."""
    import uvicorn

    from softrepa_pipeline.serving.app import create_app
    from softrepa_pipeline.serving.painter import Defaults, load_painter

    published_steps, published_guidance = SAMPLING[family]
    defaults = Defaults(
        published_guidance if guidance is None else guidance,
        published_steps if steps is None else steps,
        conditional_only,
    )
    app = create_app(load_painter(model_config(family, **base), tokens, defaults), f"{family} with {tokens.name}")
    click.echo(f"softrepa serves {family} on http://{host}:{port} (Ctrl-C ends it)")
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
