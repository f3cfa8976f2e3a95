"""GenEval's eyes through transformers: Mask2Former Swin-S on COCO, and CLIP for the colours of what it finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation

from softrepa_pipeline.evaluation.scorers.clip import Clip
from softrepa_pipeline.evaluation.scorers.geneval_rules import COLORS, MIN_CONFIDENCE, Detection
from softrepa_pipeline.evaluation.scorers.weights import Source, loading

# COCO's 80 kinds in COCO's order, as GenEval words them.
KINDS = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,
bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,
snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,
knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,
dining table,toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,microwave,oven,toaster,sink,
refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush""".replace("\n", "").split(",")
)
SHORT_SIDE, LONG_SIDE, DIVISOR = 800, 1333, 32  # as the model was tested by its authors
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MAX_DETECTIONS = 100
_HIDDEN = (0x99, 0x99, 0x99)  # what stands where an object's mask does not
_COLOR_WORDINGS = ("a photo of a {color} {kind}", "a photo of a {color}-colored {kind}", "a photo of a {color} object")


class Detector:
    """Mask2Former for instances of COCO's kinds.

    Raises:
        MissingWeightsError: the weights are not there.
        ValueError: they are not of a model of COCO's 80 kinds.
    """

    def __init__(self, source: Source, device: str) -> None:
        with loading(source):
            model = Mask2FormerForUniversalSegmentation.from_pretrained(
                source.model, dtype=torch.float32, **source.options
            )
        if model.config.num_labels != len(KINDS):
            raise ValueError(f"{source} knows {model.config.num_labels} kinds; GenEval needs COCO's {len(KINDS)}")
        self.device, self.model = device, model.requires_grad_(False).eval().to(device)

    def detect(self, image: Image.Image) -> list[Detection]:
        """What is seen in an RGB image with more than GenEval's least confidence."""
        pixels, (height, width) = prepare(image)
        output = self.model(pixel_values=pixels[None].to(self.device))
        classes, masks = output.class_queries_logits[0].float(), output.masks_queries_logits.float()
        sure = classes.softmax(dim=-1)[:, :-1].amax(dim=-1) > MIN_CONFIDENCE
        if not sure.any():
            return []
        masks = _resized(masks[:, sure], pixels.shape[1:])[..., :height, :width]
        return detections(classes[sure], _resized(masks, image.size[::-1])[0])


def _resized(masks: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False)


def prepare(image: Image.Image) -> tuple[Float[Tensor, "3 height width"], tuple[int, int]]:
    """Pixels resized to a short side of 800 (a long one of at most 1333) and padded; and the extents before padding."""
    scale = min(SHORT_SIDE / min(image.size), LONG_SIDE / max(image.size))
    width, height = (round(extent * scale) for extent in image.size)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    pixels = ((torch.from_numpy(resized) - torch.tensor(_MEAN)) / torch.tensor(_STD)).permute(2, 0, 1)
    return F.pad(pixels, (0, -width % DIVISOR, 0, -height % DIVISOR)), (height, width)


def detections(
    classes: Float[Tensor, "queries kinds+1"], masks: Float[Tensor, "queries height width"]
) -> list[Detection]:
    """The best pairs of query and kind; confidence is the kind's probability times the mask's mean inside itself."""
    kinds = len(KINDS)
    probability, order = classes.softmax(dim=-1)[:, :-1].flatten().topk(min(_MAX_DETECTIONS, classes.shape[0] * kinds))
    found = []
    for score, place in zip(probability.tolist(), order.tolist(), strict=True):
        if score <= MIN_CONFIDENCE:
            break
        logits = masks[place // kinds]
        inside = logits > 0
        if not inside.any():
            continue
        confidence = score * float(logits[inside].sigmoid().mean())
        if confidence > MIN_CONFIDENCE:
            found.append(Detection(KINDS[place % kinds], confidence, _box(inside), inside.cpu().numpy()))
    return found


def _box(inside: Tensor) -> tuple[float, float, float, float]:
    rows, columns = inside.any(dim=1).nonzero()[:, 0], inside.any(dim=0).nonzero()[:, 0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


class ClipColors:
    """Names an object's colour by CLIP, zero-shot, on its box with everything outside its mask made grey."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.classifiers: dict[str, Tensor] = {}

    def name(self, image: Image.Image, kind: str, objects: Sequence[Detection]) -> list[str]:
        crops = [cut_out(image, item) for item in objects]
        similarity = self.clip.images(crops) @ self._classifier(kind).T
        return [COLORS[index] for index in similarity.argmax(dim=1).tolist()]

    def _classifier(self, kind: str) -> Float[Tensor, "colors width"]:
        if kind not in self.classifiers:
            texts = [wording.format(color=color, kind=kind) for color in COLORS for wording in _COLOR_WORDINGS]
            embedded = self.clip.texts(texts).view(len(COLORS), len(_COLOR_WORDINGS), -1)
            self.classifiers[kind] = F.normalize(embedded.mean(dim=1), dim=-1)
        return self.classifiers[kind]


def cut_out(image: Image.Image, found: Detection) -> Image.Image:
    """The object's box out of the image, grey outside its mask."""
    if found.mask is not None:
        image = Image.composite(image, Image.new("RGB", image.size, _HIDDEN), Image.fromarray(found.mask))
    left, top, right, bottom = found.box
    return image.crop((round(left), round(top), max(round(right), round(left) + 1), max(round(bottom), round(top) + 1)))
