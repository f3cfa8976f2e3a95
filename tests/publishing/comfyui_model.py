"""ComfyUI's side of its hook interface in small, as its sources have it; no ComfyUI is installed or run.

A patcher whose clones carry wrappers; a model whose `apply_model` runs them around a denoiser, with both branches of
guidance in one batch or one after the other; and denoisers with ComfyUI's module names, its order of calls, and blocks
that add to their input in place. Their layers are those of a diffusers model, so what they predict is known.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Patcher:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.wrappers: dict[str, dict[str, list[Callable]]] = {}

    def clone(self) -> Patcher:
        clone = Patcher(self.model)
        clone.wrappers = {
            kind: {key: [*those] for key, those in keyed.items()} for kind, keyed in self.wrappers.items()
        }
        return clone

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.get(kind, {}).pop(key, None)

    @torch.no_grad()
    def predict(self, x: Tensor, sigma: Tensor, conditions: list[dict[str, Tensor]], together: bool) -> list[Tensor]:
        """What the denoiser predicts of x (1, …) under each condition, negative and positive."""
        # ComfyUI numbers the positive branch 0, the negative one 1.
        branches = [(1, conditions[0]), (0, conditions[1])]
        predicted: list[Tensor] = []
        for part in [branches] if together else [[branch] for branch in branches]:
            batch = [condition for _, condition in part]
            joined = {name: torch.cat([condition[name] for condition in batch]) for name in batch[0]}
            order = [branch for branch, _ in part]
            options = {"transformer_options": {"wrappers": self.wrappers, "cond_or_uncond": order}}
            count = len(batch)
            output = self.model.apply_model(x.repeat(count, 1, 1, 1), sigma.repeat(count), **joined, **options)
            predicted += output.chunk(count)
        return predicted


class Executor:
    """Calls the next wrapper, or what is wrapped."""

    def __init__(self, wrapped: Callable, class_obj: Model, wrappers: list[Callable]) -> None:
        self.wrapped, self.class_obj, self.wrappers = wrapped, class_obj, wrappers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.wrapped(*args, **kwargs)
        first, *others = self.wrappers
        return first(Executor(self.wrapped, self.class_obj, others), *args, **kwargs)


class Model(nn.Module):
    def __init__(self, denoiser: nn.Module, sampling: Any) -> None:
        super().__init__()
        self.diffusion_model, self.model_sampling = denoiser, sampling

    def apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        keyed = transformer_options["wrappers"].get("apply_model", {})
        wrappers = [wrapper for those in keyed.values() for wrapper in those]
        executor = Executor(self._apply_model, self, wrappers)
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def _apply_model(
        self, x: Tensor, t: Tensor, _concat: Any, context: Tensor, control: Any, options: Any, **kwargs: Any
    ) -> Tensor:
        timestep = self.model_sampling.timestep(t).float()
        return self.diffusion_model(
            x, timestep, context=context, control=control, transformer_options=options.copy(), **kwargs
        )


class DiscreteSampling:
    """Sigmas of a schedule; the timestep is the nearest one's place."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma.log() - self.sigmas.log()[:, None]).abs().argmin(dim=0)

    def sigma(self, timestep: int) -> Tensor:
        return self.sigmas[timestep : timestep + 1]


class FlowSampling:
    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * 1000

    def sigma(self, timestep: int) -> Tensor:
        return torch.tensor([timestep / 1000])


class TransformerBlock(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        for name in ("norm1", "attn1", "norm2", "attn2", "norm3", "ff"):
            setattr(self, name, getattr(own, name))

    def forward(self, x: Tensor, context: Any = None, transformer_options: Any = None) -> Tensor:
        assert transformer_options is not None
        x += self.attn1(self.norm1(x))
        x += self.attn2(self.norm2(x), context)
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.norm, self.proj_in, self.proj_out = own.norm, own.proj_in, own.proj_out
        self.transformer_blocks = nn.ModuleList(map(TransformerBlock, own.transformer_blocks))
        self.use_linear = own.use_linear_projection

    def forward(self, x: Tensor, context: Tensor, transformer_options: Any) -> Tensor:
        height, width = x.shape[-2:]
        h = self.norm(x)
        h = h if self.use_linear else self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)
        h = self.proj_in(h) if self.use_linear else h.contiguous()
        for index, block in enumerate(self.transformer_blocks):
            transformer_options["block_index"] = index
            h = block(h, context=context, transformer_options=transformer_options)
        h = self.proj_out(h) if self.use_linear else h
        h = h.transpose(1, 2).unflatten(2, (height, width))
        return x + (h if self.use_linear else self.proj_out(h.contiguous()))


