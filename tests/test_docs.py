"""The documentation site: it builds, its links hold, it loads nothing from elsewhere, and quotes what the code says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What a browser fetches by itself; a link that a reader follows is none of it.
_LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*\shref=["']?(?:https?:)?//"""
)
_IN_STYLES = re.compile(r"""(?:@import|url\()\s*["']?(?:https?:)?//""")
_FORMAT = re.compile(r"%[-.\d]*[dgsf]")


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page.relative_to(tmp_path).as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    sources = [file.relative_to(ROOT / "docs") for file in (ROOT / "docs").rglob("*.md")]
    sources += [file.relative_to(ROOT) for file in (ROOT / "notebooks").glob("*.ipynb")]
    written = {source.with_suffix(".html").as_posix().replace("README.html", "index.html") for source in sources}
    assert written <= pages.keys()
    assert not [page for page, text in pages.items() if _LOADED.search(text)]
    assert not [sheet for sheet in tmp_path.rglob("*.css") if _IN_STYLES.search(sheet.read_text())]


def test_troubleshooting_quotes_the_messages_of_the_code() -> None:
    said = [text for file in (ROOT / "src").rglob("*.py") for text in _texts(ast.parse(file.read_text()))]
    page = (ROOT / "docs/troubleshooting.md").read_text()
    messages = [quoted.strip("` ") for quoted in re.findall(r"^\*\*(`.+`)\*\*$", page, re.MULTILINE)]
    assert len(messages) > 25
    assert [message for message in messages if not any(message in text for text in said)] == []


def _texts(tree: ast.Module) -> Iterator[str]:
    """Every string of a module, with … for what is put into it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield _FORMAT.sub("…", node.value).replace("%%", "%")
