"""VQAScore on a tiny random Gemma 3 against what `generate` reports for tokens and pixels put together by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    PreTrainedTokenizerFast,
)

from softrepa_pipeline.evaluation.scorers import ScorerConfig, load_scorers

QUESTION = 'Does this figure show " a red circle " ? Please answer yes or no .'
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
WORDS = [*SPECIAL, *["user", "model", "Yes"], *sorted(set(QUESTION.split())), "green"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} user {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<start_of_image>{% else %} {{ c['text'] }}{% endif %}{% endfor %}{% endfor %} model"
)
SIDE, IMAGE_TOKENS = 16, 4


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    named = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=False))
    extra = dict(zip(("boi_token", "eoi_token", "image_token"), SPECIAL[4:], strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=words, **named, extra_special_tokens=extra)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(WORDS), "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 16}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Gemma3Config(
        text_config={**text, **ends},
        vision_config={**size, "image_size": SIDE, "patch_size": 4},
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=4,
        eoi_token_index=5,
        image_token_index=6,
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config)
    # Fresh weights answer almost uniformly, and their projector lets nothing of the image through.
    model.lm_head.weight.data.mul_(10)
    model.model.multi_modal_projector.mm_input_projection_weight.data.normal_()
    model.save_pretrained(folder)
    pictures = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    Gemma3Processor(pictures, tokenizer(), TEMPLATE, image_seq_length=IMAGE_TOKENS).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_vqa_score_is_the_probability_of_yes(folder: Path) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(3)]
    model = Gemma3ForConditionalGeneration.from_pretrained(folder).eval()
    words = ["<bos>", "user", "<start_of_image>", *["<image_soft_token>"] * IMAGE_TOKENS, "<end_of_image>"]
    tokens = torch.tensor([[WORDS.index(word) for word in [*words, *QUESTION.split(), "model"]]])
    expected = []
    for image in images:
        pixels = torch.from_numpy(np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))).permute(2, 0, 1)
        answer = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=(pixels / 255 - 0.5)[None] / 0.5,
            token_type_ids=(tokens == WORDS.index("<image_soft_token>")).long(),
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        expected.append(float(answer.logits[0][0].softmax(dim=-1)[WORDS.index("Yes")]))
    scorer = load_scorers([ScorerConfig("vqa_score", str(folder))], {})["vqa_score"]
    np.testing.assert_allclose(scorer.score(["a red circle"] * 3, images), expected, rtol=1e-4)
    assert np.ptp(expected) > 1e-3
    assert scorer.score(["a green circle"], images[:1])[0] != pytest.approx(expected[0], rel=1e-2)
