"""Settings of a training that takes seconds."""

from __future__ import annotations

from dataclasses import replace

from softrepa_pipeline.training import ExecutionConfig, FitConfig

CONFIG = FitConfig(
    layers=(0, 1),
    num_tokens=2,
    num_buckets=4,
    num_steps=6,
    batch_size=4,
    num_negatives=2,
    edited_share=0.5,
    mined_share=0.5,
    learning_rate=1e-2,
    logits="relative",
    calibrated=True,
    temperature=1.0,
    denoising_weight=1.0,
    seed=3,
)
EXECUTION = ExecutionConfig(max_pairs_in_memory=256, checkpoint_steps=2)
# The published form: the step's own captions compete, all with one timestep and one noise.
BATCH = replace(
    CONFIG,
    candidates="batch",
    num_negatives=None,
    shared_draws=True,
    logits="exponential",
    calibrated=False,
    temperature=0.07,
)
