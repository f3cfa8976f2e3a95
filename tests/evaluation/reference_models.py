"""Published architectures written out plainly, under the names of their published checkpoints: what ours must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OpenClipBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class OpenClipTransformer(nn.Module):
    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(OpenClipBlock(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        states = [x]
        for block in self.resblocks:
            states.append(block(states[-1], mask))
        return states


class OpenClipVision(nn.Module):
    def __init__(self, side: int, patch: int, width: int, heads: int, layers: int, out: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        self.proj = nn.Parameter(torch.randn(width, out) / width)
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = OpenClipTransformer(width, heads, layers)

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        states = self.transformer(self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding))
        return self.ln_post(states[-1][:, 0]) @ self.proj, states


class OpenClip(nn.Module):
    """open_clip's ViT CLIP with plain GELU, as ViT-H-14 is."""

    def __init__(
        self, vocabulary: int, length: int, side: int, patch: int, width: int, heads: int, layers: int
    ) -> None:
        super().__init__()
        self.visual = OpenClipVision(side, patch, width, heads, layers, out=24)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width))
        self.transformer = OpenClipTransformer(width, heads, layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, 24) / width)
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def encode_text(self, tokens: Tensor, end: int) -> tuple[Tensor, list[Tensor]]:
        length = tokens.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        states = self.transformer(self.token_embedding(tokens) + self.positional_embedding[:length], mask)
        last = (tokens == end).int().argmax(dim=1)
        return self.ln_final(states[-1])[torch.arange(len(tokens)), last] @ self.text_projection, states


class BlipVisionBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.attn["qkv"](self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        x = x + self.attn["proj"](mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class BlipVision(nn.Module):
    def __init__(self, side: int, patch: int, width: int, layers: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(BlipVisionBlock(width, width // 64) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def _bert_attention(width: int, memory: int) -> nn.ModuleDict:
    inner = {"query": nn.Linear(width, width), "key": nn.Linear(memory, width), "value": nn.Linear(memory, width)}
    outer = {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)}
    return nn.ModuleDict({"self": nn.ModuleDict(inner), "output": nn.ModuleDict(outer)})


class BertLayer(nn.Module):
    def __init__(self, width: int, heads: int, memory: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention, self.crossattention = _bert_attention(width, width), _bert_attention(width, memory)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 2 * width)})
        self.output = nn.ModuleDict({"dense": nn.Linear(2 * width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})

    def _attend(self, parts: nn.ModuleDict, x: Tensor, memory: Tensor, keep: Tensor) -> Tensor:
        q, k, v = (
            parts["self"][name](source).view(*source.shape[:2], self.heads, -1).transpose(1, 2)
            for name, source in (("query", x), ("key", memory), ("value", memory))
        )
        logits = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~keep[:, None, None], -torch.inf)
        mixed = (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return parts["output"]["LayerNorm"](parts["output"]["dense"](mixed) + x)

    def forward(self, x: Tensor, keep: Tensor, seen: Tensor) -> Tensor:
        x = self._attend(self.attention, x, x, keep)
        x = self._attend(self.crossattention, x, seen, torch.ones(seen.shape[:2], dtype=torch.bool))
        h = self.output["dense"](F.gelu(self.intermediate["dense"](x)))
        return self.output["LayerNorm"](h + x)


class BlipText(nn.Module):
    """BLIP's BERT with cross-attention to the image in every layer, its own attention in both directions."""

    def __init__(self, vocabulary: int, width: int, heads: int, layers: int, memory: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(vocabulary, width),
                "position_embeddings": nn.Embedding(64, width),
                "LayerNorm": nn.LayerNorm(width, eps=1e-12),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(BertLayer(width, heads, memory) for _ in range(layers))})

    def forward(self, tokens: Tensor, keep: Tensor, seen: Tensor) -> Tensor:
        places = self.embeddings["position_embeddings"].weight[: tokens.shape[1]]
        x = self.embeddings["LayerNorm"](self.embeddings["word_embeddings"](tokens) + places)
        for layer in self.encoder["layer"]:
            x = layer(x, keep, seen)
        return x


class RewardMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ImageRewardModel(nn.Module):
    def __init__(self, vocabulary: int, side: int = 32, patch: int = 16, width: int = 128) -> None:
        super().__init__()
        self.blip = nn.ModuleDict(
            {
                "visual_encoder": BlipVision(side, patch, width, layers=2),
                "text_encoder": BlipText(vocabulary, 48, heads=4, layers=2, memory=width),
                "vision_proj": nn.Linear(width, 8),
                "text_proj": nn.Linear(48, 8),
            }
        )
        self.mlp = RewardMlp(48)
