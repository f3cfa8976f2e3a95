"""What `softrepa plan` says of the real models: the table of docs/real-models.md, on any machine, without weights.

The denoisers are those of full_size.py; text encoders and autoencoders have the public configurations. Only
vocabularies are the embedded ones: captions are padded to 77 tokens of CLIP and `max_sequence_length` of T5 anyhow.

    python benchmarks/plans.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import PROJECT
from diffusers import AutoencoderKL
from full_size import CONFIGS, LATENT_CHANNELS
from transformers import CLIPTextConfig, T5Config, T5TokenizerFast

_IMAGES = "118287"  # COCO's train2017
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_CLIP_L = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
_BIG_G = CLIPTextConfig(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
)
_T5_XXL = T5Config(
    d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu", vocab_size=32128
)
_TEXT_ENCODERS: dict[str, dict[str, Any]] = {
    "sd15": {"text_encoder": _CLIP_L},
    "sdxl": {"text_encoder": _CLIP_L, "text_encoder_2": _BIG_G},
    "sd3": {
        "text_encoder": CLIPTextConfig(**{**_CLIP_L.to_dict(), "projection_dim": 768}),
        "text_encoder_2": _BIG_G,
        "text_encoder_3": _T5_XXL,
    },
}
_PLANS = {
    "SD1.5": ("sd15", ""),
    "SDXL": ("sdxl", ""),
    "SD3": ("sd3", ""),
    "SD3 without T5": ("sd3", "model.t5=false"),
    "SD1.5, calibrated": ("sd15", "preset=calibrated"),
    "SDXL, calibrated": ("sdxl", "preset=calibrated"),
    "SD3, calibrated": ("sd3", "preset=calibrated"),
}


def write_configurations(family: str, folder: Path) -> None:
    """A diffusers folder of the family at full size, without weights."""
    embedded = PROJECT / "data/06_models/embedded" / family
    index = json.loads((embedded / "model_index.json").read_text())
    denoiser_class, config = CONFIGS[family]
    parts = {"transformer" if family == "sd3" else "unet": config, "vae": _vae(family)}
    for name, values in parts.items():
        part = denoiser_class if name != "vae" else AutoencoderKL
        _write(folder / name / "config.json", {"_class_name": part.__name__, **values})
    for name, encoder in _TEXT_ENCODERS[family].items():
        encoder.save_pretrained(folder / name)
    for name in ("scheduler", "tokenizer", "tokenizer_2"):
        if (embedded / name).is_dir():
            shutil.copytree(embedded / name, folder / name)
    for settings in folder.glob("tokenizer*/tokenizer_config.json"):
        _write(settings, {**json.loads(settings.read_text()), "model_max_length": 77})
    if family == "sd3":
        letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -3.0) for letter in "▁ahopt")]
        T5TokenizerFast(vocab=letters, extra_ids=0).save_pretrained(folder / "tokenizer_3")
        index |= {"text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer_3": ["transformers", "T5Tokenizer"]}
    _write(folder / "model_index.json", index)


def _vae(family: str) -> dict[str, Any]:
    config = {**_VAE, "latent_channels": LATENT_CHANNELS[family], "sample_size": 1024 if family != "sd15" else 512}
    return config | ({"use_quant_conv": False, "use_post_quant_conv": False} if family == "sd3" else {})


def _write(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def plan(family: str, base: Path, changes: str) -> dict[str, str]:
    """The table that the command prints, by the names of its lines."""
    params = ",".join(filter(None, [f"model.base={base},model.vae=null", changes]))
    command = [sys.executable, "-m", "softrepa_pipeline.commands", "plan", "--env", family, "--images", _IMAGES]
    done = subprocess.run([*command, "--params", params], cwd=PROJECT, capture_output=True, text=True, check=True)
    return {line[:24].strip(): line[24:] for line in done.stdout.splitlines()[2:]}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for family in CONFIGS:
            write_configurations(family, Path(folder) / family)
        found = {name: plan(family, Path(folder) / family, changes) for name, (family, changes) in _PLANS.items()}
    print("| |", " | ".join(found), "|")
    print("| --- |", " | ".join("---:" for _ in found), "|")
    for row in dict.fromkeys(row for table in found.values() for row in table):
        print(f"| {row} |", " | ".join(table.get(row, "–") for table in found.values()), "|")


if __name__ == "__main__":
    main()
