"""Soft tokens in front of the text that chosen blocks of a frozen denoiser read. Needs torch and diffusers only.

For drawing: between the denoiser's call and its blocks' the tokens are kept in this module, so that no second call of
the same denoiser may run at the same time, and none of it can be trained.
"""

from functools import partial

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

_TEXT = "encoder_hidden_states"


class SoftTokens(ModelMixin, ConfigMixin):
    """s[k, t] = base[k] + time[floor(t · buckets / 1000), k]: tokens of layer k at timestep t in [0, 1000].

    `strength` 0 is the base, bit-equal, 1 the tokens as trained; in between and beyond, a chosen block's output is
    base + strength · (with tokens − base), and it runs twice.
    """

    @register_to_config
    def __init__(self, layers, num_tokens, width, num_buckets=0, shared=False):
        super().__init__()
        num_layers = 1 if shared else len(layers)
        self.base = nn.Parameter(torch.zeros(num_layers, num_tokens, width))
        self.time = nn.Parameter(torch.zeros(num_buckets, num_layers * width)) if num_buckets else None
        self.strength = 1.0
        self._states = None

    def forward(self, timestep):
        """Tokens (layers, batch, tokens, width) for timesteps (batch,)."""
        if self.time is None:
            return self.base[:, None].expand(-1, len(timestep), -1, -1)
        bucket = (timestep * self.config.num_buckets / 1000).long().clamp(0, self.config.num_buckets - 1)
        offset = self.time[bucket].unflatten(1, (len(self.base), -1)).transpose(0, 1)
        return self.base[:, None] + offset[:, :, None]

    def attach(self, denoiser):
        """Hook into a UNet or an SD3 transformer; it stays as it is but for these hooks.

        Raises:
            ValueError: it has not the layers, or its text is of another width.
        """
        named = _blocks(denoiser)
        chosen = [name for layer in self.config.layers for name in named if layer in (name, name.rpartition(".")[0])]
        config = denoiser.config
        width = config.get("caption_projection_dim") or config.get("cross_attention_dim")
        if width != self.config.width or not chosen:
            raise ValueError(
                f"these soft tokens are {self.config.width} wide, for layers {self.config.layers}; this "
                f"{type(denoiser).__name__} has text {width} wide and layers {list(named)}"
            )
        denoiser.register_forward_pre_hook(self._see, with_kwargs=True)
        for index, name in enumerate(chosen):
            row = 0 if self.config.shared else index
            named[name].register_forward_pre_hook(partial(self._prepend, row), with_kwargs=True)
            named[name].register_forward_hook(self._finish, with_kwargs=True)

    def _see(self, denoiser, args, kwargs):
        text = kwargs[_TEXT]
        timestep = torch.as_tensor(kwargs.get("timestep", args[1] if len(args) > 1 else None), device=self.device)
        self._states = self(timestep.expand(len(text)).float()).to(text.device) if self.strength else None

    def _prepend(self, row, block, args, kwargs):
        if self._states is None:
            return None
        text = kwargs[_TEXT]
        return args, {**kwargs, _TEXT: torch.cat([self._states[row].to(text), text], dim=1)}

    def _finish(self, block, args, kwargs, output):
        if self._states is None:
            return output
        drop = self.config.num_tokens
        if isinstance(output, tuple):  # SD3: the text stream goes on, without the tokens
            text, image = output
            output = None if text is None else text[:, drop:], image
        if self.strength == 1:
            return output
        base = block.forward(*args, **{**kwargs, _TEXT: kwargs[_TEXT][:, drop:]})
        if not isinstance(output, tuple):
            return torch.lerp(base, output, self.strength)
        return tuple(None if b is None else torch.lerp(b, o, self.strength) for b, o in zip(base, output, strict=True))


def _blocks(denoiser):
    """Blocks that read the text, by name: `0`, `1` … of an SD3; `down.0` …, `mid.0` …, `up.0` … of a UNet."""
    if hasattr(denoiser, "transformer_blocks"):
        return {str(index): block for index, block in enumerate(denoiser.transformer_blocks)}
    stages = {"down": denoiser.down_blocks, "mid": denoiser.mid_block, "up": denoiser.up_blocks}
    return {
        f"{stage}.{index}": block
        for stage, module in stages.items()
        for index, block in enumerate(own for own in module.modules() if isinstance(own, BasicTransformerBlock))
    }
