"""Make ``digits_vit.onnx``: a small vision transformer for 8x8 digits.

Four pre-norm blocks with multi-head self-attention written out, so that the
graph shows the projections, the split into heads and the softmax.
"""

from __future__ import annotations

import math
from pathlib import Path

import digits
import torch
from torch import Tensor, nn

PATCH_SIZE = 2
"""Height and width of a patch, in pixels."""
TOKEN_COUNT = (digits.IMAGE_SIZE // PATCH_SIZE) ** 2
EMBEDDING = 64
HEADS = 4
MLP_WIDTH = 128
DEPTH = 4

CARD = digits.ModelCard(
    name="digits_vit",
    description="Small vision transformer that classifies 8x8 handwritten digits.",
    minimum_accuracy=0.96,
    maximum_bytes=800_000,
)


class PatchEmbedding(nn.Module):
    """2x2 patches as tokens, with a learned position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(1, EMBEDDING, PATCH_SIZE, stride=PATCH_SIZE)
        self.position = nn.Parameter(torch.randn(1, TOKEN_COUNT, EMBEDDING) * 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [n, 1, 8, 8] to tokens [n, 16, embedding]."""
        patches = self.projection(image).reshape(-1, EMBEDDING, TOKEN_COUNT)
        tokens: Tensor = patches.transpose(1, 2) + self.position
        return tokens


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.head_width = EMBEDDING // HEADS
        self.query = nn.Linear(EMBEDDING, EMBEDDING)
        self.key = nn.Linear(EMBEDDING, EMBEDDING)
        self.value = nn.Linear(EMBEDDING, EMBEDDING)
        self.output = nn.Linear(EMBEDDING, EMBEDDING)

    def split_heads(self, tokens: Tensor) -> Tensor:
        """Map [n, 16, embedding] to [n, heads, 16, head width]."""
        return tokens.reshape(-1, TOKEN_COUNT, HEADS, self.head_width).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [n, 16, embedding] to the same shape."""
        query = self.split_heads(self.query(tokens))
        key = self.split_heads(self.key(tokens))
        value = self.split_heads(self.value(tokens))
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_width)
        mixed = scores.softmax(dim=-1) @ value
        joined = mixed.transpose(1, 2).reshape(-1, TOKEN_COUNT, EMBEDDING)
        projected: Tensor = self.output(joined)
        return projected


class Mlp(nn.Module):
    """Two linear layers with exact GELU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Linear(EMBEDDING, MLP_WIDTH)
        self.gelu = nn.GELU()
        self.contract = nn.Linear(MLP_WIDTH, EMBEDDING)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [n, 16, embedding] to the same shape."""
        contracted: Tensor = self.contract(self.gelu(self.expand(tokens)))
        return contracted


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(EMBEDDING)
        self.attention = SelfAttention()
        self.mlp_norm = nn.LayerNorm(EMBEDDING)
        self.mlp = Mlp()

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [n, 16, embedding] to the same shape."""
        attended = tokens + self.attention(self.attention_norm(tokens))
        result: Tensor = attended + self.mlp(self.mlp_norm(attended))
        return result


class DigitsViT(nn.Module):
    """Patch embedding, transformer blocks, mean over the tokens and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = PatchEmbedding()
        self.blocks = nn.Sequential(*(TransformerBlock() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(EMBEDDING)
        self.head = nn.Linear(EMBEDDING, digits.CLASS_COUNT)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [n, 1, 8, 8] to logits [n, 10]."""
        tokens = self.norm(self.blocks(self.embedding(image)))
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


def main() -> None:
    """Train, export and check the model, next to this script."""
    digits.set_deterministic()
    digits.make(
        DigitsViT(),
        CARD,
        digits.TrainingSettings(epochs=120, learning_rate=2e-3),
        digits.AugmentationSettings(),
        Path(__file__).parent,
    )


if __name__ == "__main__":
    main()
