"""What untrained tokens promise."""

from __future__ import annotations

import torch

from softrepa_pipeline.training.first_step import decrease


def test_gradients_that_agree_promise_their_whole_size() -> None:
    gradient = torch.tensor([3.0, -2.0, 0.0])
    torch.testing.assert_close(decrease(gradient.expand(5, 3)), torch.tensor(5.0))


def test_noise_promises_nothing_on_average_and_takes_its_part_of_a_signal() -> None:
    noise = torch.randn(64, 20_000, generator=torch.Generator().manual_seed(0))
    assert abs(decrease(noise)) < 0.01 * 20_000
    # E g = 1 and deviation 1: 1 / √2 of what every number would promise without noise.
    torch.testing.assert_close(decrease(1 + noise) / 20_000, torch.tensor(0.5**0.5), rtol=0.02, atol=0.0)
