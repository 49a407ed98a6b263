"""Checks that every session makes on its input."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.errors import LoadError


def images(x: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """X as a contiguous float32 [B,C,H,W] array.

    Raises:
        LoadError: VP603 on another shape.
    """
    array = np.ascontiguousarray(getattr(x, "numpy", lambda: x)(), dtype=np.float32)
    if array.ndim != 4 or array.shape[1:] != tuple(shape) or not len(array):
        raise LoadError(
            603,
            f"input of shape {array.shape} does not fit",
            cause=f"the model takes [batch, {', '.join(map(str, shape))}], already normalised",
            next_step="preprocess as the manifest's 'preprocessing' says",
        )
    return array
