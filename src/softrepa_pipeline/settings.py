"""Kedro's settings."""

import hashlib
import sys
from pathlib import Path
from typing import Any

from softrepa_pipeline.environment import CONF, ROOT, prepare

prepare()

from softrepa_pipeline.hooks import ProjectHooks, explain_errors  # noqa: E402  (MLflow reads what `prepare` sets)


def under_project(path: str) -> str:
    """Resolve `${project:data/01_raw}` of the configuration to an absolute path."""
    return str(ROOT / path)


def slug(dataset: str) -> str:
    """Resolve `${slug:NAME}`: a known data set's name as it is, a path as its last part and a hash of the whole."""
    if Path(dataset).name == dataset:
        return dataset
    return f"{Path(dataset).stem}-{hashlib.sha256(str(Path(dataset).resolve()).encode()).hexdigest()[:8]}"


sys.excepthook = explain_errors(sys.excepthook)

# Called after kedro-mlflow's own hooks: Kedro calls the last registered first, and registers plugins last.
HOOKS = (ProjectHooks(),)

CONF_SOURCE = str(CONF)

CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local" if (CONF / "local").is_dir() else "base",
    "merge_strategy": {"parameters": "soft"},
    "custom_resolvers": {"project": under_project, "slug": slug},
}
