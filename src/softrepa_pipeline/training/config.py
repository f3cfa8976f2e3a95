"""Settings of a soft-token training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from softrepa_pipeline.objectives import LOGITS

OBJECTIVES = ("softrepa", "agsm", "dsm")


@dataclass(frozen=True)
class FitConfig:
    """How soft tokens are trained; training/presets.py has the settings of every family and objective.

    Tokens: `layers` (indices for SD3, `down`, `mid.0` … for UNets) receive `num_tokens` tokens each, or all the same
    ones with `shared`, with `num_buckets` timestep buckets; they start as `initial` says, `normal` or `null_text`,
    or with `start_from` as the tokens of that file.

    Data: each step takes `batch_size` images. With `candidates: sampled` an image competes with `num_negatives`
    captions besides its own: `edited_share` of them structured (the caption with a contradiction in it), `mined_share`
    mined, as far as there are any, the others drawn from the whole data set; a pair of shares is a curriculum, from the
    first at the start to the second at the end. With `candidates: batch` it competes with
    the captions of the step's other images, all of them or `num_negatives` drawn uniformly, whose logits then stand
    for all. Timesteps lie in `timestep_range`, one an image, or with `shared_draws` one timestep and one noise for all:
    `uniform`, `logit_normal` (arXiv 2403.03206), or `importance`, drawn as often as the base model's own gradient
    weight at them is large and weighted by 1/q. `noise_offset` shifts each channel of the noise at random. With `flip`
    half of the images are mirrored, but none of which a candidate names left or right. With `aspect_ratio_buckets`
    images are cropped to the nearest of several shapes of about resolution² pixels in place of a square, and all of a
    step have one shape; each epoch leaves out what fills no step of its shape.

    Objective: `softrepa` has `logits` (`exponential` is the paper's form, `relative` the same from the row's best
    caption, `raw` the ablation), `scale`, `temperature` (a number or one for each of equal buckets of timesteps; with
    `calibrated` in units of the base model's own error gap between captions at t), `denoising_weight` λ, and
    `symmetric` for caption against images as well. `agsm` has γ⁺ `positive_shift`, γ⁻ `negative_shift`, `dual_banks`
    (else mismatched pairs run with the matched ones' tokens), its `ranking_temperature`, `ema_decay` and `ema_warmup`.
    `dsm` trains on the images' own captions alone. Against over-emphasis of the text, with any of them: `base_weight`
    is what the distance from the base's prediction with an empty caption counts, `token_dropout` the share of tokens
    that are zero in a step, `max_token_norm` their length.

    Length and optimiser: `num_steps`, or `num_epochs` of the data; the learning rate falls to zero over the last
    `decay_share` of the steps. `held_out_images` are kept from training and measured every `validation_steps`; after
    `patience` measurements without a better retrieval accuracy or loss training ends and the best tokens are kept.
    """

    layers: tuple[int | str, ...]
    batch_size: int
    num_steps: int | None = None
    num_epochs: int | None = None
    objective: str = "softrepa"
    shared: bool = False
    num_tokens: int = 4
    num_buckets: int = 0
    initial: str = "normal"
    start_from: str | None = None
    candidates: str = "sampled"
    num_negatives: int | None = 1
    edited_share: float | tuple[float, float] = 0.0
    mined_share: float | tuple[float, float] = 0.0
    shared_draws: bool = False
    timesteps: str = "uniform"
    timestep_range: tuple[float, float] = (0.0, 1000.0)
    noise_offset: float = 0.0
    flip: bool = False
    aspect_ratio_buckets: bool = False
    logits: str = "exponential"
    scale: float = 4.0
    temperature: float | tuple[float, ...] = 0.07
    calibrated: bool = False
    denoising_weight: float = 0.0
    symmetric: bool = False
    positive_shift: float = 1.0
    negative_shift: float = 0.1
    dual_banks: bool = True
    ranking_temperature: float = 0.1
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    base_weight: float = 0.0
    token_dropout: float = 0.0
    max_token_norm: float | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    decay_share: float = 0.0
    warmup_steps: int = 20
    max_gradient_norm: float = 1.0
    seed: int = 0
    resolution: int = 512
    held_out_images: int = 0
    validation_steps: int = 100
    patience: int | None = None

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_ranges()
        if (self.num_steps is None) == (self.num_epochs is None):
            raise ValueError("fit: set one of num_steps and num_epochs, and the other to null")
        if self.symmetric and not (self.candidates == "batch" and self.shared_draws):
            raise ValueError("fit.symmetric compares images with each other: set candidates: batch and shared_draws")
        if self.symmetric and self.is_sample_of_batch:
            raise ValueError("fit.symmetric needs every caption with every image: set num_negatives to null")
        if self.candidates == "sampled" and self.num_negatives is None:
            raise ValueError("fit.num_negatives may be null (all of them) only with candidates: batch")
        if self.patience is not None and not self.held_out_images:
            raise ValueError("fit.patience stops by images that training does not see; set held_out_images")
        if self.candidates == "batch" and self.batch_size < 2 and self.objective != "dsm":
            raise ValueError("fit.candidates batch needs a batch_size of at least 2")

    def _check_choices(self) -> None:
        choices = {
            "objective": OBJECTIVES,
            "logits": tuple(LOGITS),
            "initial": ("normal", "null_text"),
            "candidates": ("sampled", "batch"),
            "timesteps": ("uniform", "logit_normal", "importance"),
        }
        for name, options in choices.items():
            if getattr(self, name) not in options:
                raise ValueError(f"fit.{name} must be one of {', '.join(options)}, not {getattr(self, name)!r}")

    def _check_ranges(self) -> None:
        for name in ("decay_share", "ema_decay", "token_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"fit.{name} must be in [0, 1], not {getattr(self, name)}")
        for shares in (self.shares_at(0.0), self.shares_at(1.0)):
            if min(shares) < 0 or sum(shares) > 1:
                raise ValueError(f"fit.edited_share and fit.mined_share must be shares of one whole, not {shares}")
        if not 0 <= self.timestep_range[0] < self.timestep_range[1] <= 1000:
            raise ValueError(f"fit.timestep_range must lie in [0, 1000], low before high, not {self.timestep_range}")
        if min(self.temperatures) <= 0:
            raise ValueError(f"fit.temperature must be above 0, not {self.temperature}")
        for name in ("held_out_images", "base_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"fit.{name} must not be negative, not {getattr(self, name)}")
        if self.max_token_norm is not None and self.max_token_norm <= 0:
            raise ValueError(f"fit.max_token_norm must be above 0, not {self.max_token_norm}")
        counts = ("num_steps", "num_epochs", "batch_size", "num_negatives", "validation_steps", "patience")
        _check_positive(self, "fit", counts)

    @property
    def num_candidates(self) -> int:
        """Captions scored for each image, its own included."""
        if self.objective == "dsm":
            return 1
        if self.candidates == "sampled":
            return 1 + cast(int, self.num_negatives)
        return min(self.batch_size, 1 + (self.num_negatives or self.batch_size))

    @property
    def is_sample_of_batch(self) -> bool:
        """Whether an image competes with some of the step's other captions, drawn uniformly, in place of all."""
        return self.objective != "dsm" and self.candidates == "batch" and self.num_candidates < self.batch_size

    @property
    def row(self) -> int:
        """Pairs that one pass must hold: an image with its candidates, or one pair where a row does not suffice."""
        return 1 if self.symmetric else self.num_candidates

    @property
    def num_pairs(self) -> int:
        return self.batch_size * self.num_candidates

    @property
    def temperatures(self) -> tuple[float, ...]:
        """τ for equal buckets of timesteps."""
        return self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)

    def shares_at(self, progress: float) -> tuple[float, float]:
        """Shares of structured and of mined negatives when this share of the training is done."""
        edited, mined = (
            share[0] + progress * (share[1] - share[0]) if isinstance(share, tuple) else share
            for share in (self.edited_share, self.mined_share)
        )
        return edited, mined

    def positions_of(self, step: int) -> range:
        """A step's places in the endless order of samples."""
        return range(step * self.batch_size, (step + 1) * self.batch_size)

    def steps_for(self, num_images: int) -> int:
        """Length of a run in steps, for a data set of `num_images`."""
        return self.num_steps or math.ceil((self.num_epochs or 0) * num_images / self.batch_size)

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """Linear warm-up, then constant, then a linear decay to zero."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        remaining = (num_steps - step) / num_steps
        return self.learning_rate * warm * min(1.0, remaining / self.decay_share if self.decay_share else 1.0)


@dataclass(frozen=True)
class ExecutionConfig:
    """How a training is run; it changes nothing in the result but rounding.

    `max_pairs_in_memory` bounds what one backward holds; null measures what fits. `compile` compiles the denoiser's
    repeated blocks, which pays on a GPU. With `text_cache` each caption is encoded once, before the first step, and its
    text states are kept on disk where there is room; null does so where the base has a T5. Checkpoints are written
    every `checkpoint_steps` or `checkpoint_minutes`, whichever comes first. With several `num_processes` a worker that
    dies is restarted up to `max_restarts` times. With a `job_file` nothing trains here: the job is written there for
    torchrun on other machines, and its tokens are waited for.
    """

    num_processes: int = 1
    max_pairs_in_memory: int | None = None
    compile: bool = False
    text_cache: bool | None = None
    checkpoint_steps: int = 25
    checkpoint_minutes: float = 10.0
    max_restarts: int = 3
    job_file: str | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "execution", ("num_processes", "max_pairs_in_memory", "checkpoint_steps"))


def _check_positive(config: object, block: str, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{block}.{name} must be at least 1, not {value}")
