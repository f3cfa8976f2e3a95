from __future__ import annotations

import math

import pytest
import torch

from softrepa_pipeline.objectives import calibrated_logits, denoising_errors, paper_logits, softrepa_loss


def test_errors_are_means_over_channels_and_pixels() -> None:
    prediction, target = torch.zeros(2, 1, 2, 2), torch.tensor([[[[1.0, 1], [1, 1]]], [[[2.0, 0], [0, 0]]]])
    torch.testing.assert_close(denoising_errors(prediction, target), torch.tensor([1.0, 1.0]))


def test_paper_loss_by_hand() -> None:
    errors = torch.tensor([[0.0, 0.07]])
    loss = softrepa_loss(errors, paper_logits(errors, 4.0, torch.tensor(0.07)), 10.0)
    # logits 4 and 4/e; CE = log(1 + exp(4/e − 4)); λ · err = 0
    assert loss.loss.item() == pytest.approx(math.log(1 + math.exp(4 / math.e - 4)), rel=1e-6)


def test_gradient_equals_the_closed_form() -> None:
    """dL/derr[i, j] = −(p_ij − δ_ij)(scale/τ) exp(−err_ij/τ) + λ δ_ij, method.md §1."""
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    scale, tau, weight = 4.0, 0.07, 10.0
    logits = paper_logits(errors, scale, torch.tensor(tau, dtype=torch.float64))
    softrepa_loss(errors, logits, weight).loss.sum().backward()
    own = torch.zeros_like(errors)
    own[:, 0] = 1
    expected = -(logits.softmax(1) - own) * scale / tau * torch.exp(-errors / tau) + weight * own
    assert errors.grad is not None
    torch.testing.assert_close(errors.grad, expected.detach())


def test_calibrated_logits_stay_bounded_and_keep_their_gradient() -> None:
    errors = torch.tensor([[0.500, 0.502, 0.510]], requires_grad=True)
    logits = calibrated_logits(errors, 4.0, torch.tensor([[0.004]]))
    assert logits[0, 0].item() == pytest.approx(4.0)
    assert logits[0, 1].item() == pytest.approx(4 * math.exp(-0.5), rel=1e-4)
    logits[0, 0].backward()
    assert errors.grad is not None
    torch.testing.assert_close(errors.grad, torch.tensor([[-4 / 0.004, 0, 0]]))


def test_captions_that_are_true_as_well_do_not_compete() -> None:
    errors = torch.tensor([[0.2, 0.1, 0.3]])
    negative = torch.tensor([[True, False, True]])
    logits = paper_logits(errors, 4.0, torch.tensor(0.07))
    masked = softrepa_loss(errors, logits, 0.0, negative)
    without = softrepa_loss(errors[:, [0, 2]], logits[:, [0, 2]], 0.0)
    torch.testing.assert_close(masked.loss, without.loss)
    assert masked.is_retrieved.item() == 1
    assert softrepa_loss(errors, logits, 0.0).is_retrieved.item() == 0
