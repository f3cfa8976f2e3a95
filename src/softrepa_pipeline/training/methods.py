"""The objectives as the training loop sees them: which banks of tokens they train, and the loss of a few rows."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from softrepa_pipeline.backbones import Backbone, Noised, Prompt
from softrepa_pipeline.objectives import (
    LOGITS,
    agsm_loss,
    agsm_targets,
    denoising_errors,
    mutual_information_bound,
    softrepa_loss,
)
from softrepa_pipeline.soft_tokens import SoftTokens, TokenBanks, Tokens
from softrepa_pipeline.training.config import FitConfig


@dataclass(frozen=True)
class Rows:
    """Some images of a step, each with its candidates: pairs in order, image by image, the own caption first.

    `noised` and `prompt` have one entry a pair, `temperature` (images,) one an image; pairs where `is_candidate`
    (images, captions) is False do not compete.
    """

    noised: Noised
    prompt: Prompt
    temperature: Float[Tensor, " images"]
    is_candidate: Bool[Tensor, "images captions"]


@dataclass(frozen=True)
class RowResult:
    """Loss of each image (images,), errors of its pairs (images, captions), and what else is worth a curve."""

    loss: Float[Tensor, " images"]
    errors: Float[Tensor, "images captions"]
    measures: dict[str, Float[Tensor, " images"]]


class Method(nn.Module, ABC):
    """One objective with what stands in the denoiser while it trains."""

    def __init__(self, injected: Tokens, config: FitConfig) -> None:
        super().__init__()
        self.injected = injected
        self.config = config

    @property
    def tokens(self) -> SoftTokens:
        """The bank that is drawn with, and exported."""
        return self.injected if isinstance(self.injected, SoftTokens) else self.injected.first

    @property
    def trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @abstractmethod
    def row_result(self, backbone: Backbone, rows: Rows) -> RowResult:
        """The loss of rows, with gradient; the tokens are injected."""

    def after_step(self, step: int) -> None:
        """Called after each optimiser step."""


@final
class SoftREPA(Method):
    """SoftREPA (arXiv 2503.08250): contrast between captions, and denoising with the own one."""

    def row_result(self, backbone: Backbone, rows: Rows) -> RowResult:
        config, is_candidate = self.config, rows.is_candidate
        errors = denoising_errors(backbone.predict(rows.noised, rows.prompt), rows.noised.target)
        errors = errors.view(is_candidate.shape)
        scored, own = errors.masked_fill(~is_candidate, torch.inf), torch.zeros(len(errors), dtype=torch.long)
        if config.symmetric:
            scored, own = to_square(scored), torch.arange(len(errors))
        logits = LOGITS[config.logits](scored, config.scale, rows.temperature[:, None])
        # Departure: with a calibrated τ(t) the contrastive gradient grows as 1 / τ(t), so λ is counted in that unit.
        weight = config.denoising_weight / rows.temperature if config.calibrated else config.denoising_weight
        row_loss = softrepa_loss(scored, logits, own.to(errors.device), weight, config.symmetric)
        measures = {
            "contrastive_loss": row_loss.contrastive,
            "infonce_accuracy": row_loss.is_retrieved,
            "mutual_information_bound": mutual_information_bound(row_loss.contrastive, is_candidate.sum(dim=1).float()),
        }
        return RowResult(row_loss.loss, errors, measures)


@final
class AGSM(Method):
    """AGSM (arXiv 2605.30038): matched pairs run with ψ⁺, mismatched with ψ⁻; averages of both set the targets.

    Departure: with `ema_warmup` the averages' decay is at most (1 + step) / (10 + step), which short runs need.
    """

    def __init__(self, tokens: SoftTokens, config: FitConfig) -> None:
        averages = [copy.deepcopy(tokens).requires_grad_(False) for _ in range(2)]
        super().__init__(TokenBanks([tokens, copy.deepcopy(tokens), *averages]), config)

    def row_result(self, backbone: Backbone, rows: Rows) -> RowResult:
        num_images, width = rows.is_candidate.shape
        bank = torch.ones((num_images, width), dtype=torch.long, device=rows.temperature.device)
        bank[:, 0] = 0
        bank, shape = bank.flatten(), (num_images, width)
        with torch.no_grad():
            averaged = backbone.predict(rows.noised, rows.prompt, bank + 2).unflatten(0, shape)
        target = rows.noised.target.unflatten(0, shape)[:, 0]
        config = self.config
        shifts = (config.positive_shift, config.negative_shift)
        targets = agsm_targets(averaged, target, *shifts, config.ranking_temperature, rows.is_candidate)
        predictions = backbone.predict(rows.noised, rows.prompt, bank)
        errors = denoising_errors(predictions.detach(), rows.noised.target).view(shape)
        return RowResult(
            agsm_loss(predictions.unflatten(0, shape), targets, rows.is_candidate),
            errors,
            {"infonce_accuracy": (errors.masked_fill(~rows.is_candidate, torch.inf).argmin(dim=1) == 0).float()},
        )

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        decay = self.config.ema_decay
        if self.config.ema_warmup:
            decay = min(decay, (1 + step) / (10 + step))
        positive, negative, *averages = cast(TokenBanks, self.injected).banks
        for bank, average in zip((positive, negative), averages, strict=True):
            for parameter, mean in zip(bank.parameters(), average.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)


@final
class DSM(Method):
    """Denoising score matching with the own captions alone: the control that has no negatives."""

    def row_result(self, backbone: Backbone, rows: Rows) -> RowResult:
        errors = denoising_errors(backbone.predict(rows.noised, rows.prompt), rows.noised.target)
        return RowResult(errors, errors[:, None], {})


METHODS: dict[str, type[Method]] = {"softrepa": SoftREPA, "agsm": AGSM, "dsm": DSM}


def to_square(rows: Tensor) -> Tensor:
    """Rows with the own caption first (images, images) as the matrix with the own caption on the diagonal."""
    size = len(rows)
    is_other = ~torch.eye(size, dtype=torch.bool, device=rows.device)
    square = torch.diag_embed(rows[:, 0])
    return square.masked_scatter(is_other, rows[:, 1:])
