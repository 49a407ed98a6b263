"""Numpy specification of the `vitprune::TokenSample` op: the judge of every other implementation.

Contract (architecture §5). Inputs: `score` float32 [B,P], larger = more significant, and `valid` bool [B,P] (any
pattern). Outputs: `index` int64 [B,K], kept positions ascending, then pad slots holding 0; `keep` bool [B,K], true where
a slot is real; `count` int64 scalar = K.

Decisions are exact. A score is turned once into an integer weight, and everything after that (cumulated sum, midpoints,
comparison with the sampling points) is integer arithmetic, so the order of summation cannot change a decision and every
runtime takes the same one, ties included:

    r_j = max(score_j, 0) / max_i score_i      one IEEE float32 division; the maximum is over valid tokens
    q_j = max(1, trunc(r_j * 2**30))           0 where not valid; q_j = 1 for all valid tokens when the maximum is not > 0
    c_j = q_0 + ... + q_j                      int64, T = the last one

Inverse transform sampling keeps token j when a sampling point u lies nearer to CDF value c_j/T than to any other, ties to
the lower index. With e_j = 2*c_j - q_j (= c_{j-1} + c_j, twice the midpoint below token j over valid tokens) the number of
sampling points at or below that midpoint is, for S points,

    paper grid     u_k = (2k-1)/(2S):              F(e) = (S*e + T) div 2T
    official grid  u_k = s + (1-s)*k/(S-1), k=0..: F(e) = 0 if e < 2s else (S-1)*(e-2s) div 2(T-s) + 1

clamped to [0, S], with F = 0 below the first valid token and F = S above the last; token j is kept when F rises across it
(closed form of ATS, arXiv 2111.15667 §3; methods.md §3.4). In the official mode the tokens are first put into ascending
order of r (ties to the lower index) and s is the second cumulated sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DOMAIN = "vitprune"
NAME = "TokenSample"
MODES = ("inverse_transform", "inverse_transform_official", "threshold")
WEIGHT_ONE = float(2**30)
MAX_PATCHES = 16384
MAX_SAMPLES = 65536


@dataclass(frozen=True)
class Attributes:
    """Attributes of one TokenSample node.

    mode: one of MODES. num_samples: number of sampling points S >= 1 (inverse modes). threshold: strict lower bound of the
    score (threshold mode). capacity: largest number of tokens kept per image, 0 = no limit. expected: typical kept count, a
    hint for builders, 0 = unknown. pad_to_capacity: K is the capacity instead of the largest count in the batch.
    """

    mode: str
    num_samples: int = 1
    threshold: float = 0.0
    capacity: int = 0
    expected: int = 0
    pad_to_capacity: bool = False


def weights(score: NDArray[np.float32], valid: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Relative scores r (float32, in [0,1]) and integer weights q (int64) of one image, both of shape [P]."""
    clean = np.where(valid & (score > 0), score, np.float32(0)).astype(np.float32)
    top = clean.max()
    if not top > 0:
        return np.zeros_like(clean), valid.astype(np.int64)
    relative = clean / top
    scaled = (relative * np.float32(WEIGHT_ONE)).astype(np.int64)
    return relative, np.where(valid, np.maximum(scaled, 1), 0)


def _rises(below: NDArray[np.int64], num_samples: int) -> NDArray[np.bool_]:
    """Which tokens of a compact row have F(upper midpoint) > F(lower midpoint)."""
    lower = np.clip(below, 0, num_samples)
    lower[0] = 0
    upper = np.append(lower[1:], num_samples)
    return upper > lower


def select_paper(q: NDArray[np.int64], num_samples: int) -> NDArray[np.bool_]:
    """Inverse transform sampling on the paper's grid over positive weights q [n]; returns keep [n]."""
    c = np.cumsum(q)
    edge = 2 * c - q
    return _rises((num_samples * edge + c[-1]) // (2 * c[-1]), num_samples)


def select_official(q: NDArray[np.int64], num_samples: int) -> NDArray[np.bool_]:
    """Sampling on the official code's grid over positive weights q [n] in ascending order; returns keep [n]."""
    c = np.cumsum(q)
    edge, start = 2 * c - q, c[min(1, len(c) - 1)]
    over = edge - 2 * start
    span = max(2 * (int(c[-1]) - int(start)), 1)
    return _rises(np.where(over < 0, 0, (num_samples - 1) * np.maximum(over, 0) // span + 1), num_samples)


def selected(score: NDArray[np.float32], valid: NDArray[np.bool_], attributes: Attributes) -> NDArray[np.bool_]:
    """Tokens of one image chosen before any capacity applies; score float32 [P], valid bool [P] -> bool [P]."""
    if attributes.mode == "threshold":
        return valid & (score > np.float32(attributes.threshold))
    keep = np.zeros(len(score), bool)
    present = np.flatnonzero(valid)
    if not len(present):
        return keep
    relative, q = weights(score, valid)
    if attributes.mode == "inverse_transform":
        keep[present] = select_paper(q[present], attributes.num_samples)
    elif attributes.mode == "inverse_transform_official":
        order = present[np.argsort(relative[present], kind="stable")]
        keep[order] = select_official(q[order], attributes.num_samples)
    else:
        raise ValueError(f"unknown mode {attributes.mode!r}; one of {', '.join(MODES)}")
    return keep


def token_sample(
    score: NDArray[np.float32], valid: NDArray[np.bool_], attributes: Attributes
) -> tuple[NDArray[np.int64], NDArray[np.bool_], int]:
    """Run the op on a batch.

    Args:
        score: float32 [B,P].
        valid: bool [B,P].
        attributes: the node's attributes.

    Returns:
        index int64 [B,K], keep bool [B,K] and count = K. An image that selects more than the capacity keeps its highest
        scores, ties to the lower index.

    Raises:
        ValueError: for an unknown mode.
    """
    batch, patches = score.shape
    limit = min(attributes.capacity, patches) if attributes.capacity > 0 else patches
    rows = []
    for image in range(batch):
        chosen = np.flatnonzero(selected(score[image], valid[image], attributes))
        if len(chosen) > limit:
            best = np.argsort(-score[image][chosen], kind="stable")[:limit]
            chosen = np.sort(chosen[best])
        rows.append(chosen)
    count = limit if attributes.pad_to_capacity else max(1, max(len(row) for row in rows))
    index = np.zeros((batch, count), np.int64)
    keep = np.zeros((batch, count), bool)
    for image, row in enumerate(rows):
        index[image, : len(row)] = row
        keep[image, : len(row)] = True
    return index, keep, count
