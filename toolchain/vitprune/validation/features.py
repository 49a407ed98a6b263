"""How near dense features are: cosines of rows, and differences in units of what an output's values are like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.support.answers import parted


@dataclass(frozen=True)
class OutputFigures:
    """One output against the reference, and against the dense model where that is known.

    max_abs: largest difference of a value. scale: root mean square of the reference's values, at least 1. cosine_mean, cosine_p1: mean and
    1st percentile of the cosines of its rows. rows: how many an image has.
    """

    name: str
    rows: int
    max_abs: float
    scale: float
    cosine_mean: float
    cosine_p1: float
    dense_cosine_mean: float | None = None
    dense_cosine_p1: float | None = None

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def figures(
    found: NDArray[Any], expected: NDArray[Any], dense: NDArray[Any] | None, heads: dict[str, tuple[int, ...]]
) -> list[OutputFigures]:
    """Compare outputs side by side, [n,values] each; heads: shape without the batch of every output, by name."""
    shapes = list(heads.values())
    parts = [parted(rows, shapes) for rows in (found, expected)]
    whole = [None] * len(shapes) if dense is None else parted(dense, shapes)
    return [_figures(*one) for one in zip(heads, *parts, whole, strict=True)]


def _figures(name: str, found: NDArray[Any], expected: NDArray[Any], dense: NDArray[Any] | None) -> OutputFigures:
    near = cosines(found, expected)
    scale = max(1.0, float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))))
    apart = float(np.abs(found.astype(np.float64) - expected).max())
    far = None if dense is None else cosines(found, dense)
    return OutputFigures(
        name, near.shape[1], apart, scale, float(near.mean()), float(np.percentile(near, 1)),
        None if far is None else float(far.mean()), None if far is None else float(np.percentile(far, 1)),
    )  # fmt: skip


def cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Cosines [n,rows] of the rows of two outputs; 1 where both are zero, 0 where one is.

    Rows are the last axis of [n,N,C] and the channels of [n,C,h,w]; of anything else, and of maps with one channel, an image is one row.
    """
    a, b = (_rows(np.asarray(values, np.float64)) for values in (one, other))
    norms = np.linalg.norm(a, axis=2), np.linalg.norm(b, axis=2)
    both, product = (norms[0] == 0) & (norms[1] == 0), norms[0] * norms[1]
    with np.errstate(invalid="ignore"):
        near = (a * b).sum(axis=2) / np.where(product == 0, 1.0, product)
    return np.where(both, 1.0, near)


def _rows(values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim == 3 and values.shape[2] > 1:
        return values
    if values.ndim == 4 and values.shape[1] > 1:
        return values.reshape(*values.shape[:2], -1).swapaxes(1, 2)
    return values.reshape(len(values), 1, -1)


def worst(outputs: Sequence[OutputFigures]) -> dict[str, float]:
    """What the gates look at: the output that is furthest off, for each figure; NaN where there is one."""
    return {
        "features_max_abs": float(np.max([one.max_abs / one.scale for one in outputs])),
        "cosine_mean": float(np.min([one.cosine_mean for one in outputs])),
        "cosine_p1": float(np.min([one.cosine_p1 for one in outputs])),
    }
