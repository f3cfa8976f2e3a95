"""A mkdocs hook: the notebooks as pages of the site, with the outputs that they are committed with."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

_FOLDER = "notebooks"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, and its figures beside it."""
    root = Path(config.config_file_path).parent
    for notebook in sorted((root / _FOLDER).glob("*.ipynb")):
        figures = {"output_files_dir": notebook.stem, "unique_key": notebook.stem}
        page, resources = MarkdownExporter().from_filename(str(notebook), resources=figures)
        page = page.replace("](../docs/", "](../")  # as the links stand in the repository
        files.append(File.generated(config, f"{_FOLDER}/{notebook.stem}.md", content=page))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, f"{_FOLDER}/{name}", content=content))
    return files
