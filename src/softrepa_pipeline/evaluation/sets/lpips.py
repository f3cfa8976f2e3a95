"""LPIPS on AlexNet, from its published weights: how unlike two images look, how diverse the images of a prompt are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from softrepa_pipeline.evaluation.scorers.base import ScorerConfig
from softrepa_pipeline.evaluation.scorers.weights import loading, read_tensors, source_of

ALEXNET, HEADS = "alexnet-owt-7be5be79.pth", "alex.pth"
# ImageNet's mean and deviation for pixels in [−1, 1], as LPIPS rounds them.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips:
    """LPIPS 0.1 with AlexNet: `model` is a folder with torchvision's AlexNet and LPIPS's `alex.pth`.

    Raises:
        MissingWeightsError: a file is not there.
    """

    def __init__(self, config: ScorerConfig) -> None:
        source = source_of(config, None)
        with loading(source):
            alexnet, heads = read_tensors(source.file(ALEXNET)), read_tensors(source.file(HEADS))
        self.model, self.device = str(source), config.device
        self.layers = _alexnet_features()
        trained = {name: tensor for name, tensor in alexnet.items() if name.startswith("features.")}
        self.layers.load_state_dict({name.removeprefix("features."): tensor for name, tensor in trained.items()})
        self.layers.eval().requires_grad_(False).to(config.device)
        self.heads = [heads[f"lin{i}.model.1.weight"].float().to(config.device) for i in range(5)]

    @torch.inference_mode()
    def distance(self, first: Image.Image, second: Image.Image) -> float:
        """0 for equal images; both must have the same size."""
        if first.size != second.size:
            raise ValueError(f"LPIPS compares images of one size, not {first.size} with {second.size}")
        states = self._states(torch.stack([_pixels(first), _pixels(second)]).to(self.device))
        return sum(
            float(F.conv2d((_unit(state[:1]) - _unit(state[1:])) ** 2, head).mean())
            for state, head in zip(states, self.heads, strict=True)
        )

    def diversity(self, images: Sequence[Image.Image]) -> float:
        """The mean distance between every two images of one prompt."""
        return float(np.mean([self.distance(first, second) for first, second in combinations(images, 2)]))

    def _states(self, pixels: Tensor) -> list[Tensor]:
        """AlexNet's five activations."""
        x = (pixels - torch.tensor(_SHIFT).view(3, 1, 1).to(pixels)) / torch.tensor(_SCALE).view(3, 1, 1).to(pixels)
        states = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                states.append(x)
        return states


def _pixels(image: Image.Image) -> Float[Tensor, "3 height width"]:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1


def _unit(state: Float[Tensor, "1 channels height width"]) -> Float[Tensor, "1 channels height width"]:
    return state / (state.norm(dim=1, keepdim=True) + 1e-10)


def _alexnet_features() -> nn.Sequential:
    """AlexNet's convolutions up to the last activation, numbered as torchvision numbers them."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )
