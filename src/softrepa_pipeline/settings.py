"""Kedro's settings."""

import sys
from typing import Any

from softrepa_pipeline.environment import ROOT, prepare

prepare()

from softrepa_pipeline.hooks import ProjectHooks, explain_errors  # noqa: E402  (MLflow reads what `prepare` sets)


def under_project(path: str) -> str:
    """Resolve `${project:data/01_raw}` of the configuration to an absolute path."""
    return str(ROOT / path)


sys.excepthook = explain_errors(sys.excepthook)

# Called after kedro-mlflow's own hooks: Kedro calls the last registered first, and registers plugins last.
HOOKS = (ProjectHooks(),)

CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local" if (ROOT / "conf/local").is_dir() else "base",
    "merge_strategy": {"parameters": "soft"},
    "custom_resolvers": {"project": under_project},
}
