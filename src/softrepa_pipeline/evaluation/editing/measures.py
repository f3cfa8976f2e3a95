"""PIE-Bench's measures (arXiv 2310.01506): how much of the structure and of the background an edit keeps.

As published, the background is measured on whole images in which the edited region is black in both.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoModel

# (captions, PIL images) → one similarity an image; given by the caller, who has a CLIP.
ClipScorer = Callable[[list[str], list[Image.Image]], np.ndarray]
# (source, edited), both uint8 (images, height, width, 3) → one distance an image.
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]

_DINO_SIDE = 224
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Rounding to 8 bits alone leaves this error, so that equal images have 59 dB and not ∞, which has no mean.
_LEAST_ERROR = 1 / 255**2 / 12


def squared_error(source: np.ndarray, edited: np.ndarray) -> float:
    """Mean squared difference of uint8 values of one shape, in units where white is 1."""
    return float(np.mean((source.astype(np.float64) - edited) ** 2) / 255**2)


def peak_signal_to_noise(source: np.ndarray, edited: np.ndarray) -> float:
    """PSNR in decibels."""
    return float(-10 * np.log10(max(squared_error(source, edited), _LEAST_ERROR)))


def structural_similarity(source: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """SSIM of each pair of images: window 11, σ = 1.5, edges mirrored."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    first, second = _unit_range(edited), _unit_range(source)
    found: Any = structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")
    return found.reshape(-1).numpy()


def perceptual_distance(source: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """LPIPS (SqueezeNet) of each pair of images."""
    import lpips

    model = lpips.LPIPS(net="squeeze", verbose=False).eval()
    pair = (2 * _unit_range(images) - 1 for images in (edited, source))
    with torch.no_grad():
        return model(*pair).flatten().numpy()


class StructureDistance:
    """Mean squared difference of the self-similarities of DINO's last keys (arXiv 2201.00424).

    `model` is a local folder or a hub id of a DINO, DINOv2 or DINOv3 vision transformer.

    Raises:
        FileNotFoundError: its weights are not within reach.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        try:
            self.model = AutoModel.from_pretrained(model, dtype=torch.float32).requires_grad_(False).eval().to(device)
        except OSError as error:
            reason = " ".join(str(error).split())[:200]
            raise FileNotFoundError(f"no DINO at {model}; set edit.dino to a folder or a hub id ({reason})") from error
        self.device = device

    def __call__(self, source: np.ndarray, edited: np.ndarray) -> np.ndarray:
        pairs = zip(source, edited, strict=True)
        return np.array([float(self._distance(before[None], after[None])) for before, after in pairs])

    def _distance(self, source: np.ndarray, edited: np.ndarray) -> Tensor:
        return F.mse_loss(self.similarities(edited), self.similarities(source))

    @torch.no_grad()
    def similarities(self, images: np.ndarray) -> Tensor:
        """Cosines (images, tokens, tokens) of the last layer's keys, heads side by side, class token included."""
        side = (_DINO_SIDE, _DINO_SIDE)
        pixels = F.interpolate(_unit_range(images).to(self.device), side, mode="bicubic", antialias=True).clamp(0, 1)
        mean, deviation = (
            torch.tensor(v, device=self.device)[:, None, None] for v in (_IMAGENET_MEAN, _IMAGENET_DEVIATION)
        )
        keys: list[Tensor] = []
        last = [module for name, module in self.model.named_modules() if name.endswith((".k_proj", ".key"))][-1]
        handle = last.register_forward_hook(lambda module, arguments, output: keys.append(output))
        try:
            self.model((pixels - mean) / deviation)
        finally:
            handle.remove()
        unit = F.normalize(keys[0], dim=-1)
        return unit @ unit.transpose(1, 2)


def measure(
    source: np.ndarray,
    edited: np.ndarray,
    captions: list[str],
    masks: np.ndarray,
    score_clip: ClipScorer | None = None,
    structure: Distance | None = None,
) -> dict[str, np.ndarray | None]:
    """Each measure of each edit (images,); None for what cannot be measured here.

    Images are uint8 (images, height, width, 3), `captions` say what shall be seen, `masks` (images, height, width)
    where the images may change.
    """
    kept_source, kept_edited = (_blacken(images, masks) for images in (source, edited))
    pairs = list(zip(kept_source, kept_edited, strict=True))
    found: dict[str, np.ndarray | None] = {
        "structure_distance": structure(source, edited) if structure else None,
        "background_psnr": np.array([peak_signal_to_noise(*pair) for pair in pairs]),
        "background_mse": np.array([squared_error(*pair) for pair in pairs]),
        "background_ssim": _if_installed("torchmetrics", structural_similarity, kept_source, kept_edited),
        "background_lpips": _if_installed("lpips", perceptual_distance, kept_source, kept_edited),
    }
    for name, images in (("clip_whole", edited), ("clip_edited", _blacken(edited, ~masks))):
        found[name] = score_clip(captions, [Image.fromarray(image) for image in images]) if score_clip else None
    return found


def _if_installed(package: str, measure_pairs: Distance, *images: np.ndarray) -> np.ndarray | None:
    return measure_pairs(*images) if find_spec(package) else None


def _blacken(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return np.where(masks[..., None], 0, images).astype(np.uint8)


def _unit_range(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
