"""What README and the site's pages promise exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from softrepa_pipeline.commands import main
from softrepa_pipeline.pipeline_registry import register_pipelines

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md")} - {ROOT / "docs/LOG.md"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_make_targets_pipelines_environments_and_commands_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    assert set(re.findall(r"--pipelines? (\w+)", text)) <= set(register_pipelines())
    assert set(re.findall(r"\bsoftrepa ([a-z]+)", text)) <= set(main.commands)
    for environment in re.findall(r"--env (\w+)", text):
        assert (ROOT / "conf" / environment).is_dir()


def test_file_tree_and_links_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    tree = README.split("README.md CHANGELOG.md", 1)[1].split("```", 1)[0]
    top = re.findall(r"^([a-z_/0-9]+/)\s", tree, re.MULTILINE)
    inner = [f"src/softrepa_pipeline/{name}" for name in re.findall(r"^  ([a-z_]+(?:\.py|/))", tree, re.MULTILINE)]
    assert len(links) > 4
    assert len(inner) > 8
    for path in (*links, *top, *inner):
        assert (ROOT / path).exists(), path
