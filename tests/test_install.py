"""What `make` installs."""

from __future__ import annotations

import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


def test_pinned_versions_take_the_oldest_python_promised() -> None:
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    oldest = promised.removeprefix(">=") + ".0"
    pinned = {line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    installed = {f"{own.name}=={own.version}": own.metadata.get("Requires-Python", "") for own in distributions()}
    known = installed.keys() & pinned
    assert len(known) > 0.8 * len(pinned)
    assert not [name for name in known if oldest not in SpecifierSet(installed[name])]
