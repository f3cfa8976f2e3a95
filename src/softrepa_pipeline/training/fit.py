"""The training loop: soft tokens on a frozen base model, by any of the objectives."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast, final

import torch
from torch import Tensor
from tqdm import tqdm

from softrepa_pipeline.backbones import Backbone, Prompt, inject
from softrepa_pipeline.soft_tokens import SoftTokens
from softrepa_pipeline.stage import write_json
from softrepa_pipeline.training.calibration import calibrate
from softrepa_pipeline.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from softrepa_pipeline.training.config import ExecutionConfig, FitConfig
from softrepa_pipeline.training.data import TrainingSet
from softrepa_pipeline.training.device import Room, peak_flop, room_for, used_gib, within_memory
from softrepa_pipeline.training.distributed import Group
from softrepa_pipeline.training.estimate import count, step_flop
from softrepa_pipeline.training.initial import initial_tokens
from softrepa_pipeline.training.interruption import Interruption, interruption
from softrepa_pipeline.training.loading import Loader, StepData, load_step
from softrepa_pipeline.training.methods import METHODS, Rows
from softrepa_pipeline.training.pair_engine import PairResult, Plan, accumulate, choose_plan
from softrepa_pipeline.training.records import Record, append, log_of, read, sums_of
from softrepa_pipeline.training.regularisers import limit_norm, pull_to_base, some_silent
from softrepa_pipeline.training.validation import Validation

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Observer:
    """Where a run reports to: every step's record, and moments at which images are worth drawing (with its step)."""

    on_record: Callable[[Record], None] = lambda record: None
    on_milestone: Callable[[int, SoftTokens], None] = lambda step, tokens: None


def fit(
    backbone: Backbone,
    data: TrainingSet,
    config: FitConfig,
    folder: Path,
    execution: ExecutionConfig = ExecutionConfig(),  # noqa: B008 - frozen
    observer: Observer = Observer(),
    group: Group = Group(),  # noqa: B008 - frozen
) -> SoftTokens:
    """Train soft tokens; goes on from the newest whole checkpoint in `folder`, exactly as if it had never stopped.

    Every record is appended to `folder/metrics.jsonl` and given to the observer, on a resumed run from step 0 on.
    Skipped steps stand in `folder/skipped.jsonl`, the base's errors by timestep in `folder/profile.json`. Ctrl-C and
    SIGTERM end it with a checkpoint after the step that runs. All processes of a group call this alike.

    Raises:
        ValueError: the settings do not fit model or data, or steps were unusable again and again.
        KeyboardInterrupt: it was asked to stop.
    """
    for name in ("batch_size", "held_out_images"):
        if 0 < getattr(config, name) < group.size:
            raise ValueError(f"fit.{name} is {getattr(config, name)}, fewer than the {group.size} processes")
    trainer = Trainer(backbone, data, config, folder, execution, observer, group)
    with inject(backbone.denoiser, trainer.sites, trainer.method.injected), interruption() as stop:
        try:
            trainer.prepare()
            while not trainer.is_done:
                trainer.run(stop)
            return trainer.finish()
        finally:
            if getattr(backbone.denoiser, "gradient_checkpointing", False):
                cast(Any, backbone.denoiser).disable_gradient_checkpointing()


