"""Sizes and cost of the tokens-to-token front end of T2T-ViT (Yuan et al., ICCV 2021, arXiv 2101.11986, section 3.1). Needs no torch.

Three unfoldings turn an image into grid x grid tokens: the first is set by image and grid, the second and third are 3x3 with stride 2. A
Performer layer follows the first two, a linear map the third.
"""

from __future__ import annotations

from dataclasses import dataclass

TOKEN_DIM = 64
FEATURES = TOKEN_DIM // 2
# Kernel, stride and padding of the first unfolding: of DVT's members, and of T2T-ViT itself (the last one), at 224 pixels.
PUBLISHED = {(224, 7): (14, 8, 3), (224, 10): (11, 6, 5), (224, 14): (7, 4, 2)}


@dataclass(frozen=True)
class Unfolding:
    """An image side of `before` cells is read by windows of `kernel` cells every `stride` cells: `after` windows a side."""

    before: int
    kernel: int
    stride: int
    padding: int

    @property
    def after(self) -> int:
        """Windows a side."""
        return (self.before + 2 * self.padding - self.kernel) // self.stride + 1


def unfoldings(image: int, grid: int) -> tuple[Unfolding, Unfolding, Unfolding]:
    """The three unfoldings of a square image into grid x grid tokens.

    Other sizes than the published ones follow their pattern: stride ceil(image / 4 grid), a kernel of two strides less one, and
    the least padding up to half a kernel that gives the most windows two halvings turn into `grid`.

    Raises:
        ValueError: no window fits image and grid.
    """
    first = _first(image, grid)
    second = Unfolding(first.after, 3, 2, 1)
    return first, second, Unfolding(second.after, 3, 2, 1)


def _first(image: int, grid: int) -> Unfolding:
    if (image, grid) in PUBLISHED:
        return Unfolding(image, *PUBLISHED[image, grid])
    stride = -(-image // (4 * grid))
    kernel = max(2 * stride - 1, 3)
    choices = [Unfolding(image, kernel, stride, padding) for padding in range(kernel // 2 + 1)]
    fitting = [choice for choice in choices if 4 * grid - 3 <= choice.after <= 4 * grid]
    if not fitting:
        raise ValueError(
            f"tokens-to-token cannot turn {image} pixels a side into {grid} tokens; its windows need a side near {stride} * {4 * grid}"
        )
    return max(fitting, key=lambda choice: choice.after)


def tokenizer_macs(image: int, grid: int, channels: int, width: int) -> int:
    """MACs from the image to grid x grid tokens of `width`: two Performer layers and the projection; unfolding costs nothing."""
    first, second, third = unfoldings(image, grid)
    layers = _performer(first.after**2, channels * first.kernel**2) + _performer(second.after**2, TOKEN_DIM * second.kernel**2)
    return layers + third.after**2 * TOKEN_DIM * third.kernel**2 * width


def _performer(rows: int, width: int) -> int:
    """One Performer layer: k, q, v; random features of k and q; feature products with v and their sum; projection; MLP."""
    return rows * (3 * width * TOKEN_DIM + 4 * FEATURES * TOKEN_DIM + FEATURES + 3 * TOKEN_DIM**2)
