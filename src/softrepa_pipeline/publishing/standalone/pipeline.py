"""Stock diffusers pipelines with soft tokens as one more component. Needs torch and diffusers only."""

import inspect

from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline


def _with_soft_tokens(stock):
    """A subclass of a stock pipeline; `pipe.soft_tokens.strength` is 0 for the base, 1 for the tokens as trained."""

    class SoftTokensPipeline(stock):
        # An SD3 may come without T5.
        _optional_components = [*stock._optional_components, "text_encoder_3", "tokenizer_3"]  # noqa: RUF012

        def __init__(self, *, soft_tokens, **components):
            super().__init__(**components)
            self.register_modules(soft_tokens=soft_tokens)
            soft_tokens.attach(self.transformer if hasattr(self, "transformer") else self.unet)

        # diffusers reads from it what a pipeline is made of.
        __init__.__signature__ = inspect.Signature(
            [
                *inspect.signature(stock.__init__).parameters.values(),
                inspect.Parameter("soft_tokens", inspect.Parameter.KEYWORD_ONLY),
            ]
        )

    return SoftTokensPipeline


SD15SoftTokensPipeline = _with_soft_tokens(StableDiffusionPipeline)
SDXLSoftTokensPipeline = _with_soft_tokens(StableDiffusionXLPipeline)
SD3SoftTokensPipeline = _with_soft_tokens(StableDiffusion3Pipeline)
