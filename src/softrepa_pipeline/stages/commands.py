"""`softrepa mine`, `softrepa train`, `softrepa evaluate`: the stages without Kedro."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from softrepa_pipeline.command_options import env_option, read_parameters

_SECTIONS = ("model", "fit", "execution", "sampling", "folders", "runner", "cache", "force")


def _options(command: Callable[..., None]) -> Callable[..., None]:
    config = click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML: what shall differ from the defaults, docs/without-kedro.md.",
    )
    return env_option(config(command))


@click.command()
@_options
def mine(env: str | None, config: Path | None) -> None:
    """Make clean pairs and hard negatives of captioned images."""
    _, negatives = _mined(_checked(env, config))
    click.echo(f"negatives: {negatives['folder']}")


@click.command()
@_options
def train(env: str | None, config: Path | None) -> None:
    """Train soft tokens; what is not mined yet is mined first."""
    from softrepa_pipeline.stages.fit import fit_tokens

    parameters = _checked(env, config)
    pairs, negatives = _mined(parameters)
    trained = fit_tokens(pairs, negatives, *(parameters[name] for name in _SECTIONS))
    click.echo(f"soft tokens: {trained['file']}")


@click.command()
@_options
@click.option("--tokens", type=click.Path(path_type=Path), help="Soft-token file; what `train` wrote unless given.")
def evaluate(env: str | None, config: Path | None, tokens: Path | None) -> None:
    """Compare soft tokens with their base, in a report."""
    from softrepa_pipeline.stage import stored_result, write_json
    from softrepa_pipeline.stages.evaluate import evaluate_tokens

    parameters = _checked(env, config)
    folders = parameters["folders"]
    trained = stored_result(Path(folders["tokens"])) if tokens is None else {"file": str(tokens)}
    if trained is None:
        raise ValueError(f"nothing was trained in {folders['tokens']} yet: `softrepa train`, or name --tokens")
    world = _render_world(parameters, parameters["evaluation"]["prompts"])
    summary = evaluate_tokens(
        trained, world, *(parameters[name] for name in ("model", "evaluation", "sampling", "folders", "runner"))
    )
    write_json(Path(folders["evaluation"]) / "evaluation.json", summary)


def _checked(environment: str | None, config: Path | None) -> dict[str, Any]:
    """The parameters; what a later stage would refuse is refused before the first one starts."""
    parameters = read_parameters(environment, file=config)
    from softrepa_pipeline.caches import CacheConfig
    from softrepa_pipeline.config import build
    from softrepa_pipeline.runners import RunnerConfig
    from softrepa_pipeline.stages.evaluate import evaluation_config
    from softrepa_pipeline.stages.fit import fit_settings
    from softrepa_pipeline.stages.ingest import ingest_config
    from softrepa_pipeline.stages.mine import mine_config

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ingest_config(parameters["source"], parameters["ingest"], parameters["folders"]["pairs"])
    mine_config(parameters["mine"], parameters["clip"])
    fit_settings(*(parameters[name] for name in ("model", "fit", "execution", "sampling")))
    evaluation_config(parameters["evaluation"], parameters["sampling"])
    build(RunnerConfig, parameters["runner"], "runner")
    build(CacheConfig, parameters["cache"], "cache")
    return parameters


def _mined(parameters: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Clean pairs and their negatives; what is there already is not made again."""
    from softrepa_pipeline.stages.ingest import ingest_pairs
    from softrepa_pipeline.stages.mine import mine_negatives

    _render_world(parameters, parameters["source"]["dataset"])
    folders, runner, force = (parameters[name] for name in ("folders", "runner", "force"))
    pairs = ingest_pairs(parameters["source"], parameters["ingest"], runner, folders["pairs"], force)
    negatives = mine_negatives(
        pairs, parameters["mine"], parameters["clip"], folders, runner, parameters["cache"], force
    )
    return pairs, negatives


def _render_world(parameters: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The embedded world, rendered where it is what is wanted."""
    from softrepa_pipeline.evaluation.benchmark import EMBEDDED_WORLD
    from softrepa_pipeline.stages.ingest import render_world

    folder = parameters["folders"]["world"]
    if wanted == EMBEDDED_WORLD:
        return render_world(parameters["world"], folder, parameters["force"])
    return {"folder": folder}
