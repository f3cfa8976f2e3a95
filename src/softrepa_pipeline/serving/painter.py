"""What is asked of a served model, within its limits, and who draws it: one at a time, as PNG."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from softrepa_pipeline.backbones import Backbone, Injection, ModelConfig, load_backbone
from softrepa_pipeline.inference import SamplingConfig, add_tokens, draw_batch
from softrepa_pipeline.soft_tokens import load_soft_tokens

MAX_PROMPT = 1000  # characters
MAX_SEED = 2**32 - 1
MAX_STRENGTH = 1.5
MAX_GUIDANCE = 30.0
MAX_STEPS = 100


class Drawing(BaseModel):
    """A request for one image; it can name nothing but these numbers and a text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    prompt: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_PROMPT)]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    strength: Annotated[float, Field(ge=0, le=MAX_STRENGTH)] = 1.0
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None


@dataclass(frozen=True)
class Defaults:
    """Guidance and steps of a drawing that does not name its own, and where the tokens of all drawings act.

    With `conditional_only` that is guidance's conditional branch alone, as in `inference.Strength`.
    """

    guidance: float
    steps: int
    conditional_only: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.guidance <= MAX_GUIDANCE:
            raise ValueError(f"guidance must be from 0 to {MAX_GUIDANCE:g}, not {self.guidance}")
        if not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"steps must be from 1 to {MAX_STEPS}, not {self.steps}")


class Painter:
    """Draws with one base and its soft tokens; threads that ask at the same time take turns."""

    def __init__(self, backbone: Backbone, injection: Injection, defaults: Defaults) -> None:
        self.family, self.defaults = backbone.family, defaults
        self._backbone, self._injection = backbone, injection
        self._turn = threading.Lock()

    def draw(self, drawing: Drawing) -> bytes:
        """A PNG of the model's native size, the same as `softrepa sample` draws from this prompt and seed."""
        guidance = self.defaults.guidance if drawing.guidance is None else drawing.guidance
        sampling = SamplingConfig(drawing.steps or self.defaults.steps, batch_size=1, seed=drawing.seed)
        with self._turn:
            self._injection.strength = drawing.strength
            one_branch = self.defaults.conditional_only and drawing.strength > 0
            work = [(drawing.prompt, 0)]
            (pixels,) = draw_batch(self._backbone, work, sampling, guidance, conditional_only=one_branch)
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "png")
        return png.getvalue()


def load_painter(model: ModelConfig, tokens: Path, defaults: Defaults) -> Painter:
    """Load a base and a soft-token file.

    Raises:
        FileNotFoundError: the file or the model's folder is not there.
        ValueError: the file is damaged, or its tokens do not fit the model.
    """
    loaded, _ = load_soft_tokens(tokens, model.family)
    backbone = load_backbone(model)
    return Painter(backbone, add_tokens(backbone, loaded), defaults)
