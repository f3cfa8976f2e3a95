"""How clean latents become noised ones, and what a denoiser should predict of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

    Latents = Float[Tensor, "batch channels height width"]


def mix_straight(clean: Latents, noise: Latents, sigma: Float[Tensor, " batch"]) -> tuple[Latents, Latents]:
    """x_t = (1 − σ) x_0 + σ ε and the target ε − x_0 (rectified flow, arXiv 2209.03003)."""
    level = sigma.to(clean.dtype)[:, None, None, None]
    return (1 - level) * clean + level * noise, noise - clean


def mix_preserving_variance(
    clean: Latents, noise: Latents, signal: Float[Tensor, " batch"], prediction_type: str
) -> tuple[Latents, Latents]:
    """x_t = α x_0 + σ ε with α = √ᾱ, σ = √(1 − ᾱ), and the target of the prediction type.

    `epsilon`: ε (arXiv 2006.11239); `v_prediction`: α ε − σ x_0 (arXiv 2202.00512); `sample`: x_0.

    Raises:
        ValueError: the prediction type is none of these.
    """
    level = signal.to(clean.device)[:, None, None, None]
    alpha, sigma = level.sqrt().to(clean.dtype), (1 - level).sqrt().to(clean.dtype)
    targets = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean, "sample": clean}
    if prediction_type not in targets:
        raise ValueError(f"scheduler.prediction_type {prediction_type!r} is not one of {', '.join(targets)}")
    return alpha * clean + sigma * noise, targets[prediction_type]


def separate(
    sample: Latents, prediction: Latents, signal: Float[Tensor, " batch"], prediction_type: str
) -> tuple[Latents, Latents]:
    """The clean latents and the noise that a prediction sees in x_t; undoes `mix_preserving_variance`.

    Raises:
        ValueError: the prediction type is none of those.
    """
    level = signal.to(sample.device)[:, None, None, None]
    alpha, sigma = level.sqrt().to(sample.dtype), (1 - level).sqrt().to(sample.dtype)
    if prediction_type == "epsilon":
        return (sample - sigma * prediction) / alpha, prediction
    if prediction_type == "v_prediction":
        return alpha * sample - sigma * prediction, sigma * sample + alpha * prediction
    if prediction_type == "sample":
        return prediction, (sample - alpha * prediction) / sigma
    raise ValueError(f"scheduler.prediction_type {prediction_type!r} is not one of epsilon, v_prediction, sample")
