"""Soft text tokens indexed by layer and timestep: the only parameters that SoftREPA trains (arXiv 2503.08250, §3)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from softrepa_pipeline.config import build

if TYPE_CHECKING:
    from jaxtyping import Float, Int

FORMAT_VERSION = "2"
_NUM_TIMESTEPS = 1000
_INIT_STD = 0.02


@dataclass(frozen=True)
class SoftTokensConfig:
    """Shape of a bank of soft tokens, and the layers they are for.

    `layers` are names as the base model has them: `0`, `1` … for SD3, `down.0`, `mid.0`, `up.0` … for UNets. With
    `shared` all layers have the same tokens, and a stage's name (`down`) may stand for its layers; `num_buckets` 0
    means that the tokens do not depend on the timestep.
    """

    layers: tuple[str, ...]
    num_tokens: int
    width: int
    num_buckets: int
    shared: bool = False

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers: soft tokens need at least one layer")
        for name in ("num_tokens", "width", "num_buckets"):
            value, least = getattr(self, name), 0 if name == "num_buckets" else 1
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")

    @property
    def num_layers(self) -> int:
        """Layers with tokens of their own."""
        return 1 if self.shared else len(self.layers)


def bucket_of(timestep: Float[Tensor, " batch"], num_buckets: int) -> Tensor:
    """bin(t) = floor(t · buckets / 1000) of timesteps in [0, 1000], the last bin closed; int64 (batch,)."""
    # Departure: the clamp is per sample; the public code moves the whole batch when one t equals 1000.
    return (timestep * num_buckets / _NUM_TIMESTEPS).long().clamp(0, num_buckets - 1)


class SoftTokens(nn.Module):
    """s[k, t] = base[k] + time[bin(t), k], with bin(t) = floor(t · buckets / 1000), the last bin closed.

    `base` has shape (layers, tokens, width) and `time` (buckets, layers · width), with one layer where it is shared;
    the time offset is the same for the tokens of a layer. Both start as N(0, 0.02). Tokens that `silent` (layers,
    tokens) names are zero.
    """

    silent: Tensor | None = None

    def __init__(self, config: SoftTokensConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        shape = (config.num_layers, config.num_tokens, config.width)
        self.base = nn.Parameter(torch.randn(shape, generator=generator) * _INIT_STD)
        if config.num_buckets:
            time = torch.randn(config.num_buckets, config.num_layers * config.width, generator=generator)
            self.time: nn.Parameter | None = nn.Parameter(time * _INIT_STD)
        else:
            self.register_parameter("time", None)

    def forward(self, timestep: Float[Tensor, " batch"]) -> Float[Tensor, "layers batch tokens width"]:
        """The tokens of every layer for each sample's timestep in [0, 1000]."""
        layers, batch = self.config.num_layers, timestep.shape[0]
        tokens = self.base[:, None]  # (layers, 1, tokens, width)
        if self.time is None:
            tokens = tokens.expand(-1, batch, -1, -1)
        else:
            offset = self.time[bucket_of(timestep, self.config.num_buckets)].unflatten(1, (layers, self.config.width))
            tokens = tokens + offset.transpose(0, 1)[:, :, None]
        return tokens if self.silent is None else tokens.masked_fill(self.silent[:, None, :, None], 0.0)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class TokenBanks(nn.Module):
    """Several banks of one shape; each sample of a call names its own by index, else all have the first."""

    def __init__(self, banks: list[SoftTokens]) -> None:
        super().__init__()
        self.config = banks[0].config
        self.banks = nn.ModuleList(banks)

    @property
    def first(self) -> SoftTokens:
        return cast(SoftTokens, self.banks[0])

    def forward(
        self, timestep: Float[Tensor, " batch"], bank: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "layers batch tokens width"]:
        if bank is None:
            return self.first(timestep)
        tokens = torch.stack([one(timestep) for one in self.banks])  # (banks, layers, batch, tokens, width)
        return tokens[bank, :, torch.arange(len(bank), device=bank.device)].transpose(0, 1)


Tokens = SoftTokens | TokenBanks


def save_soft_tokens(tokens: SoftTokens, path: Path, metadata: dict[str, str]) -> None:
    """Write one safetensors file (docs/format.md): tensors, their configuration, and metadata by name.

    Raises:
        ValueError: a value is not finite, so the file would spoil every image drawn with it.
    """
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in tokens.state_dict().items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"soft tokens hold a non-finite value in {name!r}; {path} was not written")
    header = {**metadata, "format_version": FORMAT_VERSION, "config": json.dumps(asdict(tokens.config))}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata=header)
    partial.replace(path)


def load_soft_tokens(path: Path, family: str | None = None) -> tuple[SoftTokens, dict[str, str]]:
    """Read a soft-token file of this or an earlier version; returns the tokens and their metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, of a later version, or of another family than asked for.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no soft tokens at {path}; train them with `kedro run --pipeline train`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); train the tokens again") from error
    metadata = _to_current_version(metadata, path)
    if "family" not in metadata:
        raise ValueError(f"{path} does not say which family its tokens are for")
    if family is not None and metadata["family"] != family:
        raise ValueError(f"{path} holds soft tokens for family {metadata['family']}, not for {family}")
    try:
        tokens = SoftTokens(build(SoftTokensConfig, json.loads(metadata["config"]), "config"))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} has no valid configuration ({error}); train the tokens again") from error
    expected = {name: tuple(value.shape) for name, value in tokens.state_dict().items()}
    found_shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found_shapes:
        raise ValueError(f"{path} holds tensors {found_shapes}, but its configuration asks for {expected}")
    if not all(value.isfinite().all() for value in tensors.values()):
        raise ValueError(f"{path} holds a value that is not finite; train the tokens again")
    tokens.load_state_dict(tensors)
    return tokens, metadata


def _to_current_version(metadata: dict[str, str], path: Path) -> dict[str, str]:
    version = metadata.get("format_version", "none")
    if version == "1":
        # Version 1 counted the layers in its configuration and named them beside it.
        old = json.loads(metadata["config"])
        layers = [str(layer) for layer in json.loads(metadata["layers"])]
        config = {"layers": layers, **{name: old[name] for name in ("num_tokens", "width", "num_buckets")}}
        others = {name: value for name, value in metadata.items() if name != "layers"}
        return {**others, "format_version": FORMAT_VERSION, "config": json.dumps(config)}
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has soft-token format version {version}; this program reads 1 to {FORMAT_VERSION}")
    return metadata
