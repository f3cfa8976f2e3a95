"""Objectives on the matrix of denoising errors, one row an image, one column a candidate caption (method.md §1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class RowLoss:
    """Loss of each image (images,), and whether its own caption has the lowest error (images,)."""

    loss: Float[Tensor, " images"]
    contrastive: Float[Tensor, " images"]
    is_retrieved: Float[Tensor, " images"]


def denoising_errors(
    prediction: Float[Tensor, "pairs channels height width"],
    target: Float[Tensor, "pairs channels height width"],
) -> Float[Tensor, " pairs"]:
    """err[i, j] = mean_chw (v_θ(x_t^i, t, y^j, s) − target^i)², in fp32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


def paper_logits(
    errors: Float[Tensor, "images captions"], scale: float, temperature: Tensor
) -> Float[Tensor, "images captions"]:
    """logit[i, j] = scale · exp(−err[i, j] / τ), bounded by (0, scale]; τ is a number or one per image (images, 1)."""
    return scale * torch.exp(-errors / temperature)


def calibrated_logits(
    errors: Float[Tensor, "images captions"], scale: float, temperature: Tensor
) -> Float[Tensor, "images captions"]:
    """logit[i, j] = scale · exp(−(err[i, j] − min_j err[i, j]) / τ(t)), with the row's minimum as a constant.

    Departure: the paper's form has no reference error, so a τ(t) as small as the model's error gaps between captions
    (10⁻³) would drive every logit to zero; measured from the row's best caption it stays in (0, scale].
    """
    reference = errors.detach().min(dim=1, keepdim=True).values
    return scale * torch.exp(-(errors - reference) / temperature)


LOGITS = {"constant": paper_logits, "calibrated": calibrated_logits}


def softrepa_loss(
    errors: Float[Tensor, "images captions"],
    logits: Float[Tensor, "images captions"],
    denoising_weight: Tensor | float,
    is_negative: Tensor | None = None,
) -> RowLoss:
    """L_i = CE(logit[i, :], 0) + λ · err[i, 0]; the image's own caption stands in column 0.

    `is_negative` (images, captions) leaves out columns other than the first where it is False: captions that are true
    of the image as well.
    """
    if is_negative is not None:
        keep = is_negative.clone()
        keep[:, 0] = True
        logits = logits.masked_fill(~keep, -torch.inf)
        competing = errors.masked_fill(~keep, torch.inf)
    else:
        competing = errors
    own = torch.zeros(len(errors), dtype=torch.long, device=errors.device)
    contrastive = F.cross_entropy(logits, own, reduction="none")
    retrieved = (competing.argmin(dim=1) == 0).float()
    return RowLoss(contrastive + denoising_weight * errors[:, 0], contrastive.detach(), retrieved)
