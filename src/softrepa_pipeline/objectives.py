"""Objectives on images and candidate captions (docs/method.md): SoftREPA, AGSM, and denoising alone as the control.

Rows are images, columns candidate captions. Every function is pure; losses are one value an image, so that rows can be
evaluated in any number of parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class RowLoss:
    """Loss of each image (images,), and its contrastive part."""

    loss: Float[Tensor, " images"]
    contrastive: Float[Tensor, " images"]


def denoising_errors(
    prediction: Float[Tensor, "pairs channels height width"],
    target: Float[Tensor, "pairs channels height width"],
) -> Float[Tensor, " pairs"]:
    """err[i, j] = mean_chw (v_θ(x_t^i, t, y^j, s) − target^i)², in fp32 (SoftREPA, arXiv 2503.08250)."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


def exponential_logits(
    errors: Float[Tensor, "images captions"], scale: float, temperature: Tensor
) -> Float[Tensor, "images captions"]:
    """logit[i, j] = scale · exp(−err[i, j] / τ), bounded by (0, scale]; τ is a number or one per image (images, 1)."""
    return scale * torch.exp(-errors / temperature)


def relative_logits(
    errors: Float[Tensor, "images captions"], scale: float, temperature: Tensor
) -> Float[Tensor, "images captions"]:
    """logit[i, j] = scale · exp(−(err[i, j] − min_j err[i, j]) / τ), with the row's minimum as a constant.

    Departure: the paper's form has no reference error, so a τ as small as the model's error gaps between captions
    (10⁻³) would drive every logit to zero; measured from the row's best caption it stays in (0, scale].
    """
    reference = errors.detach().min(dim=1, keepdim=True).values
    return scale * torch.exp(-(errors - reference) / temperature)


def raw_logits(
    errors: Float[Tensor, "images captions"], scale: float, temperature: Tensor
) -> Float[Tensor, "images captions"]:
    """logit[i, j] = −scale · err[i, j] / τ, without bound; with scale 1 the paper's ablation."""
    return -scale * errors / temperature


LOGITS = {"exponential": exponential_logits, "relative": relative_logits, "raw": raw_logits}


def softrepa_loss(
    errors: Float[Tensor, "images captions"],
    logits: Float[Tensor, "images captions"],
    own: Int[Tensor, " images"],
    denoising_weight: Tensor | float,
    symmetric: bool = False,
) -> RowLoss:
    """L_i = CE(logit[i, :], own_i) + λ · err[i, own_i] (SoftREPA's objective; λ a number or one per image).

    `own` is the column of each image's own caption. Captions with an infinite error do not compete, such as those that
    are true of the image as well. `symmetric` averages the cross-entropy over rows with the one over columns, caption
    against images, as CLIP does; the matrix must then be square with `own` on its diagonal.
    """
    logits = logits.masked_fill(errors.isinf(), -torch.inf)
    contrastive = F.cross_entropy(logits, own, reduction="none")
    if symmetric:
        contrastive = (contrastive + F.cross_entropy(logits.T, own, reduction="none")) / 2
    positive = errors.gather(1, own[:, None]).squeeze(1)
    return RowLoss(contrastive + denoising_weight * positive, contrastive.detach())


def is_retrieved(
    errors: Float[Tensor, "images captions"], is_candidate: Bool[Tensor, "images captions"]
) -> Float[Tensor, " images"]:
    """Whether the own caption, in column 0, has the lowest error of an image's candidates, 1 or 0."""
    return (errors.masked_fill(~is_candidate, torch.inf).argmin(dim=1) == 0).float()


def standing_for_more(logits: Float[Tensor, "images captions"], num_possible: int) -> Float[Tensor, "images captions"]:
    """Logits whose negatives, all but column 0, were drawn uniformly from `num_possible`: each stands for its share.

    Adding log(M / K) to K negatives drawn from M makes the softmax's denominator an unbiased estimate of the full one.
    """
    correction = math.log(num_possible / (logits.shape[1] - 1))
    return torch.cat([logits[:, :1], logits[:, 1:] + correction], dim=1)


def mutual_information_bound(
    contrastive: Float[Tensor, " images"], num_candidates: Float[Tensor, " images"]
) -> Float[Tensor, " images"]:
    """I(image; text) ≥ log K − L in nats, for K candidates and the contrastive loss L (InfoNCE, arXiv 1807.03748)."""
    return num_candidates.log() - contrastive


def plackett_luce_weights(
    errors: Float[Tensor, "images captions"], temperature: float
) -> Float[Tensor, "images captions"]:
    """w[i, :] = softmax_j(−err[i, j] / 0.1) of the averaged model's errors (AGSM, arXiv 2605.30038)."""
    return torch.softmax(-errors / temperature, dim=1)


def agsm_targets(
    predictions: Float[Tensor, "images captions channels height width"],
    target: Float[Tensor, "images channels height width"],
    positive_shift: float,
    negative_shift: float,
    temperature: float,
    is_candidate: Bool[Tensor, "images captions"] | None = None,
) -> Float[Tensor, "images captions channels height width"]:
    """target + γ⁺ Δ[i, 0] for the own caption in column 0, target − γ⁻ Δ[i, j] for the others (AGSM).

    Δ[i, j] = v̂[i, j] − Σ_k w[i, k] v̂[i, k], with `predictions` v̂ of the averaged tokens; no gradient passes. Captions
    that are no candidates have no weight.
    """
    predictions, target = predictions.detach().float(), target.float()[:, None]
    errors = (predictions - target).square().flatten(2).mean(dim=2)
    if is_candidate is not None:
        errors = errors.masked_fill(~is_candidate, torch.inf)
    weights = plackett_luce_weights(errors, temperature)[:, :, None, None, None]
    shift = predictions - (weights * predictions).sum(dim=1, keepdim=True)
    return torch.cat([target + positive_shift * shift[:, :1], target - negative_shift * shift[:, 1:]], dim=1)


def agsm_loss(
    errors: Float[Tensor, "images captions"], is_candidate: Bool[Tensor, "images captions"]
) -> Float[Tensor, " images"]:
    """L_i = ‖v_{ψ⁺}[i, 0] − target⁺‖² + mean_{j > 0} ‖v_{ψ⁻}[i, j] − target⁻‖², norms as means over an image (AGSM).

    `errors` are those norms, the own caption's in column 0. The second mean is over candidates; it is 0 for an image
    that has none.
    """
    counted = is_candidate[:, 1:].to(errors)
    return errors[:, 0] + (errors[:, 1:] * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
