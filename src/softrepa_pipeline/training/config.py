"""Settings of a soft-token training run."""

from __future__ import annotations

from dataclasses import dataclass

from softrepa_pipeline.objectives import LOGITS


@dataclass(frozen=True)
class FitConfig:
    """How soft tokens are trained; the defaults that matter live in conf/base/parameters_fit.yml with their reasons.

    `layers` receive `num_tokens` tokens each, with `num_buckets` timestep buckets; they start as `initial` says,
    `normal` or `null_text`. Each step takes `batch_size` images with `num_negatives` captions besides their own; of
    these negatives `edited_share` are structured (the caption with a contradiction in it) and `mined_share` mined, as
    far as there are any, the others drawn from the whole data set. Timesteps are uniform in `timestep_range`.
    `logits` is `constant` (the paper's form with `temperature` as τ) or `calibrated` (τ(t) is `temperature` times the
    base model's own error gap between captions at t). `denoising_weight` is λ. The learning rate falls to zero over the
    last `decay_share` of the steps.
    """

    layers: tuple[int, ...]
    num_tokens: int
    num_buckets: int
    num_steps: int
    batch_size: int
    num_negatives: int
    edited_share: float
    mined_share: float
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
    timestep_range: tuple[float, float] = (0.0, 1000.0)
    initial: str = "normal"
    decay_share: float = 0.0

    def __post_init__(self) -> None:
        if self.logits not in LOGITS:
            raise ValueError(f"fit.logits must be one of {', '.join(LOGITS)}, not {self.logits!r}")
        if self.initial not in ("normal", "null_text"):
            raise ValueError(f"fit.initial must be normal or null_text, not {self.initial!r}")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"fit.decay_share must be in [0, 1], not {self.decay_share}")
        shares = (self.edited_share, self.mined_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"fit.edited_share and fit.mined_share must be shares of one whole, not {shares}")
        if not 0 <= self.timestep_range[0] < self.timestep_range[1] <= 1000:
            raise ValueError(f"fit.timestep_range must lie in [0, 1000], low before high, not {self.timestep_range}")
        for name in ("num_steps", "batch_size", "num_negatives", "checkpoint_steps", "max_pairs_in_memory"):
            if getattr(self, name) < 1:
                raise ValueError(f"fit.{name} must be at least 1, not {getattr(self, name)}")

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then constant, then a linear decay to zero."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        remaining = (self.num_steps - step) / self.num_steps
        return self.learning_rate * warm * min(1.0, remaining / self.decay_share if self.decay_share else 1.0)
