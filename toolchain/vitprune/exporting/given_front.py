"""A graph that prepares its image itself: what its front says of preprocessing, and a check that the front was read rightly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune.backends.onnxruntime import make_session
from vitprune.data.preprocessing import STATED
from vitprune.errors import ExportError
from vitprune.graph.normal.front import Front
from vitprune.support.answers import joined

LIMIT = 1e-4  # the front rounds in another order than mean and std do


def described_by(front: Front, described: dict[str, Any]) -> dict[str, Any]:
    """The description of the model's images with what the graph says of mean and std; `given_input` is what the graph took.

    Raises:
        ExportError: VP335 somebody stated another mean or std than the graph holds.
    """
    found = {**described, "given_input": front.document()}
    if not front.states:
        return found
    for key, values in (("mean", front.mean), ("std", front.std)):
        if key in described and not np.allclose(described[key], values, rtol=1e-2, atol=1e-3):
            raise ExportError(
                335,
                f"the graph normalises with another {key} than was stated",
                cause=f"the graph: {_short(values)}; {described['origin']}: {_short(described[key])}",
                next_step=f"leave {key} out, the graph's own is taken; or give the graph of the model for which it was stated",
            )
    found |= {"mean": front.mean, "std": front.std}
    others = [] if described["origin"] == "nobody" else [described["origin"]]
    return found | {"known": all(key in found for key in STATED), "origin": ", ".join(["the graph", *others])}


def _short(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def check_front(
    given: onnx.ModelProto,
    bare: onnx.ModelProto,
    front: Front,
    pixels: NDArray[np.float32],
    batch: int | None,
    outputs: list[str],
) -> float:
    """Run the graph as it was given and without its front on the same images; returns the largest difference of logits.

    Args:
        pixels: preprocessed, [n,C,H,W]; what the given graph takes is made of them and, for bytes, rounded. batch: of the graphs.

    Raises:
        ExportError: VP336 they differ.
    """
    raw = front.given(pixels)
    logits = [_run(model, images, batch, outputs) for model, images in ((given, raw), (bare, front.prepared(raw)))]
    difference = float(np.abs(logits[0] - logits[1]).max())
    if not difference <= LIMIT * max(1.0, float(np.abs(logits[0]).max())):
        raise ExportError(
            336,
            "what the graph does to its image was not understood",
            cause=f"without its front, on images prepared as it does, logits differ by {difference:.3g}",
            next_step="export the model itself, without preprocessing, and report this graph",
        )
    return difference


def _run(model: onnx.ModelProto, images: NDArray[Any], batch: int | None, outputs: list[str]) -> NDArray[Any]:
    session = make_session(model, spin=False)
    name, size = session.get_inputs()[0].name, batch or 8
    parts = []
    for start in range(0, len(images), size):
        rows = np.minimum(np.arange(start, start + size), len(images) - 1)
        parts.append(joined(session.run(outputs, {name: images[rows]})))
    return np.concatenate(parts)[: len(images)]
