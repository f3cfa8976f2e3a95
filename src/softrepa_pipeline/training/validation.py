"""Images that training does not see, measured as it goes: always with the same captions, noise and timesteps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.objectives import is_retrieved
from softrepa_pipeline.randomness import torch_generator
from softrepa_pipeline.soft_tokens import bucket_of
from softrepa_pipeline.training.calibration import gradient_weight, pair_errors
from softrepa_pipeline.training.data import TrainingSet
from softrepa_pipeline.training.distributed import Group
from softrepa_pipeline.training.draws import Draws
from softrepa_pipeline.training.loading import StepData, load
from softrepa_pipeline.training.methods import Method

NUM_LEVELS = 4


@dataclass
class Validation:
    """Held-out images against their candidate captions, at four levels of noise in the range that is trained."""

    backbone: Backbone
    data: TrainingSet
    method: Method
    group: Group
    _levels: list[StepData] = field(default_factory=list)

    def measure(self, temperatures: Tensor, pairs_at_once: int) -> dict[str, float]:
        """Retrieval accuracy and loss with the exported tokens, and by level own error, gap and gradient weight.

        The accuracy is the share of images whose own caption has the lowest error, meaned over the levels; the loss is
        the objective's, as far as it is one of these errors.
        """
        levels = self._levels = self._levels or self._load()
        errors = torch.stack([pair_errors(self.backbone, level, pairs_at_once).cpu() for level in levels])
        is_candidate = levels[0].is_candidate
        sums = {"validation_accuracy": is_retrieved(errors.mean(dim=0), is_candidate).sum()}
        loss = torch.zeros(())
        for number, level in enumerate(levels):
            temperature = temperatures[bucket_of(level.timestep, len(temperatures))]
            loss += self.method.losses(errors[number], temperature, is_candidate).loss.sum() / len(levels)
            own, others = errors[number, :, 0], errors[number, :, 1:]
            name, count = f"t{int(level.timestep[0]):03d}", len(own)
            sums[f"validation_error/{name}"] = own.sum()
            sums[f"validation_gap/{name}"] = (others.mean(dim=1) - own).sum()
            weight = gradient_weight(self.method, errors[number], is_candidate, temperature)
            sums[f"validation_weight/{name}"] = weight * count
        sums["validation_loss"] = loss
        total = self.group.add(torch.stack(list(sums.values())).to(self.backbone.device)) / len(self.data)
        return dict(zip(sums, total.tolist(), strict=True))

    def _load(self) -> list[StepData]:
        # Candidates of their own, whatever the objective has: the control is measured by retrieval too, and the other
        # images of a step are too few here.
        config = self.method.config
        edited, mined = config.shares_at(1.0)
        changes = {"objective": "softrepa", "candidates": "sampled", "symmetric": False, "flip": False}
        changes["batch_size"] = 1  # or buckets would leave out what fills no step
        changes |= {"edited_share": edited, "mined_share": mined}
        config = replace(config, num_negatives=max(1, config.num_candidates - 1), **changes)  # type: ignore[arg-type]
        positions = range(len(self.data))
        part = self.group.part(len(positions))
        shape = self.data.latent_shape(config, positions)
        low, high = config.timestep_range
        levels = []
        for number in range(NUM_LEVELS):
            timestep = low + (number + 0.5) / NUM_LEVELS * (high - low)
            generators = (torch_generator(config.seed, "validation", number, p) for p in positions[part])
            noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
            draws = Draws(noise, torch.full((len(noise),), timestep), torch.ones(len(noise)))
            levels.append(load(self.backbone, self.data, config, positions, draws, part))
        return levels
