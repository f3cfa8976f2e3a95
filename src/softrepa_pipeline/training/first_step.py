"""What settings promise before they are trained: how far their first optimiser step is expected to lower the loss."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from softrepa_pipeline.backbones import inject, load_backbone
from softrepa_pipeline.training.data import TrainingSet
from softrepa_pipeline.training.distributed import Group
from softrepa_pipeline.training.fit import Observer, Trainer
from softrepa_pipeline.training.job import Job, latents_of
from softrepa_pipeline.training.loading import load_step


def expected_decrease(job: Job, num_batches: int = 16) -> float:
    """The first-order decrease of a job's loss by one Adam step at full rate, from the untrained tokens' gradients.

    lr · Σ_i (E g_i)² / √(E g_i²) over the tokens' numbers i, g_i of a step's batch: a number whose gradient has the
    same sign in every batch counts in full, one that is noise not at all. (E g_i)² is estimated from pairs of
    different batches, so that noise alone gives 0 on average and may give less. Costs `num_batches` steps.

    Raises:
        ValueError: the job's settings do not fit its data or model.
    """
    backbone = load_backbone(job.model)
    data = TrainingSet.read(latents_of(job, job.latents), Path(job.negatives))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(backbone, data, job.fit, Path(folder), job.execution, Observer(), Group())
        with inject(backbone.denoiser, trainer.sites, trainer.method.injected):
            trainer.prepare()
            gradients = torch.stack([_gradient(trainer, step) for step in range(num_batches)])
    return job.fit.learning_rate * float(decrease(gradients))


def decrease(gradients: Tensor) -> Tensor:
    """Σ_i (E g_i)² / √(E g_i²) from gradients (batches, numbers)."""
    count = len(gradients)
    squares = gradients.square().sum(dim=0)
    signal = (gradients.sum(dim=0).square() - squares) / (count * (count - 1))
    scale = (squares / count).sqrt()
    return torch.where(scale > 0, signal / scale, 0.0).sum()


def _gradient(trainer: Trainer, step: int) -> Tensor:
    config = trainer.config
    images = slice(0, config.batch_size)
    trainer.gradients(load_step(trainer.backbone, trainer.data, config, trainer.progress.density, step, images))
    gradients = [parameter.grad for parameter in trainer.method.trainable]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
