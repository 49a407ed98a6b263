"""What a model answers for a batch as one array: logits as they are, several outputs side by side.

Comparisons, stored samples and gates then see one row per image, whatever a graph gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # device packages read this before they know that there is a numpy
    from numpy.typing import NDArray

LISTS = ("kept_", "group_")


def joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Outputs [B,...] of one or several heads -> [B,values]; one output [B,classes] stays as it is."""
    if len(parts) == 1 and parts[0].ndim == 2:
        return parts[0]
    import numpy as np

    return np.concatenate([np.asarray(part).reshape(len(part), -1) for part in parts], axis=1)


def parted(rows: NDArray[Any], shapes: Sequence[Sequence[int]]) -> list[NDArray[Any]]:
    """[B,values] -> arrays [B,*shape], in order; the inverse of `joined`."""
    sizes = [math.prod(shape) for shape in shapes]
    if sum(sizes) != rows.shape[1]:
        raise ValueError(f"{rows.shape[1]} values are not those of {list(shapes)}")
    import numpy as np

    ends = np.cumsum(sizes)
    return [rows[:, end - size : end].reshape(len(rows), *shape) for end, size, shape in zip(ends, sizes, shapes, strict=True)]


def heads_and_lists(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of a graph's outputs in order -> those that answer, which stand first, and the kept lists; what is traced besides is neither."""
    every = list(names)
    heads = list(takewhile(lambda name: not name.startswith(LISTS), every))
    return heads, [name for name in every[len(heads) :] if name.startswith("kept_")]


def shapes_of(outputs: Sequence[dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Shapes without the batch of the outputs that answer, from a manifest's description of them."""
    heads, _ = heads_and_lists(str(entry["name"]) for entry in outputs)
    return {str(entry["name"]): tuple(int(size) for size in entry["shape"][1:]) for entry in outputs[: len(heads)]}
