"""A node of ComfyUI: soft tokens in an SD1.5, SDXL or SD3 model. Needs torch and safetensors only.

As `custom_nodes/softrepa/__init__.py` it finds token files in `tokens/` beside it and in ComfyUI's `models/softrepa/`.
"""

import json
from pathlib import Path

import folder_paths
import torch
from safetensors import safe_open

_FOLDER = "softrepa"
_WRAPPER = ("apply_model", "softrepa")
_LAST_VERSION = 2

for _place in (Path(folder_paths.models_dir) / _FOLDER, Path(__file__).with_name("tokens")):
    folder_paths.add_model_folder_path(_FOLDER, str(_place))


class ApplySoftTokens:
    """Model in, model with soft tokens out. One set at a time: a second node takes the place of the first.

    `strength` 0 is the base, bit-equal, 1 the tokens as trained; in between and beyond, a chosen block's output is
    base + strength · (with tokens − base), and it runs twice. With `conditional_only` the negative prompt's branch of
    guidance is the base's own; where both branches are one batch, chosen blocks run twice as well.
    """

    CATEGORY = "model_patches"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"
    DESCRIPTION = "Soft text tokens that align a frozen model with its captions (SoftREPA)."

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 (ComfyUI's name)
        strength = {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05}
        files = folder_paths.get_filename_list(_FOLDER)
        return {
            "required": {"model": ("MODEL",), "tokens": (files,), "strength": ("FLOAT", strength)},
            "optional": {"conditional_only": ("BOOLEAN", {"default": False})},
        }

    def apply(self, model, tokens, strength, conditional_only=False):
        """Raises ValueError where the tokens do not fit the model."""
        patched = model.clone()
        patched.remove_wrappers_with_key(*_WRAPPER)
        if strength:
            loaded = SoftTokens(folder_paths.get_full_path_or_raise(_FOLDER, tokens))
            loaded.choose(model.get_model_object("diffusion_model"))
            patched.add_wrapper_with_key(*_WRAPPER, _wrapper(loaded, strength, conditional_only))
        return (patched,)


NODE_CLASS_MAPPINGS = {"SoftRepaApplySoftTokens": ApplySoftTokens}
NODE_DISPLAY_NAME_MAPPINGS = {"SoftRepaApplySoftTokens": "Apply Soft Tokens (SoftREPA)"}


class SoftTokens:
    """s[k, t] = base[k] + time[floor(t · buckets / 1000), k]: tokens of layer k at timestep t in [0, 1000]."""

    def __init__(self, path):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if "config" not in metadata or not int(metadata.get("format_version", 1)) <= _LAST_VERSION:
            raise ValueError(f"{path} is no file of soft tokens that this node can read (version {_LAST_VERSION})")
        config = json.loads(metadata["config"])
        # Version 1 had the layers as metadata of their own.
        self.layers = [str(layer) for layer in config.get("layers") or json.loads(metadata["layers"])]
        self.num_tokens, self.width, self.is_shared = config["num_tokens"], config["width"], config.get("shared", False)
        self.base, self.time = tensors["base"], tensors.get("time")
        rows, buckets = 1 if self.is_shared else len(self.layers), config["num_buckets"]
        found = [tuple(tensor.shape) for tensor in tensors.values()]
        time = [(buckets, rows * self.width)] if buckets else []
        if sorted(found) != sorted([(rows, self.num_tokens, self.width), *time]):
            raise ValueError(f"{path} is damaged: its tensors are {found}, which is not what it says of them")

    def at(self, timestep):
        """Tokens (layers, batch, tokens, width) for timesteps (batch,)."""
        if self.time is None:
            return self.base[:, None].expand(-1, len(timestep), -1, -1)
        bucket = (timestep.float().cpu() * len(self.time) / 1000).long().clamp(0, len(self.time) - 1)
        offset = self.time[bucket].unflatten(1, (len(self.base), -1)).transpose(0, 1)
        return self.base[:, None] + offset[:, :, None]

    def choose(self, denoiser):
        """The blocks that receive tokens, each with its row of `at`."""
        named = text_blocks(denoiser)
        chosen = [[name for name in named if layer in (name, name.rpartition(".")[0])] for layer in self.layers]
        names = [name for layer in chosen for name in layer]
        block = next(iter(named.values()))
        width = denoiser.hidden_size if _is_joint(block) else block.attn2.to_k.in_features
        if width != self.width or not all(chosen) or not (self.is_shared or len(names) == len(self.base)):
            raise ValueError(
                f"these soft tokens are {self.width} wide, for layers {self.layers}; this {type(denoiser).__name__} "
                f"has text {width} wide and layers {list(named)}"
            )
        return [(0 if self.is_shared else row, named[name]) for row, name in enumerate(names)]


def text_blocks(denoiser):
    """Blocks that read the text, as token files name them: `0` … of an SD3; `down.0`, `mid.0`, `up.0` … of a UNet."""
    if hasattr(denoiser, "joint_blocks"):
        return {str(index): block for index, block in enumerate(denoiser.joint_blocks)}
    if not hasattr(denoiser, "input_blocks"):
        raise ValueError(f"soft tokens are for SD1.5, SDXL and SD3, not for a {type(denoiser).__name__}")
    stages = {"down": denoiser.input_blocks, "mid": denoiser.middle_block, "up": denoiser.output_blocks}
    return {
        f"{stage}.{index}": block
        for stage, module in stages.items()
        for index, block in enumerate(_transformer_blocks(module))
    }


def _transformer_blocks(stage):
    spatial = [module for module in stage.modules() if hasattr(module, "transformer_blocks")]
    return [block for module in spatial for block in module.transformer_blocks]


def _is_joint(block):
    """Of an SD3: it takes text and image in this order, and returns both."""
    return hasattr(block, "context_block")


def _wrapper(tokens, strength, conditional_only):
    """Around each call of the model, which draws both branches of guidance; the model is hooked only within it."""

    def apply_model(executor, x, sigma, c_concat, c_crossattn, control, transformer_options, **kwargs):
        model = executor.class_obj
        states = tokens.at(model.model_sampling.timestep(sigma))
        weight = _weigh(strength, transformer_options["cond_or_uncond"], x) if conditional_only else strength
        handles = []
        try:
            for row, block in tokens.choose(model.diffusion_model) if weight is not None else ():
                handles += _hook(block, states[row], weight)
            return executor(x, sigma, c_concat, c_crossattn, control, transformer_options, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    return apply_model


def _weigh(strength, branches, x):
    """The strength of each sample of x (batch, 1, 1): 0 in chunks of the negative prompt (1); None where all are."""
    if 0 not in branches or 1 not in branches:
        return strength if 0 in branches else None
    share = torch.tensor([float(branch == 0) for branch in branches]).repeat_interleave(len(x) // len(branches))
    return strength * share.to(x)[:, None, None]


def _hook(block, states, strength):
    """Tokens (batch, tokens, width) in front of the text that a block reads, and out of that which it returns.

    `strength` is a number, or each sample's own (batch, 1, 1).
    """
    is_joint = _is_joint(block)
    place, drop = 0 if is_joint else 1, states.shape[1]
    is_whole = not torch.is_tensor(strength) and strength == 1
    kept = []

    def prepend(_, args, kwargs):
        if not is_whole:
            # The block adds to its input in place: the base's own call needs a copy.
            kept.append(([arg.clone() if torch.is_tensor(arg) else arg for arg in args], kwargs))
        if "context" in kwargs:
            text = kwargs["context"]
            return args, {**kwargs, "context": torch.cat([states.to(text), text], dim=1)}
        text = args[place]
        return (*args[:place], torch.cat([states.to(text), text], dim=1), *args[place + 1 :]), kwargs

    def finish(_, args, output):
        if is_joint:
            text, image = output
            output = None if text is None else text[:, drop:], image
        if is_whole:
            return output
        base_args, base_kwargs = kept.pop()
        base = block.forward(*base_args, **base_kwargs)
        if not is_joint:
            return torch.lerp(base, output, strength)
        return tuple(None if b is None else torch.lerp(b, o, strength) for b, o in zip(base, output, strict=True))

    return block.register_forward_pre_hook(prepend, with_kwargs=True), block.register_forward_hook(finish)
