from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from softrepa_pipeline.objectives import (
    agsm_loss,
    agsm_targets,
    denoising_errors,
    exponential_logits,
    is_retrieved,
    mutual_information_bound,
    plackett_luce_weights,
    raw_logits,
    relative_logits,
    softrepa_loss,
    standing_for_more,
)

FIRST = torch.zeros(1, dtype=torch.long)


def loss_of(predictions: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    errors = (predictions - targets).square().flatten(2).mean(dim=2)
    return agsm_loss(errors, torch.ones_like(errors, dtype=torch.bool) if mask is None else mask)


def test_errors_are_means_over_channels_and_pixels() -> None:
    prediction, target = torch.zeros(2, 1, 2, 2), torch.tensor([[[[1.0, 1], [1, 1]]], [[[2.0, 0], [0, 0]]]])
    torch.testing.assert_close(denoising_errors(prediction, target), torch.tensor([1.0, 1.0]))


def test_paper_loss_by_hand() -> None:
    errors = torch.tensor([[0.0, 0.07]])
    loss = softrepa_loss(errors, exponential_logits(errors, 4.0, torch.tensor(0.07)), FIRST, 10.0)
    # logits 4 and 4/e; CE = log(1 + exp(4/e − 4)); λ · err = 0
    assert loss.loss.item() == pytest.approx(math.log(1 + math.exp(4 / math.e - 4)), rel=1e-6)


def test_gradient_equals_the_closed_form() -> None:
    """dL/derr[i, j] = −(p_ij − δ_ij)(scale/τ) exp(−err_ij/τ) + λ δ_ij, method.md §1."""
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    scale, tau, weight = 4.0, 0.07, 10.0
    logits = exponential_logits(errors, scale, torch.tensor(tau, dtype=torch.float64))
    softrepa_loss(errors, logits, torch.zeros(5, dtype=torch.long), weight).loss.sum().backward()
    own = torch.zeros_like(errors)
    own[:, 0] = 1
    expected = -(logits.softmax(1) - own) * scale / tau * torch.exp(-errors / tau) + weight * own
    assert errors.grad is not None
    torch.testing.assert_close(errors.grad, expected.detach())


def test_relative_logits_stay_bounded_and_keep_their_gradient() -> None:
    errors = torch.tensor([[0.500, 0.502, 0.510]], requires_grad=True)
    logits = relative_logits(errors, 4.0, torch.tensor([[0.004]]))
    assert logits[0, 0].item() == pytest.approx(4.0)
    assert logits[0, 1].item() == pytest.approx(4 * math.exp(-0.5), rel=1e-4)
    logits[0, 0].backward()
    assert errors.grad is not None
    torch.testing.assert_close(errors.grad, torch.tensor([[-4 / 0.004, 0, 0]]))


def test_captions_that_are_true_as_well_do_not_compete() -> None:
    errors = torch.tensor([[0.2, 0.1, 0.3]])
    negative = torch.tensor([[True, False, True]])
    logits = exponential_logits(errors, 4.0, torch.tensor(0.07))
    masked = softrepa_loss(errors.masked_fill(~negative, torch.inf), logits, FIRST, 0.0)
    without = softrepa_loss(errors[:, [0, 2]], logits[:, [0, 2]], FIRST, 0.0)
    torch.testing.assert_close(masked.loss, without.loss)
    assert is_retrieved(errors, negative).item() == 1
    assert is_retrieved(errors, torch.ones_like(negative)).item() == 0


def test_the_whole_matrix_equals_the_published_loss() -> None:
    """The public code: cross-entropy of each row against the diagonal, and the diagonal's mean error."""
    errors = torch.rand(5, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)
    published = F.cross_entropy(4 * torch.exp(-errors / 0.07), torch.eye(5)) + 10 * errors.diagonal().mean()
    (wanted,) = torch.autograd.grad(published, errors)
    logits = exponential_logits(errors, 4.0, torch.tensor(0.07))
    ours = softrepa_loss(errors, logits, torch.arange(5), 10.0).loss.mean()
    torch.testing.assert_close(ours, published, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(ours, errors)[0], wanted, rtol=1e-5, atol=1e-8)


def test_raw_logits_by_hand() -> None:
    torch.testing.assert_close(
        raw_logits(torch.tensor([[0.07, 0.14]]), 4.0, torch.tensor(0.07)), torch.tensor([[-4.0, -8.0]])
    )


def test_the_symmetric_loss_is_clip_s() -> None:
    logits = torch.rand(4, 4, generator=torch.Generator().manual_seed(3))
    own = torch.arange(4)
    both = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    found = softrepa_loss(torch.zeros(4, 4), logits, own, 0.0, symmetric=True)
    torch.testing.assert_close(found.loss.mean(), both)


def test_information_bound_by_hand() -> None:
    bound = mutual_information_bound(torch.tensor([0.0, math.log(4)]), torch.tensor([4.0, 4.0]))
    torch.testing.assert_close(bound, torch.tensor([math.log(4), 0.0]))


def test_plackett_luce_weights_by_hand() -> None:
    weights = plackett_luce_weights(torch.tensor([[0.0, 0.1 * math.log(3)]]), 0.1)
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25]]))