@final
class Trainer:
    """One training: its tokens, where it stands, and what it does each step."""

    def __init__(
        self,
        backbone: Backbone,
        data: TrainingSet,
        config: FitConfig,
        folder: Path,
        execution: ExecutionConfig,
        observer: Observer,
        group: Group,
    ) -> None:
        self.backbone, self.config, self.folder, self.execution = backbone, config, folder, execution
        self.group = group
        self.observer = observer if group.rank == 0 else Observer()
        self.data, self.held_out = data.split(config)
        self.num_steps = config.steps_for(self.data.epoch_length(config))
        self.sites = backbone.sites(config.layers)
        tokens = initial_tokens(backbone, self.sites, config, self.data.latent_shape(config, range(1)))
        self.method = METHODS[config.objective](tokens, config).to(backbone.device)
        self.optimizer = torch.optim.AdamW(
            self.method.trainable, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.part = group.part(config.batch_size)
        self.is_done = self._asked_to_stop = False
        self._saved_at = time.monotonic()

    @cached_property
    def null(self) -> Prompt:
        return self.backbone.encode_prompts([""])

    def prepare(self) -> None:
        """Restore the newest checkpoint, or calibrate and start at step 0."""
        restored = load_checkpoint(self.folder, self.method, self.optimizer)
        # Every process reads the same files, but rank 0 may have pruned or damaged ones be seen by some: it decides.
        step = self.group.broadcast(-1 if restored is None else restored.step)
        if restored is not None and restored.step != step:
            restored = load_checkpoint(self.folder, self.method, self.optimizer, step)
        if restored is None:
            restored = self._start()
        else:
            logger.info("going on from step %d of %d (%s)", step, self.num_steps, self.folder)
        self.progress = restored
        self.is_done = self._is_early()
        plan = choose_plan(self.config, self.part.stop - self.part.start, restored.pairs_at_once)
        logger.info("pair engine: %s%s", plan, ", blocks computed anew for the backward" * restored.recompute)
        if restored.recompute:
            cast(Any, self.backbone.denoiser).enable_gradient_checkpointing()
        self.utilisation = self._utilisation(plan)
        self.validation = Validation(self.backbone, self.held_out, self.method, self.group)
        self.log = log_of(self.folder, restored.step, self.observer.on_record) if self.group.rank == 0 else None

    def _utilisation(self, plan: Plan) -> float | None:
        """Seconds that a step would take at the devices' peak; None where that is not known."""
        peak = peak_flop(self.backbone.device, cast(Any, self.backbone.denoiser).dtype)
        if peak is None:
            return None
        first = self._first(2)
        pair = first.rows_at(torch.arange(1), torch.ones(1), share=False).pairs[:1]
        flop = count(self.backbone, pair)
        if self.data.texts is not None:
            flop = replace(flop, caption=0)
        return step_flop(self.method, plan, flop, self.group.size) / (peak * self.group.size)

    def _first(self, num_images: int) -> StepData:
        return load_step(self.backbone, self.data, self.config, torch.ones(1), 0, slice(0, num_images))

    def _start(self) -> Progress:
        first = self._first(2)
        pairs = first.rows_at(torch.arange(len(first)), torch.ones(1), share=False).pairs
        given = self.execution.max_pairs_in_memory
        room = Room(given) if given else room_for(self.backbone, pairs, self.config.row)
        found, pairs_at_once = within_memory(
            lambda count: calibrate(self.backbone, self.data, self.method, count, self.group), room.pairs_at_once
        )
        if self.group.rank == 0:
            values = {name: value.tolist() for name, value in asdict(found.profile).items()}
            write_json(self.folder / "profile.json", values)
        logger.info("temperatures by timestep: %s", ", ".join(f"{value:.4g}" for value in found.temperatures))
        return Progress(0, found.temperatures, found.density, pairs_at_once, recompute=room.recompute)

    def run(self, stop: Interruption) -> None:
        """Steps until the end, an interruption, or a rollback, after which it is to be called again."""
        loader = Loader(self.backbone, self.data, self.config, self.progress.density, self.part)
        start = self.progress.step
        with tqdm(
            total=self.num_steps, initial=start, desc="training soft tokens", mininterval=1, disable=self.group.rank > 0
        ) as bar:
            for step, loaded in loader.steps(start, self.num_steps):
                if step in {0, self.num_steps // 2}:
                    loader.settle()
                    self.observer.on_milestone(step, self.method.tokens)
                record = self.step(step, loaded, loader.waited, stop)
                if record is None:
                    if self.progress.guard.must_roll_back:
                        self.roll_back()
                        return
                else:
                    bar.set_postfix(loss=f"{record['loss']:.3f}", pairs=f"{record['pairs_per_second']:.0f}/s")
                bar.update()
                must_stop = self._asked_to_stop
                is_measured = self._is_validated(step + 1)
                if is_measured:
                    loader.settle()
                    self.validate(step + 1)
                if is_measured or must_stop or self._is_due(step + 1):
                    self.save()
                if must_stop:
                    raise KeyboardInterrupt
                if self.is_done:
                    return
        self.is_done = True

    def step(self, step: int, loaded: StepData, waited: float, stop: Interruption) -> Record | None:
        """One optimiser step; None where it had to be skipped."""
        started = time.perf_counter()
        results = self.gradients(loaded)
        sums = sums_of(results)
        if self.config.objective == "softrepa":
            sums["temperature"] = loaded.temperature(self.progress.temperatures).sum().item()
        self._asked_to_stop = self._exchange(sums, stop.is_requested) > 0
        norm = float(torch.nn.utils.clip_grad_norm_(self.method.trainable, self.config.max_gradient_norm))
        record = {"step": float(step), **{name: value / self.config.batch_size for name, value in sums.items()}}
        fault = self.progress.guard.fault(record["loss"], norm)
        if fault is not None:
            self._skip(step, fault)
            return None
        rate = self.config.learning_rate_at(step, self.num_steps) * self.progress.guard.learning_rate_scale
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.optimizer.step()
        limit_norm(self.method)
        self.method.after_step(step)
        self.progress = replace(self.progress, step=step + 1, guard=self.progress.guard.after_good(record["loss"]))
        seconds = time.perf_counter() - started + waited
        record |= {"gradient_norm": norm, "learning_rate": rate, "wait_share": waited / seconds}
        record |= {"pairs_per_second": self.config.num_pairs / seconds, "memory_gib": used_gib(self.backbone.device)}
        if self.utilisation is not None:
            record["mfu"] = self.utilisation / seconds
        self._report(record)
        return record

    def gradients(self, loaded: StepData) -> list[PairResult]:
        """The gradient of this process's images on the tokens; memory that does not suffice halves the micro-batch."""
        return self._within_memory(lambda pairs_at_once: self._accumulate(loaded, pairs_at_once))

    def _within_memory(self, work: Callable[[int], T]) -> T:
        result, pairs_at_once = within_memory(work, self.progress.pairs_at_once)
        self.progress = replace(self.progress, pairs_at_once=pairs_at_once)
        return result

    def _accumulate(self, loaded: StepData, pairs_at_once: int) -> list[PairResult]:
        self.optimizer.zero_grad(set_to_none=True)
        plan = choose_plan(self.config, len(loaded), pairs_at_once)
        parts = torch.arange(len(loaded)).split(plan.rows_at_once)
        share = not self.execution.compile
        rows = (loaded.rows_at(images, self.progress.temperatures, share) for images in parts)
        with some_silent(self.method, self.progress.step):
            return [self._accumulate_rows(part, plan) for part in rows]

    def _accumulate_rows(self, rows: Rows, plan: Plan) -> PairResult:
        result = accumulate(self.backbone, self.method, rows, plan, self.config.batch_size)
        if self.config.base_weight:
            work = (self.backbone, self.method, rows, self.null)
            distance = pull_to_base(*work, plan.pairs_at_once, self.config.batch_size)
            result.losses.measures["base_distance"] = distance
        return result

    def _exchange(self, sums: Record, is_asked: bool) -> float:
        """Sum gradients and measures over all processes, in one flat tensor; returns how many ask to stop."""
        gradients = [cast(Tensor, parameter.grad) for parameter in self.method.trainable]
        measured = torch.tensor([*sums.values(), float(is_asked)], device=self.backbone.device)
        flat = self.group.add(torch.cat([*(gradient.flatten() for gradient in gradients), measured]))
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        *values, num_asking = flat[start:].tolist()
        sums.update(zip(sums, values, strict=True))
        return num_asking

    def _skip(self, step: int, fault: str) -> None:
        rows = self.data.candidates(self.config, self.config.positions_of(step)).rows.tolist()
        image_ids = [self.data.image_ids[row] for row in rows]
        logger.warning("step %d skipped: loss or gradient %s; images %s", step, fault, ", ".join(image_ids[:8]))
        if self.group.rank == 0:
            file, skipped = self.folder / "skipped.jsonl", {"step": step, "reason": fault, "image_ids": image_ids}
            if skipped not in read(file):  # it is, where a resumed run meets it again
                append(file, skipped)
        self.progress = replace(self.progress, step=step + 1, guard=self.progress.guard.after_bad())

    def roll_back(self) -> None:
        """Go back to the last checkpoint, at half the learning rate."""
        guard, pairs_at_once = self.progress.guard.rolled_back(), self.progress.pairs_at_once
        restored = load_checkpoint(self.folder, self.method, self.optimizer)
        if restored is None:
            raise ValueError(f"the first steps were not usable; {self.folder / 'skipped.jsonl'} names their images")
        guard = replace(guard, recent=restored.guard.recent)
        self.progress = replace(restored, guard=guard, pairs_at_once=pairs_at_once)
        logger.warning("rolled back to step %d, learning rate × %g", restored.step, guard.learning_rate_scale)
        if self.group.rank == 0:
            log_of(self.folder, restored.step, lambda record: None)

    def _is_validated(self, step: int) -> bool:
        at_end = step == self.num_steps
        return bool(self.config.held_out_images) and (at_end or step % self.config.validation_steps == 0)

    def validate(self, step: int) -> None:
        """Measure the held-out images; the training is done where they have not got better for too long."""
        measures = self._within_memory(lambda count: self.validation.measure(self.progress.temperatures, count))
        self._report({"step": float(step - 1), **measures})
        accuracy, loss = measures["validation_accuracy"], measures["validation_loss"]
        best = self.progress.best.after(accuracy, loss, step)
        self.progress = replace(self.progress, best=best)
        self.is_done = self._is_early()
        logger.info("step %d: held-out retrieval %.3f, best %.3f (step %d)", step, accuracy, best.accuracy, best.step)

    def _is_early(self) -> bool:
        return self.config.patience is not None and self.progress.best.worse_since >= self.config.patience

    def _is_due(self, step: int) -> bool:
        if step == self.num_steps:
            return True
        if self.progress.guard.bad_in_row:  # or a rollback would lead into the bad steps
            return False
        if step % self.execution.checkpoint_steps == 0:
            return True
        return time.monotonic() - self._saved_at > self.execution.checkpoint_minutes * 60

    def save(self) -> None:
        """Write a checkpoint, by one process."""
        self._saved_at = time.monotonic()
        if self.group.rank == 0:
            save_checkpoint(self.folder, self.method, self.optimizer, self.progress)

    def finish(self) -> SoftTokens:
        """The trained tokens: the best ones where training stops by validation, else the last.

        Raises:
            ValueError: not a single step was usable.
        """
        if not self.progress.guard.recent:
            raise ValueError(f"no step was usable; {self.folder / 'skipped.jsonl'} names their images")
        best = self.progress.best.step
        if self.config.patience is not None and not load_checkpoint(self.folder, self.method, self.optimizer, best):
            logger.warning("the best checkpoint, of step %d, cannot be read: the last tokens are taken instead", best)
        self.observer.on_milestone(self.num_steps, self.method.tokens)
        return self.method.tokens

    def _report(self, record: Record) -> None:
        if self.log is not None:
            append(self.log, record)
        self.observer.on_record(record)
