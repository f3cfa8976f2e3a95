"""The objectives as the pair engine sees them: the banks they train, what each pair regresses on, a row's loss."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast, final

import torch
from torch import Tensor, nn

from softrepa_pipeline.backbones import Backbone, Pairs
from softrepa_pipeline.objectives import (
    LOGITS,
    agsm_loss,
    agsm_targets,
    mutual_information_bound,
    softrepa_loss,
    standing_for_more,
)
from softrepa_pipeline.soft_tokens import SoftTokens, TokenBanks, Tokens
from softrepa_pipeline.training.config import FitConfig

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Rows:
    """Some images of a step, each with its candidates: pairs image by image, the own caption first.

    `temperature` and `weight` (images,) are one an image; pairs where `is_candidate` (images, captions) is False do
    not compete.
    """

    pairs: Pairs
    temperature: Float[Tensor, " images"]
    weight: Float[Tensor, " images"]
    is_candidate: Bool[Tensor, "images captions"]


@dataclass(frozen=True)
class RowLosses:
    """Loss of each image (images,), and what else of it is worth a curve."""

    loss: Float[Tensor, " images"]
    measures: dict[str, Float[Tensor, " images"]]


class Method(nn.Module, ABC):
    """One objective with what stands in the denoiser while it trains.

    Every objective is a function of the errors of pairs against targets. Where it is `linear` in them a pair's weight
    is known before any error is.
    """

    linear: ClassVar[bool]

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

    def bank_of(self, rows: Rows) -> Tensor | None:
        """Which bank each pair runs with (pairs,), where there are several."""
        return None

    def targets(self, backbone: Backbone, rows: Rows, pairs_at_once: int) -> Tensor | None:
        """What each pair regresses on, (pairs, channels, height, width), where that is not its image's own target.

        The tokens are injected; no gradient passes.
        """
        return None

    @abstractmethod
    def losses(
        self,
        errors: Float[Tensor, "images captions"],
        temperature: Float[Tensor, " images"],
        is_candidate: Bool[Tensor, "images captions"],
    ) -> RowLosses:
        """The loss of rows from their errors against `targets`."""

    def error_unit(self, temperature: Float[Tensor, " images"]) -> Float[Tensor, " images"]:
        """What weights of denoising errors are counted in (images,)."""
        return torch.ones_like(temperature)

    def after_step(self, step: int) -> None:
        """Called after each optimiser step."""


@final
class SoftREPA(Method):
    """SoftREPA (arXiv 2503.08250): contrast between captions, and denoising with the own one."""

    linear = False

    def losses(self, errors: Tensor, temperature: Tensor, is_candidate: Tensor) -> RowLosses:
        config = self.config
        scored, own = errors.masked_fill(~is_candidate, torch.inf), torch.zeros(len(errors), dtype=torch.long)
        # Only a whole step's matrix has columns that compete; held-out images are measured row by row.
        symmetric = config.symmetric and errors.shape == (config.batch_size, config.batch_size)
        if symmetric:
            scored, own = to_square(scored), torch.arange(len(errors))
        logits = LOGITS[config.logits](scored, config.scale, temperature[:, None])
        if config.is_sample_of_batch:
            logits = standing_for_more(logits, config.batch_size - 1)
        weight = config.denoising_weight * self.error_unit(temperature)
        row_loss = softrepa_loss(scored, logits, own.to(errors.device), weight, symmetric)
        num_candidates = is_candidate.sum(dim=1).float()
        measures = {
            "contrastive_loss": row_loss.contrastive,
            "mutual_information_bound": mutual_information_bound(row_loss.contrastive, num_candidates),
        }
        return RowLosses(row_loss.loss, measures)

    def error_unit(self, temperature: Tensor) -> Tensor:
        # Departure: with a calibrated τ(t) the contrastive gradient grows as 1 / τ(t), so λ is counted in that unit.
        return 1 / temperature if self.config.calibrated else torch.ones_like(temperature)


@final
class AGSM(Method):
    """AGSM (arXiv 2605.30038): matched pairs run with ψ⁺, mismatched with ψ⁻; averages of both set the targets.

    Departures: with `ema_warmup` the averages' decay is at most (1 + step) / (10 + step), which short runs need;
    without `dual_banks` ψ⁻ is ψ⁺, so that the push away from mismatched captions reaches the tokens drawn with.
    """

    linear = True

    def __init__(self, tokens: SoftTokens, config: FitConfig) -> None:
        trained = [tokens, copy.deepcopy(tokens)] if config.dual_banks else [tokens]
        averages = [copy.deepcopy(bank).requires_grad_(False) for bank in trained]
        super().__init__(TokenBanks([*trained, *averages]), config)
        self.num_trained = len(trained)

    def bank_of(self, rows: Rows) -> Tensor:
        mismatched = self.num_trained - 1
        bank = torch.full(rows.is_candidate.shape, mismatched, device=rows.is_candidate.device)
        bank[:, 0] = 0
        return bank.flatten()

    @torch.no_grad()
    def targets(self, backbone: Backbone, rows: Rows, pairs_at_once: int) -> Tensor:
        config, shape, bank = self.config, rows.is_candidate.shape, self.bank_of(rows) + self.num_trained
        parts = [
            rows.pairs[index].predict(backbone, bank[index.to(bank.device)])
            for index in torch.arange(len(rows.pairs)).split(pairs_at_once)
        ]
        averaged, target = torch.cat(parts).unflatten(0, shape), rows.pairs.noised.target
        shifts = (config.positive_shift, config.negative_shift)
        shifted = agsm_targets(averaged, target, *shifts, config.ranking_temperature, rows.is_candidate)
        return shifted.flatten(0, 1)

    def losses(self, errors: Tensor, temperature: Tensor, is_candidate: Tensor) -> RowLosses:
        return RowLosses(agsm_loss(errors, is_candidate), {})

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        decay = self.config.ema_decay
        if self.config.ema_warmup:
            decay = min(decay, (1 + step) / (10 + step))
        banks = list(cast(TokenBanks, self.injected).banks)
        for bank, average in zip(banks[: self.num_trained], banks[self.num_trained :], strict=True):
            for parameter, mean in zip(bank.parameters(), average.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)


@final
class DSM(Method):
    """Denoising score matching with the own captions alone: the control that has no negatives."""

    linear = True

    def losses(self, errors: Tensor, temperature: Tensor, is_candidate: Tensor) -> RowLosses:
        return RowLosses(errors[:, 0], {})


METHODS: dict[str, type[Method]] = {"softrepa": SoftREPA, "agsm": AGSM, "dsm": DSM}


def to_square(rows: Tensor) -> Tensor:
    """Rows with the own caption first (images, images) as the matrix with the own caption on the diagonal."""
    size = len(rows)
    is_other = ~torch.eye(size, dtype=torch.bool, device=rows.device)
    square = torch.diag_embed(rows[:, 0])
    return square.masked_scatter(is_other, rows[:, 1:])