def test_agsm_targets_by_hand() -> None:
    """One pixel: predictions 1 (own) and 2, target 1: errors 0 and 1; w = (1, e^−10)/(1 + e^−10), near (1, 0)."""
    predictions, target = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1), torch.ones(1, 1, 1, 1)
    weight = 1 / (1 + math.exp(-10))
    mean = weight * 1 + (1 - weight) * 2
    found = agsm_targets(predictions, target, 1.0, 0.1, 0.1).flatten()
    torch.testing.assert_close(found, torch.tensor([1 + (1 - mean), 1 - 0.1 * (2 - mean)]))
    assert loss_of(predictions, found.view(1, 2, 1, 1, 1)).item() == pytest.approx(
        (mean - 1) ** 2 + (1 + 0.1 * (2 - mean)) ** 2, rel=1e-5
    )


def test_agsm_equals_five_plain_lines() -> None:
    generator = torch.Generator().manual_seed(4)
    student, averaged = (torch.randn(3, 4, 2, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.randn(3, 2, 5, 5, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    wanted = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        w = torch.softmax(torch.stack([-((averaged[i, j] - target[i]) ** 2).mean() / 0.1 for j in range(4)]), 0)
        delta = [averaged[i, j] - sum(w[k] * averaged[i, k] for k in range(4)) for j in range(4)]
        wanted = wanted + ((student[i, 0] - (target[i] + 0.7 * delta[0])) ** 2).mean() / 3
        wanted = wanted + sum(((student[i, j] - (target[i] - 0.3 * delta[j])) ** 2).mean() for j in (1, 2, 3)) / 9
    found = loss_of(student.float(), agsm_targets(averaged, target, 0.7, 0.3, 0.1)).mean()
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=0)
    ours, plain = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (found, wanted))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-7)


def test_agsm_leaves_out_captions_that_are_true_as_well() -> None:
    generator = torch.Generator().manual_seed(6)
    student, averaged = (torch.randn(2, 3, 1, 2, 2, generator=generator) for _ in range(2))
    target = torch.randn(2, 1, 2, 2, generator=generator)
    mask = torch.tensor([[True, False, True], [True, False, False]])
    found = loss_of(student, agsm_targets(averaged, target, 1.0, 0.1, 0.1, mask), mask)
    kept = agsm_targets(averaged[:1, [0, 2]], target[:1], 1.0, 0.1, 0.1)
    torch.testing.assert_close(found[:1], loss_of(student[:1, [0, 2]], kept))
    # Without any competitor the average is the own prediction, so that nothing shifts the target.
    torch.testing.assert_close(found[1], (student[1, 0] - target[1]).square().mean())


def test_few_negatives_stand_for_all_that_they_were_drawn_from() -> None:
    """Averaged over every choice of 2 of 4 negatives, the softmax's denominator is the one of all four."""
    logits = torch.tensor([[0.3, 1.0, -2.0, 0.5, 0.1]])
    choices = [[0, i, j] for i in range(1, 5) for j in range(i + 1, 5)]
    found = torch.stack([standing_for_more(logits[:, choice], 4).exp().sum() for choice in choices]).mean()
    torch.testing.assert_close(found, logits.exp().sum())
