"""The `softrepa` command: mine, train, evaluate, draw, edit, inspect, convert, publish, plan, tidy caches, serve."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softrepa_pipeline.command_options import (
    FAMILIES,
    SAMPLING,
    base_options,
    env_option,
    model_config,
    read_parameters,
)
from softrepa_pipeline.publishing.commands import export, push
from softrepa_pipeline.quiet import keep_quiet
from softrepa_pipeline.serving.command import serve
from softrepa_pipeline.stages.commands import evaluate, mine, train

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

    from softrepa_pipeline.training import FitConfig
    from softrepa_pipeline.training.estimate import Estimate


class _Commands(click.Group):
    """One line for what the user can put right, instead of a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error


_params = click.option("--params", default="", help="name=value,name=value, as for kedro run.")


@click.group(cls=_Commands)
def main() -> None:
    """Soft tokens for frozen text-to-image models."""
    keep_quiet()


for command in (mine, train, evaluate, serve, push, export):
    main.add_command(command)


@main.command()
@base_options
@click.option("--tokens", type=click.Path(path_type=Path), help="Soft-token file; without it the base draws.")
@click.option("--prompt", "prompts", multiple=True, help="May be given several times.")
@click.option("--prompts-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="One prompt a line.")
@click.option("--negative-prompt")
@click.option("--strength", default=1.0, show_default=True, help="0 is the base, 1 the tokens as trained.")
@click.option("--conditional-only", is_flag=True, help="Tokens act on guidance's conditional branch alone.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Images for each prompt.")
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", type=int, help="The family's published number unless given.")
@click.option("--guidance", type=float, help="The family's published scale unless given.")
@click.option("--batch-size", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--output", default=Path("samples"), show_default=True, type=click.Path(path_type=Path))
def sample(
    family: str,
    base: str | None,
    tokens: Path | None,
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    negative_prompt: str | None,
    strength: float,
    conditional_only: bool,
    seeds: int,
    seed: int,
    steps: int | None,
    guidance: float | None,
    batch_size: int,
    device: str,
    dtype: str,
    max_sequence_length: int | None,
    output: Path,
) -> None:
    """Draw prompts with the stock pipeline: an image for each prompt and seed, and a grid with one row a prompt."""
    from softrepa_pipeline.backbones import load_backbone
    from softrepa_pipeline.inference import SamplingConfig, add_tokens, draw
    from softrepa_pipeline.soft_tokens import load_soft_tokens

    texts = [*prompts, *(prompts_file.read_text().splitlines() if prompts_file else [])]
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise ValueError("nothing to draw: give --prompt or --prompts-file")
    if len(set(texts)) < len(texts):
        raise ValueError("a prompt is given twice; use --seeds for more images of it")
    model = model_config(family, base, device, dtype, max_sequence_length)
    loaded = load_soft_tokens(tokens, family)[0] if tokens else None
    backbone = load_backbone(model)
    if loaded:
        add_tokens(backbone, loaded, strength)
    default_steps, default_guidance = SAMPLING[family]
    settings = SamplingConfig(steps or default_steps, batch_size, seeds, seed)
    scale = default_guidance if guidance is None else guidance
    one_branch = conditional_only and loaded is not None and strength > 0
    images = draw(backbone, texts, settings, scale, negative_prompt=negative_prompt, conditional_only=one_branch)
    _write_images(images, texts, output)


def _write_images(images: Any, prompts: list[str], folder: Path) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row, prompt in enumerate(prompts):
        for index, image in enumerate(images[row]):
            name = f"{row:04d}-{index:02d}.png"
            Image.fromarray(image).save(folder / name)
            lines.append(json.dumps({"file_name": name, "prompt": prompt, "seed_index": index}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in images], axis=0)
    Image.fromarray(grid).save(folder / "grid.png")
    click.echo(f"{len(lines)} images and grid.png in {folder}")


@main.command()
@base_options
@click.option("--tokens", type=click.Path(path_type=Path), help="Soft-token file; without it the base edits.")
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--source", required=True, help="What the image shows.")
@click.option("--target", required=True, help="What it shall show.")
@click.option("--strength", default=1.0, show_default=True, help="0 is the base, 1 the tokens as trained.")
@click.option("--method", help="flowedit (SD3), ddim or pnp (UNets).  [default: the family's preset]")
@click.option("--steps", "num_steps", type=int, help="Like the next three, the preset's unless given.")
@click.option("--start-step", type=int, help="Steps left out at the noisy end: the more, the closer to the image.")
@click.option("--source-guidance", type=float)
@click.option("--target-guidance", type=float)
@click.option("--seed", default=0, show_default=True)
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
def edit(
    family: str,
    base: str | None,
    tokens: Path | None,
    image: Path,
    source: str,
    target: str,
    strength: float,
    device: str,
    dtype: str,
    max_sequence_length: int | None,
    output: Path,
    **settings: Any,
) -> None:
    """Change an image from what one caption says to what another one says; it is cropped to the model's square."""
    import numpy as np
    from PIL import ImageOps

    from softrepa_pipeline.backbones import load_backbone
    from softrepa_pipeline.evaluation import editing
    from softrepa_pipeline.evaluation.pixels import image_format, write_image
    from softrepa_pipeline.inference import add_tokens
    from softrepa_pipeline.soft_tokens import load_soft_tokens

    changes = {name: value for name, value in settings.items() if value is not None}
    config = editing.configured("published" if base else "embedded", family, tokens is not None, changes)
    model = model_config(family, base, device, dtype, max_sequence_length)
    loaded = load_soft_tokens(tokens, family)[0] if tokens else None
    opened = _read_image(image)
    image_format(output)
    backbone = load_backbone(model)
    if loaded:
        add_tokens(backbone, loaded, strength)
    side = editing.native_side(backbone)
    pixels = np.array(ImageOps.fit(opened, (side, side)))
    edited = editing.edit(backbone, pixels[None], [editing.Captions(source, target)], config)[0]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_image(output, edited)
    click.echo(f"{output}: {config.method}, steps {config.start_step} to {config.num_steps}, seed {config.seed}")


def _read_image(file: Path) -> PilImage:
    from softrepa_pipeline.ingestion.validation import BadSample, load_rgb

    try:
        return load_rgb(file.read_bytes())
    except BadSample as error:
        raise ValueError(f"--image {file} cannot be used: {error.reason}") from error


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def inspect(file: Path) -> None:
    """Say what a soft-token file holds."""
    from softrepa_pipeline.soft_tokens import load_soft_tokens

    tokens, metadata = load_soft_tokens(file)
    described = {name: value for name, value in metadata.items() if name not in ("config", "settings")}
    described |= {name: str(value) for name, value in asdict(tokens.config).items()}
    described["parameters"] = f"{tokens.num_parameters:,}"
    described["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    for name, value in described.items():
        click.echo(f"{name:<16}{value}")
    click.echo(f"{'layer':<16}norm of a token (mean)")
    names = tokens.config.layers if not tokens.config.shared else ("shared",)
    for name, norm in zip(names, tokens.base.detach().norm(dim=-1).mean(dim=1).tolist(), strict=True):
        click.echo(f"{name:<16}{norm:.3f}")


@main.command()
@click.option("--family", type=click.Choice(FAMILIES), required=True)
@click.option("--objective", type=click.Choice(("softrepa", "agsm")), default="softrepa", show_default=True)
@click.option("--base-model", default="", help="What the tokens were trained on, for the file's metadata.")
@click.option("--licence", default="unknown", show_default=True, help="Of the tokens, for the file's metadata.")
@click.option("--output", required=True, type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def convert(family: str, objective: str, base_model: str, licence: str, output: Path, folder: Path) -> None:
    """Make a soft-token file of published `.pth` tables; nothing in them is run."""
    from softrepa_pipeline.convert import read_published
    from softrepa_pipeline.soft_tokens import save_soft_tokens

    tokens = read_published(family, folder, objective)
    metadata = {"family": family, "objective": objective, "base_model": base_model, "licence": licence}
    save_soft_tokens(tokens, output, metadata)
    click.echo(f"{output}: {tokens.num_parameters:,} numbers for family {family}, layers {tokens.config.layers}")


@main.command()
def presets() -> None:
    """List the settings of every family and objective, with the results that they should reproduce."""
    from softrepa_pipeline.training import PRESETS

    for (preset, family, objective), entry in PRESETS.items():
        click.echo(f"{preset} {family} {objective}: {entry.reproduces}")
        click.echo("    " + ", ".join(f"{name} {value}" for name, value in asdict(entry.settings).items()))


@main.command()
@env_option
@_params
@click.option("--images", type=click.IntRange(min=1), help="Size of the data set; what ingest counted unless given.")
def plan(env: str | None, params: str, images: int | None) -> None:
    """Say what a training with these settings will take: arithmetic, memory, disk, and time."""
    parameters = read_parameters(env, params)
    from softrepa_pipeline.backbones import ModelConfig, open_model
    from softrepa_pipeline.config import build
    from softrepa_pipeline.training import ExecutionConfig, SamplesConfig, configured
    from softrepa_pipeline.training.distributed import share_cores
    from softrepa_pipeline.training.estimate import estimate

    model = build(ModelConfig, parameters["model"], "model")
    config = configured(model.family, parameters["fit"])
    execution = build(ExecutionConfig, parameters["execution"], "execution")
    build(SamplesConfig, parameters["sampling"], "sampling")  # training would refuse wrong ones
    num_images = images or _num_images(Path(parameters["folders"]["pairs"]), parameters["source"]["dataset"])
    if execution.num_processes > 1 and model.device == "cpu":
        share_cores(execution.num_processes)  # as each of them will have them
    negatives = Path(parameters["folders"]["negatives"]) / "negatives.parquet"
    num_captions = 0 if images else _num_captions(negatives, config)
    found = estimate(open_model(model), config, execution, num_images, num_captions)
    click.echo(
        f"{config.objective}, preset {parameters['fit']['preset']}, on {model.base} ({model.dtype}, {model.device})"
    )
    click.echo(f"{num_images:,} images; {config.batch_size} a step × {config.num_candidates} captions")
    for name, value in _rows(found):
        click.echo(f"{name:<24}{value}")


@main.group()
def cache() -> None:
    """What latents, text states and CLIP embeddings take on disk; they are kept by content, for all data sets."""


@cache.command("list")
@env_option
@_params
def list_caches(env: str | None, params: str) -> None:
    """List them, the last used first: tensors, shards, size, last use."""
    from softrepa_pipeline.caches import usage

    found = usage(_cache_folders(env, params))
    for one in found:
        last_used = datetime.fromtimestamp(one.last_used).strftime("%Y-%m-%d %H:%M")
        counts = f"{one.num_tensors:>11,} tensors {one.num_shards:>7,} shards {_disk(one.num_bytes):>8}"
        click.echo(f"{counts}  {last_used}  {one.store.folder}")
    click.echo(f"{_disk(sum(one.num_bytes for one in found))} in all")


@cache.command("verify")
@env_option
@_params
def verify_caches(env: str | None, params: str) -> None:
    """Compare every shard with its checksum; a damaged one is set aside, and what it held made anew when needed."""
    from softrepa_pipeline.caches import stores_under

    for store in stores_under(_cache_folders(env, params)):
        damaged = store.verify()
        click.echo(f"{'whole' if not damaged else f'{len(damaged)} damaged':<12}{store.folder}")
        for file in damaged:
            click.echo(f"            {file.name} set aside")


@cache.command("prune")
@env_option
@_params
@click.option("--older-than", type=click.FloatRange(min=0), help="Remove what was not used for so many days.")
@click.option(
    "--max-gb", type=click.FloatRange(min=0), help="Remove what was not used for longest, until these are left."
)
def prune_caches(env: str | None, params: str, older_than: float | None, max_gb: float | None) -> None:
    """Remove shards that were not used for long, damaged ones, and what killed writers left behind."""
    from softrepa_pipeline.caches import prune

    unused_since = 0.0 if older_than is None else time.time() - older_than * 86400
    max_bytes = math.inf if max_gb is None else max_gb * 1e9
    freed = prune(_cache_folders(env, params), max_bytes, unused_since)
    click.echo(f"{_disk(freed)} freed")


def _cache_folders(environment: str | None, changes: str) -> list[Path]:
    from softrepa_pipeline.caches import cache_folders

    return cache_folders(read_parameters(environment, changes)["folders"])


def _num_images(pairs: Path, dataset: str) -> int:
    manifest = pairs / "pairs.json"
    if not manifest.is_file():
        raise ValueError(f"data set {dataset} has not been ingested, so that its size is not known: give --images")
    return json.loads(manifest.read_text())["num_images"]


def _num_captions(negatives: Path, config: FitConfig) -> int:
    """Captions that a training can score; 0 before they are mined."""
    if not negatives.is_file():
        return 0
    import torch

    from softrepa_pipeline.training import TrainingSet

    data = TrainingSet.read(lambda image_ids: torch.empty(len(image_ids)), negatives)
    return len(data.drawn_captions(config))


def _rows(found: Estimate) -> list[tuple[str, str]]:
    """The table's lines: name and value."""
    flop, pairs = found.flop, f"{found.plan.pairs_at_once} pairs × {_memory(found.pair_bytes)}"
    rows = [
        ("steps", f"{found.num_steps:,}"),
        ("micro-batch", str(found.plan)),
        ("arithmetic a pair", f"{_flop(flop.both)} (forward {_flop(flop.forward)})"),
        ("… a caption", _flop(flop.caption)),
        ("… a step", _flop(found.step_flop)),
        ("… in all", _flop(found.total_flop)),
        ("memory: weights", _memory(found.weight_bytes)),
        ("… tokens, optimiser", _memory(found.token_bytes)),
        ("… activations", f"{_memory(found.activation_bytes)} ({pairs})"),
    ]
    if found.peak_bytes is not None:
        rows.append(("… highest", f"{_memory(found.peak_bytes)} beyond the weights (measured)"))
    rows += [("disk: latents", _disk(found.latent_bytes)), ("… checkpoints", _disk(found.checkpoint_bytes))]
    if found.caption_bytes:
        size = f"{_disk(found.caption_bytes)} a caption"
        in_all = f"{_disk(found.caption_bytes * found.num_captions)} ({found.num_captions:,} × {size})"
        rows.append(("… text states", in_all if found.num_captions else f"{size}; how many is known once mined"))
    if found.step_seconds is None or found.total_seconds is None:
        return [*rows, ("time", "measured only where the model's weights and device are at hand")]
    length = timedelta(seconds=round(found.total_seconds))
    return [*rows, ("time a step", f"{found.step_seconds:.3f} s (measured)"), ("… in all", f"{length} h:min:s")]


def _flop(count: float) -> str:
    return _scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def _memory(num_bytes: float) -> str:
    return _scaled(num_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _disk(num_bytes: float) -> str:
    return _scaled(num_bytes, 1000, ("B", "kB", "MB", "GB", "TB"))


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    """Three digits and the unit, each `base` times the one before it, that leaves fewer than four before the point."""
    power = 0
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g} {units[power]}"


if __name__ == "__main__":
    main()
