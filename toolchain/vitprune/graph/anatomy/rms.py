"""RMSNorm over the channels of a head (q/k norm), whichever exporter wrote it: found by computing, like rotary positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitprune.graph.anatomy.positions import function_between, source_of

STEPS = 6  # tensors above that everything may depend on until the norm's input is reached
TOLERANCE = 1e-4
LEAST = 0.03  # of rows of length 1e-3: an epsilon of a thousandth


def rms_above(tensor: Any, width: int, opset: int) -> tuple[Any, np.ndarray, float] | None:
    """What is normed to make `tensor` [...,width], the weights float32 [width] and the number under the root; None where nothing is."""
    shape = list(tensor.shape or ())
    if not shape or shape[-1] != width or not all(isinstance(size, int) for size in shape):
        return None
    above = tensor
    for _ in range(STEPS):
        above = source_of(above)
        if above is None or list(above.shape or ()) != shape:
            return None
        found = _norm(function_between(above, tensor, opset), shape)
        if found is not None:
            return above, *found
    return None


def _norm(run: Any, shape: list[int]) -> tuple[np.ndarray, float] | None:
    """Weights and epsilon of x / sqrt(mean(x^2) + epsilon) * weight, where `run` computes that."""
    ones = np.ones(shape, np.float32)
    large, small = run(1e3 * ones), run(1e-3 * ones)
    weight = large.reshape(-1, shape[-1])[0]
    heaviest = int(np.abs(weight).argmax())
    share = abs(float(small.reshape(-1, shape[-1])[0, heaviest] / weight[heaviest])) if weight[heaviest] else 0.0
    if not LEAST <= share <= 1 + 1e-6:  # else a plain product, which an epsilon without bounds would explain too
        return None
    epsilon = max(0.0, 1e-6 / min(share, 1.0) ** 2 - 1e-6)
    random = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wanted = random / np.sqrt((random * random).mean(axis=-1, keepdims=True) + epsilon) * weight
    made = run(random)
    return (
        (weight.astype(np.float32), epsilon) if np.abs(made - wanted).max() <= TOLERANCE * max(1.0, np.abs(made).max()) else None
    )
