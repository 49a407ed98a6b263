"""What an attention has besides its linear maps: the description that reference, anatomy and passes share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rotation:
    """Rotary positions (Su et al., arXiv 2104.09864): a row x of patch n becomes x * cos[n] + turned(x) * sin[n], in every head.

    turned(x) swaps the partners of every pair of channels and negates the one that comes first. Prefix tokens, and tokens that a
    method adds, are not rotated. A merged row stands for several patches and takes the mean of their cosines and of their sines: what
    the mean of its members' keys would be if they had the same content.

    Attributes:
        cos, sin: float32 [h,P,d] with h = 1 where heads share a table, else the number of heads. half: partners are channels c and
            c + d/2; else 2c and 2c + 1.
    """

    cos: np.ndarray
    sin: np.ndarray
    half: bool


@dataclass(frozen=True)
class PositionBias:
    """A number on the attention logits for each query and key, by their positions (BEiT, Swin's relative positions).

    Pruned with the tokens: rows follow the queries, columns the keys. A token that a method adds has no position and takes the mean over
    the patches; a merged row stands for several patches and takes the mean over its members.

    Attributes:
        table: float32 [H,N,N] over all tokens of the model, prefix first, queries by keys. prefix: number of prefix tokens.
    """

    table: np.ndarray
    prefix: int

    def extended(self) -> np.ndarray:
        """The table [H,N+1,N+1] with a token of no position behind the others."""
        wide = np.concatenate([self.table, self.table[:, self.prefix :].mean(axis=1, keepdims=True)], axis=1)
        return np.concatenate([wide, wide[:, :, self.prefix :].mean(axis=2, keepdims=True)], axis=2)
