"""What soft tokens cost: time and memory of their training, and of drawing with them against the base alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from softrepa_pipeline.backbones import Backbone, Injection, ModelConfig, load_backbone
from softrepa_pipeline.inference import SamplingConfig, add_tokens, draw_batch
from softrepa_pipeline.runners import in_fresh_process
from softrepa_pipeline.soft_tokens import load_soft_tokens

_PROMPT = "a photo"  # all prompts are padded to one length
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

_HEADER = "batch  strength  s / image  images/s  times the base's [50 %]  peak MiB"

# Gets ready for a round, untimed, and returns the work to time.
Prepare = Callable[[int], Callable[[], object]]


@dataclass(frozen=True)
class OverheadConfig:
    """How drawing is timed: every batch size, by the base and with tokens of every strength, in turns."""

    sampling: SamplingConfig
    guidance: float
    batch_sizes: tuple[int, ...] = (1, 8)
    strengths: tuple[float, ...] = (1.0,)
    rounds: int = 9

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"overhead.rounds must be at least 1, not {self.rounds}")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"overhead.batch_sizes must be numbers from 1 on, not {list(self.batch_sizes)}")
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"overhead.strengths must be above 0, which is the base, not {list(self.strengths)}")


@dataclass(frozen=True)
class Drawing:
    """Drawing batches of one size: `seconds` a batch (rounds,), and bytes taken at the highest, None where unknown."""

    batch_size: int
    strength: float
    seconds: np.ndarray
    peak_bytes: int | None

    def against(self, base: Drawing) -> dict[str, Any]:
        """Medians over rounds; `ratio` is of the seconds to the base's, round by round, with its quartiles."""
        low, middle, high = np.quantile(self.seconds / base.seconds, [0.25, 0.5, 0.75]).tolist()
        median = float(np.median(self.seconds))
        return {
            "batch_size": self.batch_size,
            "strength": self.strength,
            "seconds_per_image": median / self.batch_size,
            "images_per_second": self.batch_size / median,
            "ratio": {"median": middle, "low": low, "high": high},
            "peak_mib": None if self.peak_bytes is None else self.peak_bytes / 2**20,
        }


def in_turns(works: Sequence[Prepare], rounds: int, label: str = "timing") -> np.ndarray:
    """Seconds (works, rounds) of works that run one after the other in each round, after a round to warm up.

    Who begins changes, so that none always runs on another's warm caches. Work on a GPU must wait for its result.
    """
    seconds = np.empty((len(works), rounds))
    for number in tqdm(range(-1, rounds), desc=label, leave=False):
        for turn in range(len(works)):
            which = (number + turn) % len(works)
            work = works[which](max(0, number))
            started = time.perf_counter()
            work()
            seconds[which, number] = time.perf_counter() - started  # the warm-up's, at -1, are overwritten
    return seconds


def measure_drawing(base: ModelConfig, tokens: Path, config: OverheadConfig) -> list[dict[str, Any]]:
    """The base, as strength 0, and a file's tokens of each strength, for each batch size; see `Drawing.against`.

    Memory on a GPU is what torch allocated at the highest; on a CPU the resident memory of a process of its own that
    draws one batch, the loaded model included, where the system counts it (Linux).

    Raises:
        FileNotFoundError: the base or the tokens are not there.
        ValueError: the tokens are damaged or do not fit the base.
    """
    backbone = load_backbone(base)
    measured = []
    with add_tokens(backbone, load_soft_tokens(tokens, base.family)[0]) as injected:
        for batch_size in config.batch_sizes:
            sampling = replace(config.sampling, batch_size=batch_size)
            drawings = _drawings(base, tokens, backbone, injected, replace(config, sampling=sampling))
            measured += [drawing.against(drawings[0]) for drawing in drawings]
    return measured


def _drawings(
    base: ModelConfig, tokens: Path, backbone: Backbone, injected: Injection, config: OverheadConfig
) -> list[Drawing]:
    """Batches of one size; the base first."""

    def prepare(strength: float, _round: int) -> Callable[[], object]:
        injected.strength = strength
        return partial(_draw, backbone, config)

    strengths, size = (0.0, *config.strengths), config.sampling.batch_size
    works = [partial(prepare, strength) for strength in strengths]
    seconds = in_turns(works, config.rounds, f"batches of {size}")
    if backbone.device.type == "cuda":
        peaks: list[int | None] = [_peak_on_gpu(backbone.device, work(0)) for work in works]
    else:
        peaks = [in_fresh_process(partial(_peak_resident, base, tokens, config), strength) for strength in strengths]
    return [Drawing(size, *measured) for measured in zip(strengths, seconds, peaks, strict=True)]


def _draw(backbone: Backbone, config: OverheadConfig) -> None:
    work = [(_PROMPT, index) for index in range(config.sampling.batch_size)]
    draw_batch(backbone, work, config.sampling, config.guidance)


def _peak_on_gpu(device: torch.device, work: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device)


def _peak_resident(base: ModelConfig, tokens: Path, config: OverheadConfig, strength: float) -> int | None:
    """Bytes that this process, which must be a fresh one, has in memory at the highest while it draws a batch."""
    backbone = load_backbone(base)
    add_tokens(backbone, load_soft_tokens(tokens, base.family)[0], strength)
    if not _CLEAR.exists():
        return None
    _CLEAR.write_text("5")  # the peak is counted from here
    _draw(backbone, config)
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 2**10


def training_cost(
    records: Sequence[Mapping[str, float]], num_pairs: int, num_gpus: int, seconds: float, cpu_seconds: float | None
) -> dict[str, Any]:
    """What a training took, by its log (a record a step, of `num_pairs` pairs) and the seconds of its last launch.

    `step_seconds` are of the steps alone, of all launches: without loading, validation and sample images. `peak_gib`
    is the highest of what the steps' records say of a process: on a GPU its peak, on a CPU resident memory.
    `cpu_hours` are None where the processors' seconds are not known.
    """
    steps = [record for record in records if "pairs_per_second" in record]
    step_seconds = sum(num_pairs / record["pairs_per_second"] for record in steps)
    return {
        "num_steps": len(steps),
        "seconds": seconds,
        "step_seconds": step_seconds,
        "steps_per_second": len(steps) / step_seconds,
        "cpu_hours": None if cpu_seconds is None else cpu_seconds / 3600,
        "gpu_hours": seconds * num_gpus / 3600,
        "peak_gib": max(record["memory_gib"] for record in steps),
    }


def format_overhead(summary: Mapping[str, Any]) -> str:
    """A line of the training and a table of the drawing, for the log."""
    lines = [_training_line(summary["training"]), "", _HEADER]
    for row in summary["drawing"]:
        ratio = row["ratio"]
        against = "" if not row["strength"] else f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        name = f"{row['strength']:g}" if row["strength"] else "base"
        lines.append(
            f"{row['batch_size']:>5}  {name:>8}  {row['seconds_per_image']:>9.4f}  {row['images_per_second']:>8.2f}"
            f"  {against:>22}  {peak:>8}"
        )
    return "\n".join(lines)


def _training_line(training: Mapping[str, Any]) -> str:
    if "not_measured" in training:
        return f"training: not measured: {training['not_measured']}"
    hours = [
        f"{training[f'{kind}_hours']:.3f} {kind.upper()} hours" for kind in ("cpu", "gpu") if training[f"{kind}_hours"]
    ]
    took = f"{training['num_steps']} steps in {training['seconds']:.0f} s, {training['steps_per_second']:.2f} a second"
    return ", ".join([f"training: {took}", *hours, f"{training['peak_gib']:.2f} GiB"])
