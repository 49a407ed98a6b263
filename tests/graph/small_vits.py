"""A small ViT written out in plain PyTorch, with the token layout and the head of one's choice, and what pruning it must give.

`masked` is the independent judge: it removes no token but hides those that have left as keys, image by image, with the kept patches
given; nothing in it is shared with the reference or the surgery.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SIDE, PATCH, WIDTH, HEADS, DEPTH, CLASSES = 48, 8, 32, 4, 4, 5
PATCHES = (SIDE // PATCH) ** 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """hidden: bool [B,N], keys that nobody sees."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        logits = q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
        if hidden is not None:
            logits = logits.masked_fill(hidden[:, None, None, :], float("-inf"))
        context = (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, WIDTH)
        x = x + self.proj(context)
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class SmallViT(nn.Module):
    """registers: how many; behind: they stand behind the patches. head: tokens [B,N,C] -> something [B,C]."""

    def __init__(self, head: Callable[[Tensor], Tensor], *, registers: int = 0, behind: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.registers = nn.Parameter(torch.randn(1, registers, WIDTH)) if registers else None
        self.behind, self.read = behind, head
        self.position = nn.Parameter(torch.randn(1, 1 + registers + PATCHES, WIDTH) * 0.5)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        for block in self.blocks:
            block.qkv.weight.data[: 2 * WIDTH] *= 5
        self.eval()

    def tokens(self, image: Tensor) -> Tensor:
        batch = image.shape[0]
        patches = self.embed(image).flatten(2).transpose(1, 2)
        parts = [self.cls.expand(batch, -1, -1), patches]
        if self.registers is not None:
            parts.insert(2 if self.behind else 1, self.registers.expand(batch, -1, -1))
        return torch.cat(parts, dim=1) + self.position

    def forward(self, image: Tensor) -> Any:
        x = self.tokens(image)
        for block in self.blocks:
            x = block(x)
        return self.head(self.read(self.norm(x)))


def masked(model: SmallViT, image: Tensor, kept: list[list[list[int]]], stages: list[int], prefix: int) -> Tensor:
    """Logits [B,classes] when only kept[site][image] patches are seen as keys behind each site (queries leave inside the site's block).

    The head is told which rows are left: it must be a CLS head, or average them through `model.read` on the gathered rows.
    """
    results = []
    for number in range(len(image)):
        x = model.tokens(image[number : number + 1])
        hidden = torch.zeros(1, x.shape[1], dtype=torch.bool)
        left = list(range(PATCHES))
        for index, block in enumerate(model.blocks):
            x = block(x, hidden)
            if index in stages:
                left = kept[stages.index(index)][number]
                hidden = torch.ones(1, x.shape[1], dtype=torch.bool)
                hidden[0, :prefix] = False
                hidden[0, [prefix + patch for patch in left]] = False
        rows = [*range(prefix), *(prefix + patch for patch in left)]
        results.append(model.head(model.read(model.norm(x[:, rows]))))
    return torch.cat(results)
