"""The pair engine: gradients of a step's loss over images × captions, in micro-batches that bound the memory.

Rows, an image with its candidates, decouple: evaluated a few at a time their gradient is exact in one pass. Below one
row, and where columns compete too, the loss's derivative by each error comes first: it is known at once where the loss
is linear in the errors, else after a pass without autograd; then every pair is weighted by it (GradCache, arXiv
2101.06983, with the closed form of a loss of scalars).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.objectives import denoising_errors
from softrepa_pipeline.training.config import FitConfig
from softrepa_pipeline.training.methods import Method, RowLosses, Rows


@dataclass(frozen=True)
class Plan:
    """How a step's pairs are evaluated: `rows_at_once` rows, or in two passes over `pairs_at_once` pairs of them."""

    rows_at_once: int
    pairs_at_once: int
    two_pass: bool

    def __str__(self) -> str:
        if not self.two_pass:
            return f"whole rows, {self.rows_at_once} at once ({self.pairs_at_once} pairs)"
        return f"two passes over {self.rows_at_once} row(s), {self.pairs_at_once} pairs at once"


def choose_plan(config: FitConfig, num_images: int, max_pairs: int) -> Plan:
    """The plan with the fewest and equal micro-batches of at most `max_pairs` pairs, for `num_images` rows.

    Only whole rows can go in one pass; the symmetric loss needs the whole matrix.
    """
    width = config.num_candidates
    group = num_images if config.symmetric else 1
    if max_pairs < group * width:
        return Plan(group, _largest_part(group * width, max_pairs), two_pass=True)
    rows = group if config.symmetric else _largest_part(num_images, max_pairs // width)
    return Plan(rows, rows * width, two_pass=False)


def _largest_part(total: int, most: int) -> int:
    """The largest divisor of `total` up to `most`, so that every micro-batch has the same shape."""
    return next(part for part in range(min(total, most), 0, -1) if total % part == 0)


@dataclass(frozen=True)
class PairResult:
    """Weighted losses of some rows, their true errors, which of those compete, and weight · Σ_j |∂L_i/∂err[i, j]|."""

    losses: RowLosses
    errors: Tensor
    is_candidate: Tensor
    gradient_weight: Tensor


def accumulate(backbone: Backbone, method: Method, rows: Rows, plan: Plan, divisor: int) -> PairResult:
    """Add the gradient of Σ_i weight_i · L_i / divisor over these rows to the tokens; they fit the plan's group."""
    shifted = method.targets(backbone, rows, plan.pairs_at_once)
    work = _Work(backbone, method, rows, rows.pairs.target, shifted)
    return _two_passes(work, plan.pairs_at_once, divisor) if plan.two_pass else _one_pass(work, divisor)


@dataclass(frozen=True)
class _Work:
    """Rows with what their pairs should predict, and what they regress on where that differs."""

    backbone: Backbone
    method: Method
    rows: Rows
    target: Tensor
    shifted: Tensor | None

    def errors(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Errors of some pairs: those that the loss is a function of, with gradient, and those against the target."""
        bank, pairs = self.method.bank_of(self.rows), self.rows.pairs[index]
        prediction = pairs.predict(self.backbone, None if bank is None else _at(bank, index))
        errors = denoising_errors(prediction, _at(self.target, index))
        if self.shifted is None:
            return errors, errors.detach()
        return denoising_errors(prediction, _at(self.shifted, index)), errors.detach()

    def losses(self, errors: Tensor) -> RowLosses:
        shape = self.rows.is_candidate.shape
        return self.method.losses(errors.view(shape), self.rows.temperature, self.rows.is_candidate)

    def derivative(self, errors: Tensor, losses: RowLosses, divisor: int) -> Tensor:
        """∂ (Σ_i weight_i · L_i / divisor) / ∂ errors, as flat as they are."""
        total = (losses.loss * self.rows.weight).sum() / divisor
        return torch.autograd.grad(total, errors)[0]


def _one_pass(work: _Work, divisor: int) -> PairResult:
    errors, true_errors = work.errors(slice(None))
    losses = work.losses(errors)
    by_error = work.derivative(errors, losses, divisor)
    errors.backward(by_error)
    return _result(work.rows, losses, true_errors, by_error * divisor)


def _two_passes(work: _Work, pairs_at_once: int, divisor: int) -> PairResult:
    parts = torch.arange(len(work.rows.pairs)).split(pairs_at_once)
    known = torch.zeros(len(work.rows.pairs), device=work.target.device)
    if not work.method.linear:
        with torch.no_grad():
            known = torch.cat([work.errors(part)[0] for part in parts])
    known.requires_grad_()
    by_error = work.derivative(known, work.losses(known), divisor)
    errors, true_errors = [], []
    for part in parts:
        error, true_error = work.errors(part)
        error.backward(_at(by_error, part))
        errors.append(error.detach())
        true_errors.append(true_error)
    return _result(work.rows, work.losses(torch.cat(errors)), torch.cat(true_errors), by_error * divisor)


def _at(values: Tensor, index: Tensor | slice) -> Tensor:
    return values[index.to(values.device) if isinstance(index, Tensor) else index]


def _result(rows: Rows, losses: RowLosses, errors: Tensor, by_error: Tensor) -> PairResult:
    measures = {name: value.detach() for name, value in losses.measures.items()}
    weighted, shape = RowLosses(losses.loss.detach() * rows.weight, measures), rows.is_candidate.shape
    return PairResult(weighted, errors.view(shape), rows.is_candidate, by_error.view(shape).abs().sum(dim=1))
