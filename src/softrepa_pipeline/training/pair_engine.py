"""The pair engine: gradients of a step's loss over images × captions, in micro-batches that bound the memory.

Rows, an image with its candidates, decouple: evaluated a few at a time their gradient is exact in one pass. Below one
row, and where columns compete too, the loss's derivative by each error comes first: it is known at once where the loss
is linear in the errors, else after a pass without autograd; then every pair is weighted by it (GradCache, arXiv
2101.06983, with the closed form of a loss of scalars).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.objectives import denoising_errors
from softrepa_pipeline.training.config import FitConfig
from softrepa_pipeline.training.methods import Method, RowLosses, Rows

logger = logging.getLogger(__name__)


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
    targets = method.targets(backbone, rows, plan.pairs_at_once)
    if not plan.two_pass:
        return _one_pass(backbone, method, rows, targets, divisor)
    return _two_passes(backbone, method, rows, targets, plan.pairs_at_once, divisor)


def _one_pass(backbone: Backbone, method: Method, rows: Rows, targets: Tensor, divisor: int) -> PairResult:
    prediction = rows.pairs.predict(backbone, method.bank_of(rows))
    errors = denoising_errors(prediction, targets).view(rows.is_candidate.shape)
    losses = method.losses(errors, rows.temperature, rows.is_candidate)
    total = (losses.loss * rows.weight).sum() / divisor
    # The loss by the errors first, a matrix of scalars, so that its derivative can be looked at.
    (by_error,) = torch.autograd.grad(total, errors)
    errors.backward(by_error)
    true_errors = denoising_errors(prediction.detach(), rows.pairs.target).view(errors.shape)
    return _result(losses, true_errors, rows, by_error * divisor)


def _two_passes(
    backbone: Backbone, method: Method, rows: Rows, targets: Tensor, pairs_at_once: int, divisor: int
) -> PairResult:
    parts, bank, shape = (
        torch.arange(len(rows.pairs)).split(pairs_at_once),
        method.bank_of(rows),
        rows.is_candidate.shape,
    )

    def predict(index: Tensor) -> Tensor:
        return rows.pairs[index].predict(backbone, None if bank is None else bank[index.to(bank.device)])

    known = torch.zeros(shape, device=targets.device)
    if not method.linear:
        with torch.no_grad():
            known = torch.cat([denoising_errors(predict(part), _at(targets, part)) for part in parts]).view(shape)
    known.requires_grad_()
    total = (method.losses(known, rows.temperature, rows.is_candidate).loss * rows.weight).sum() / divisor
    by_error = torch.autograd.grad(total, known)[0]
    errors, true_errors, flat, true_targets = [], [], by_error.flatten(), rows.pairs.target
    for part in parts:
        prediction = predict(part)
        error = denoising_errors(prediction, _at(targets, part))
        error.backward(_at(flat, part))
        errors.append(error.detach())
        true_errors.append(denoising_errors(prediction.detach(), _at(true_targets, part)))
    losses = method.losses(torch.cat(errors).view(shape), rows.temperature, rows.is_candidate)
    return _result(losses, torch.cat(true_errors).view(shape), rows, by_error * divisor)


def _at(values: Tensor, index: Tensor) -> Tensor:
    return values[index.to(values.device)]


def _result(losses: RowLosses, errors: Tensor, rows: Rows, by_error: Tensor) -> PairResult:
    measures = {name: value.detach() for name, value in losses.measures.items()}
    weighted = RowLosses(losses.loss.detach() * rows.weight, measures)
    return PairResult(weighted, errors, rows.is_candidate, by_error.abs().sum(dim=1))
