"""How images are edited, and the published settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from softrepa_pipeline.config import build

# The families that each method is for.
METHODS = {"flowedit": ("sd3",), "ddim": ("sd15", "sdxl"), "pnp": ("sd15", "sdxl")}


@dataclass(frozen=True)
class Captions:
    """What an image shows, and what it shall show."""

    source: str
    target: str


@dataclass(frozen=True)
class EditConfig:
    """One way to edit.

    Of `num_steps` from noise to image the first `start_step` are left out: the more, the closer to the source.
    Guidance is v_null + g (v − v_null); 1 is none. PnP takes residual features over in the first `feature_share` of
    the steps, and self-attention in the first `attention_share`.
    """

    method: str
    num_steps: int
    start_step: int
    source_guidance: float
    target_guidance: float
    seed: int = 0
    batch_size: int = 4
    feature_share: float = 0.8
    attention_share: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"edit.method must be one of {', '.join(METHODS)}, not {self.method!r}")
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError("edit.num_steps and edit.batch_size must be 1 or more")
        if not 0 <= self.start_step < self.num_steps:
            raise ValueError(f"edit.start_step must be in [0, {self.num_steps - 1}], not {self.start_step}")
        for name in ("source_guidance", "target_guidance"):
            if getattr(self, name) < 0:
                raise ValueError(f"edit.{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("feature_share", "attention_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"edit.{name} must be in [0, 1], not {getattr(self, name)}")


def check_family(method: str, family: str) -> None:
    """Raises ValueError where the method is not for the family."""
    if family not in METHODS[method]:
        raise ValueError(f"edit.method {method} is for {', '.join(METHODS[method])}, not for {family}")


_EMBEDDED_FLOW = EditConfig("flowedit", 16, 2, source_guidance=3.0, target_guidance=6.0, batch_size=30)
_EMBEDDED_PLUG_AND_PLAY = EditConfig("pnp", 16, 2, source_guidance=1.0, target_guidance=4.5, batch_size=30)
_PLUG_AND_PLAY = EditConfig("pnp", num_steps=50, start_step=0, source_guidance=1.0, target_guidance=7.5)

# (preset, family, with soft tokens). FlowEdit takes 33 of SD3's 50 steps (arXiv 2412.08629); SoftREPA takes 30, with
# target guidance 9 of v + g (v − v_null), which is 10 as written here. PnP: arXiv 2211.12572. The embedded settings:
# docs/editing.md.
PRESETS: dict[tuple[str, str, bool], EditConfig] = {
    ("embedded", "sd3", False): _EMBEDDED_FLOW,
    ("embedded", "sd3", True): _EMBEDDED_FLOW,
    ("embedded", "sdxl", False): _EMBEDDED_PLUG_AND_PLAY,
    ("embedded", "sdxl", True): _EMBEDDED_PLUG_AND_PLAY,
    ("embedded", "sd15", False): _EMBEDDED_PLUG_AND_PLAY,
    ("embedded", "sd15", True): _EMBEDDED_PLUG_AND_PLAY,
    ("published", "sd3", False): EditConfig("flowedit", 50, 17, 3.5, 13.5),
    ("published", "sd3", True): EditConfig("flowedit", 50, 20, 3.5, 10.0),
    ("published", "sdxl", False): _PLUG_AND_PLAY,
    ("published", "sdxl", True): _PLUG_AND_PLAY,
    ("published", "sd15", False): _PLUG_AND_PLAY,
    ("published", "sd15", True): _PLUG_AND_PLAY,
}


def configured(preset: str, family: str, with_tokens: bool, changes: Mapping[str, Any]) -> EditConfig:
    """A preset's settings with some of them changed.

    Raises:
        ValueError: there is no such preset for the family, or a change names no setting or a wrong value.
    """
    if (preset, family, with_tokens) not in PRESETS:
        names = dict.fromkeys(name for name, *_ in PRESETS)
        raise ValueError(f"no editing preset {preset!r} for family {family!r}; presets: {', '.join(names)}")
    return build(EditConfig, {**asdict(PRESETS[preset, family, with_tokens]), **changes}, "edit.settings")
