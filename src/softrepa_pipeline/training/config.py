"""Settings of a soft-token training run."""

from __future__ import annotations

from dataclasses import dataclass

from softrepa_pipeline.objectives import LOGITS


@dataclass(frozen=True)
class FitConfig:
    """How soft tokens are trained; the defaults that matter live in conf/base/parameters_fit.yml with their reasons.

    `layers` receive `num_tokens` tokens each, with `num_buckets` timestep buckets. Each step takes `batch_size` images
    with `num_negatives` captions besides their own; `hard_share` of these negatives are mined, the others drawn from
    the whole data set. `logits` is `constant` (the paper's form with `temperature` as τ) or `calibrated` (τ(t) is
    `temperature` times the base model's own error gap between captions at t). `denoising_weight` is λ.
    """

    layers: tuple[int, ...]
    num_tokens: int
    num_buckets: int
    num_steps: int
    batch_size: int
    num_negatives: int
    hard_share: float
    learning_rate: float
    weight_decay: float
    logits: str
    scale: float
    temperature: float
    denoising_weight: float
    seed: int
    warmup_steps: int = 20
    max_gradient_norm: float = 1.0
    max_pairs_in_memory: int = 256
    checkpoint_steps: int = 25
    resolution: int = 512

    def __post_init__(self) -> None:
        if self.logits not in LOGITS:
            raise ValueError(f"fit.logits must be one of {', '.join(LOGITS)}, not {self.logits!r}")
        if not 0 <= self.hard_share <= 1:
            raise ValueError(f"fit.hard_share must be in [0, 1], not {self.hard_share}")
        for name in ("num_steps", "batch_size", "num_negatives", "checkpoint_steps", "max_pairs_in_memory"):
            if getattr(self, name) < 1:
                raise ValueError(f"fit.{name} must be at least 1, not {getattr(self, name)}")
