"""The parameters that `kedro run` would give its stages, as JSON: python -m softrepa_pipeline.parameters --env sd3

A process of its own, so that the `softrepa` commands need not know Kedro.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click
from kedro.config import OmegaConfigLoader
from omegaconf import OmegaConf
from yaml import YAMLError

from softrepa_pipeline.environment import CONF
from softrepa_pipeline.settings import CONFIG_LOADER_ARGS

_SWITCH = re.compile(r"\$\{runtime_params:\s*(\w+)")  # a runtime parameter that other settings are made of
_AS_THEY_ARE = ("clip", "folders", "source")  # the other sections become dataclasses, which know their keys


def read_parameters(environment: str | None, changes: str = "", file: Path | None = None) -> dict[str, Any]:
    """All parameters of an environment, the default one unless named, with the changes of a YAML file.

    `changes` are as `kedro run --params` takes them; they come before those of the file.

    Raises:
        ValueError: there is no such environment or parameter, the file is not a YAML mapping, or `changes` are not
            `name=value,name=value`.
    """
    if environment is not None:
        _check_known("environment", environment, [folder.name for folder in CONF.iterdir() if folder.is_dir()])
    runtime = _merged(_read(file) if file else {}, _parse(changes))
    # Kedro takes a name that nothing reads without a word.
    defaults = _load(environment, {})
    for name in runtime:
        _check_known("parameter", name, {*defaults, *_switches()})
    for section in _AS_THEY_ARE:
        known = [f"{section}.{name}" for name in defaults[section]]
        for name in _mapping(runtime.get(section, {}), section):
            _check_known("parameter", f"{section}.{name}", known)
    return _load(environment, runtime)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        # Kedro's own reader of YAML: to it 1e-3 is a number.
        return _mapping(OmegaConf.to_container(OmegaConf.load(file)), str(file))
    except YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping of names to values, not {value!r}")
    return value


def _merged(*layers: Any) -> dict[str, Any]:
    merged = OmegaConf.to_container(OmegaConf.merge(*layers))
    assert isinstance(merged, dict)
    return {str(name): value for name, value in merged.items()}


def _load(environment: str | None, runtime: dict[str, Any]) -> dict[str, Any]:
    return OmegaConfigLoader(str(CONF), env=environment, runtime_params=runtime, **CONFIG_LOADER_ARGS)["parameters"]


def _parse(changes: str) -> dict[str, Any]:
    """`a.b=1,c=x` as {"a": {"b": 1}, "c": "x"}, values as YAML reads them."""
    items = [item.strip() for item in changes.split(",") if item.strip()]
    for item in items:
        if not item.partition("=")[1] or not item.partition("=")[0].strip():
            raise ValueError(f"--params takes name=value,name=value, not {item!r}")
    return _merged(OmegaConf.from_dotlist(items))


def _switches() -> set[str]:
    return {name for file in CONF.glob("*/*.yml") for name in _SWITCH.findall(file.read_text())}


def _check_known(kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown {kind} {name}; did you mean {near}? Known: {', '.join(sorted(known))}")


@click.command()
@click.option("--env")
@click.option("--params", default="")
@click.option("--config", type=click.Path(path_type=Path))
def main(env: str | None, params: str, config: Path | None) -> None:
    """Print the parameters; what the user can put right is one line `error: …` (settings.py's hook)."""
    click.echo(json.dumps(read_parameters(env, params, config)))


if __name__ == "__main__":
    main()
