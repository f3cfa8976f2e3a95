"""A base and its soft tokens as an MLflow model: prompts in, PNG images out (docs/serving.md)."""

from __future__ import annotations

import base64
import importlib.metadata
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from pydantic import ValidationError

from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.serving.painter import Defaults, Drawing, Painter, load_painter
from softrepa_pipeline.soft_tokens import load_soft_tokens

MAX_PROMPTS = 64  # a request
# MLflow's server works on at least five requests at once, and puts no limit on those that wait.
MAX_REQUESTS = 4

_PACKAGE = Path(__file__).parents[1]
# What drawing imports; the package itself travels with the model.
_REQUIREMENTS = (
    "accelerate",
    "diffusers",
    "mlflow",
    "numpy",
    "pillow",
    "pydantic",
    "safetensors",
    "torch",
    "tqdm",
    "transformers",
)


@final
class PromptsToImages(PythonModel):
    """Base64 PNGs, a column `image`, of prompts, the first column; parameters hold for all prompts of a request."""

    _painter: Painter

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(MAX_REQUESTS)

    def load_context(self, context: PythonModelContext) -> None:
        """Load the base and the tokens.

        Raises:
            FileNotFoundError: the base is not there; name another one with the model's configuration.
        """
        config = dict(context.model_config)
        defaults = Defaults(config.pop("guidance"), config.pop("steps"), config.pop("conditional_only"))
        model = ModelConfig(**{**config, "base": config["base"] or context.artifacts["base"]})
        self._painter = load_painter(model, Path(context.artifacts["tokens"]), defaults)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Draw them one after the other.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, a status of 400, where a prompt or a parameter is out of bounds;
                TEMPORARILY_UNAVAILABLE, a status of 503, where MAX_REQUESTS are being drawn.
        """
        drawings = _drawings(model_input.iloc[:, 0].tolist(), params or {})
        if not self._places.acquire(blocking=False):
            raise MlflowException("busy; try again later", TEMPORARILY_UNAVAILABLE)
        try:
            return pd.DataFrame({"image": [base64.b64encode(self._painter.draw(one)).decode() for one in drawings]})
        finally:
            self._places.release()


def save(path: Path, tokens: Path, model: ModelConfig, defaults: Defaults, copy_base: bool = False) -> None:
    """Write the MLflow model to a new folder, for `mlflow models serve -m path --env-manager local`.

    It holds the tokens, this package and the name of the base; the base itself only with `copy_base`.

    Raises:
        FileExistsError: `path` is there already.
        FileNotFoundError, ValueError: the token file is missing, damaged, or of another family than `model`.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already; save the model to a new folder")
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    mlflow.pyfunc.save_model(partial, **_described(tokens, model, defaults, copy_base))
    partial.rename(path)


def log(
    tokens: Path,
    model: ModelConfig,
    defaults: Defaults,
    copy_base: bool = False,
    name: str = "model",
    registered_model_name: str | None = None,
) -> ModelInfo:
    """As `save`, to the active run, and to the registry under a name where one is given."""
    description = _described(tokens, model, defaults, copy_base)
    return mlflow.pyfunc.log_model(name=name, registered_model_name=registered_model_name, **description)


def _described(tokens: Path, model: ModelConfig, defaults: Defaults, copy_base: bool) -> dict[str, Any]:
    """The arguments that `save_model` and `log_model` have in common."""
    _, metadata = load_soft_tokens(tokens, model.family)
    base = Path(model.base)
    if copy_base and not base.is_dir():
        raise ValueError(f"model.base must be a folder for it to be copied, not {model.base}")
    if base.is_dir():
        model = replace(model, base=str(base.resolve()))
    artifacts, config = {"tokens": str(tokens)}, {**asdict(model), **asdict(defaults)}
    if copy_base:
        artifacts["base"], config["base"] = model.base, None
    return {
        "python_model": str(Path(__file__).with_name("served.py")),
        "code_paths": [str(_PACKAGE)],
        "artifacts": artifacts,
        "model_config": config,
        "signature": _signature(defaults),
        "input_example": (pd.DataFrame({"prompt": ["a red circle"]}), {"seed": 0, "strength": 1.0}),
        "pip_requirements": [f"{name}=={importlib.metadata.version(name)}" for name in _REQUIREMENTS],
        "metadata": {name: value for name, value in metadata.items() if name != "config"},
    }


def _signature(defaults: Defaults) -> ModelSignature:
    params = [
        ParamSpec("seed", "long", 0),
        ParamSpec("strength", "double", 1.0),
        ParamSpec("guidance", "double", defaults.guidance),
        ParamSpec("steps", "long", defaults.steps),
    ]
    return ModelSignature(Schema([ColSpec("string")]), Schema([ColSpec("string", "image")]), ParamSchema(params))


def _drawings(prompts: Sequence[Any], params: dict[str, Any]) -> list[Drawing]:
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise MlflowException.invalid_parameter_value(f"give 1 to {MAX_PROMPTS} prompts, not {len(prompts)}")
    try:
        return [Drawing(prompt=prompt, **params) for prompt in prompts]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        named = ".".join(map(str, first["loc"]))
        raise MlflowException.invalid_parameter_value(f"{named}: {first['msg']}") from error
