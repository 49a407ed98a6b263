"""Resampling between token grids as constant matrices (methods.md §4.4).

"Repeat every cell, then average adaptively" is linear and separable, so features take one product and relations two, with constants
that every runtime multiplies well; no Resize and no adaptive pooling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def axis_matrix(old: int, new: int) -> NDArray[np.floating[Any]]:
    """G [new,old]: repeat each of `old` cells ceil(new/old) times, then average cells floor(i*m/new) to ceil((i+1)*m/new)."""
    repeat = -(-new // old)
    fine = old * repeat
    matrix = np.zeros((new, old))
    for row in range(new):
        first, last = row * fine // new, -(-(row + 1) * fine // new)
        for cell in range(first, last):
            matrix[row, cell // repeat] += 1 / (last - first)
    return matrix


def patch_matrix(old: int, new: int) -> NDArray[np.floating[Any]]:
    """G (x) G [new*new, old*old] for patches in row-major order."""
    axis = axis_matrix(old, new)
    return np.kron(axis, axis)


def relation_matrix(old: int, new: int) -> NDArray[np.float32]:
    """Pm = blockdiag(1, G (x) G) [new*new+1, old*old+1]: relations R become Pm R Pm^T, CLS row and column untouched."""
    return _with_cls(patch_matrix(old, new), 1.0)


def feature_matrix(old: int, new: int) -> NDArray[np.float32]:
    """blockdiag(0, G (x) G): resamples token features, drops the CLS row and puts a zero row in its place (methods.md §4.2)."""
    return _with_cls(patch_matrix(old, new), 0.0)


def _with_cls(patches: NDArray[np.floating[Any]], corner: float) -> NDArray[np.float32]:
    rows, columns = patches.shape
    matrix = np.zeros((rows + 1, columns + 1), np.float32)
    matrix[0, 0] = corner
    matrix[1:, 1:] = patches
    return matrix
