"""The parameters that `kedro run` would give its stages, as JSON: python -m softrepa_pipeline.parameters --env sd3

A process of its own, so that `softrepa plan` need not know Kedro.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection
from typing import Any

import click
from kedro.config import OmegaConfigLoader
from omegaconf import OmegaConf

from softrepa_pipeline.environment import ROOT
from softrepa_pipeline.settings import CONFIG_LOADER_ARGS

_CONF = ROOT / "conf"
_SWITCH = re.compile(r"\$\{runtime_params:\s*(\w+)")  # a runtime parameter that other settings are made of


def read_parameters(environment: str | None, changes: str = "") -> dict[str, Any]:
    """All parameters of an environment, the default one unless named; `changes` as `kedro run --params` takes them.

    Raises:
        ValueError: there is no such environment or parameter, or `changes` are not `name=value,name=value`.
    """
    if environment is not None:
        _check_known("environment", environment, [folder.name for folder in _CONF.iterdir() if folder.is_dir()])
    runtime = _parse(changes)
    # Kedro takes a name that nothing reads without a word.
    known = {*_load(environment, {}), *_switches()}
    for name in runtime:
        _check_known("parameter", name, known)
    return _load(environment, runtime)


def _load(environment: str | None, runtime: dict[str, Any]) -> dict[str, Any]:
    return OmegaConfigLoader(str(_CONF), env=environment, runtime_params=runtime, **CONFIG_LOADER_ARGS)["parameters"]


def _parse(changes: str) -> dict[str, Any]:
    """`a.b=1,c=x` as {"a": {"b": 1}, "c": "x"}, values as YAML reads them."""
    items = [item.strip() for item in changes.split(",") if item.strip()]
    for item in items:
        if not item.partition("=")[1] or not item.partition("=")[0].strip():
            raise ValueError(f"--params takes name=value,name=value, not {item!r}")
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist(items))
    assert isinstance(parsed, dict)
    return {str(name): value for name, value in parsed.items()}


def _switches() -> set[str]:
    return {name for file in _CONF.glob("*/*.yml") for name in _SWITCH.findall(file.read_text())}


def _check_known(kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown {kind} {name}; did you mean {near}? Known: {', '.join(sorted(known))}")


@click.command()
@click.option("--env")
@click.option("--params", default="")
def main(env: str | None, params: str) -> None:
    """Print the parameters; what the user can put right is one line `error: …` (settings.py's hook)."""
    click.echo(json.dumps(read_parameters(env, params)))


if __name__ == "__main__":
    main()
