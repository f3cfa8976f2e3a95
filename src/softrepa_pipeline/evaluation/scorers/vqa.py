"""VQAScore: the probability with which a vision-language model answers "Yes" when asked for the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from softrepa_pipeline.evaluation.scorers.base import Scorer, ScorerConfig
from softrepa_pipeline.evaluation.scorers.weights import Source, loading, source_of

# The processors of Qwen's models need torchvision for videos; Gemma's does not.
GEMMA = Source("google/gemma-3-4b-it", "093f9f388b31de276ce2de164bdc2081324b9767")
QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
ANSWER = "Yes"


class VqaScore(Scorer):
    """P("Yes" | image, question), the softmax over the whole vocabulary at the first answer token."""

    scale = 100.0

    def __init__(self, config: ScorerConfig) -> None:
        source = source_of(config, GEMMA)
        super().__init__(config, str(source))
        dtype = torch.float32 if config.device == "cpu" else torch.bfloat16
        with loading(source):
            self.processor = AutoProcessor.from_pretrained(source.model, **source.options)
            model = AutoModelForImageTextToText.from_pretrained(source.model, dtype=dtype, **source.options)
        self.vlm = model.requires_grad_(False).eval().to(config.device)
        self.answer = self.processor.tokenizer.encode(ANSWER, add_special_tokens=False)[0]

    def score_batch(self, prompts: Sequence[str], images: list[Image.Image]) -> np.ndarray:
        return np.array([self._probability(prompt, image) for prompt, image in zip(prompts, images, strict=True)])

    def _probability(self, prompt: str, image: Image.Image) -> float:
        # One image at a time: padding would shift the positions of models that count them from the left.
        question = [{"type": "image"}, {"type": "text", "text": QUESTION.format(prompt)}]
        text = self.processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        inputs = self.processor(text=text, images=image, return_tensors="pt", add_special_tokens=False).to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.vlm.dtype)
        logits = self.vlm(**inputs, logits_to_keep=1).logits[0, -1]
        return float(logits.float().softmax(dim=-1)[self.answer])