class Layers(nn.Sequential):
    """ResBlocks get the time, transformers the text."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, transformer_options: Any) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, SpatialTransformer):
                x = layer(x, context, transformer_options)
            elif hasattr(layer, "time_emb_proj"):
                x = layer(x, emb)
            else:
                x = layer(x)
        return x


def _layers(resnets: Any, attentions: Any) -> list[list[nn.Module]]:
    spatial = [[SpatialTransformer(own)] for own in attentions] or [[] for _ in resnets]
    return [[resnet, *those] for resnet, those in zip(resnets, spatial, strict=True)]


class UNet(nn.Module):
    """`input_blocks`, `middle_block`, `output_blocks`: a level's down-sampler is a block, its up-sampler is in one."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.time_proj, self.time_embedding = own.time_proj, own.time_embedding
        self.label_emb = getattr(own, "add_embedding", None)
        blocks: list[list[nn.Module]] = [[own.conv_in]]
        for level in own.down_blocks:
            blocks += _layers(level.resnets, getattr(level, "attentions", ()))
            blocks += [[sampler] for sampler in level.downsamplers or ()]
        self.input_blocks = nn.ModuleList(Layers(*block) for block in blocks)
        middle = own.mid_block
        self.middle_block = Layers(middle.resnets[0], SpatialTransformer(middle.attentions[0]), middle.resnets[1])
        blocks = []
        for level in own.up_blocks:
            blocks += _layers(level.resnets, getattr(level, "attentions", ()))
            blocks[-1] += level.upsamplers or ()
        self.output_blocks = nn.ModuleList(Layers(*block) for block in blocks)
        self.out = nn.Sequential(own.conv_norm_out, own.conv_act, own.conv_out)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Any = None,
        y: Any = None,
        control: Any = None,
        transformer_options: Any = None,
    ) -> Tensor:
        emb = self.time_embedding(self.time_proj(timesteps))
        if self.label_emb is not None:
            emb = emb + self.label_emb(y)
        h, kept = x, []
        for block in self.input_blocks:
            h = block(h, emb, context, transformer_options)
            kept.append(h)
        h = self.middle_block(h, emb, context, transformer_options)
        for block in self.output_blocks:
            h = block(torch.cat([h, kept.pop()], dim=1), emb, context, transformer_options)
        return self.out(h)


class JointBlock(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.context_block, self.x_block = nn.Module(), nn.Module()  # a diffusers block does not split so
        self.own = own

    def forward(self, context: Tensor, x: Tensor, c: Any = None, use_checkpoint: bool = False) -> tuple[Any, Tensor]:
        return self.own(hidden_states=x, encoder_hidden_states=context, temb=c)


class MMDiT(nn.Module):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own = own
        self.hidden_size = own.inner_dim
        self.joint_blocks = nn.ModuleList(map(JointBlock, own.transformer_blocks))

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Any = None,
        y: Any = None,
        control: Any = None,
        transformer_options: Any = None,
    ) -> Tensor:
        height, width = (side // self.own.config.patch_size for side in x.shape[-2:])
        c = self.own.time_text_embed(timesteps, y)
        x, context = self.own.pos_embed(x).contiguous(), self.own.context_embedder(context)
        for block in self.joint_blocks:
            context, x = block(context, x, c=c, use_checkpoint=False)
        x = self.own.proj_out(self.own.norm_out(x, c))
        x = x.unflatten(1, (height, width)).unflatten(-1, (self.own.config.patch_size,) * 2 + (-1,))
        return torch.einsum("nhwpqc->nchpwq", x).flatten(4, 5).flatten(2, 3)


def folder_paths(models: Path) -> ModuleType:
    """ComfyUI's module of this name, as far as nodes need it."""
    found = ModuleType("folder_paths")
    folders: dict[str, list[str]] = {}

    def get_full_path_or_raise(kind: str, name: str) -> str:
        paths = [Path(folder) / name for folder in folders[kind] if (Path(folder) / name).is_file()]
        if not paths:
            raise FileNotFoundError(f"Model in folder '{kind}' with filename '{name}' not found.")
        return str(paths[0])

    own = SimpleNamespace(
        models_dir=str(models),
        add_model_folder_path=lambda kind, folder: folders.setdefault(kind, []).append(folder),
        get_filename_list=lambda kind: sorted(file.name for folder in folders[kind] for file in Path(folder).glob("*")),
        get_full_path_or_raise=get_full_path_or_raise,
    )
    found.__dict__.update(vars(own))
    return found


def load_node(file: Path, models: Path) -> ModuleType:
    """Load a node's module as ComfyUI does, with ComfyUI's modules in place."""
    import importlib.util

    sys.modules["folder_paths"] = folder_paths(models)
    spec = importlib.util.spec_from_file_location("softrepa_node", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    del sys.modules["folder_paths"]
    return module
