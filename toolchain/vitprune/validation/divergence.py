"""Where a graph leaves its reference first: block by block on one image, both computing from the same pixels.

The graph is given further outputs, the reference's modules are watched; what they share in every block is compared in the order of
computation: the normalised rows, keys, values, the projection's rows and the patches that a site keeps. The last pair that agrees and
the first that does not bracket the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune.backends.onnxruntime import make_session
from vitprune.graph.lowering.rounding import emulated
from vitprune.methods.base import Geometry

# Largest difference over the tensor's largest magnitude. float32 sums differ in their order alone; half types in single roundings.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
OTHER = 2e-1
PARTS = ("norm1", "attn/k", "attn/v", "kept", "attn/proj")  # in the order of computation
SCOPE = "vitprune/block"


@dataclass(frozen=True)
class Divergence:
    """The first place where graph and reference differ.

    Attributes:
        image: its number. block: -1 where it is the head alone. part: one of PARTS, or "logits". tensor: its name in the graph.
        difference: largest, over the largest magnitude of the reference's tensor; limit: what is allowed. before: the last pair that
            agreed, "" where none did.
    """

    image: int
    block: int
    part: str
    tensor: str
    difference: float
    limit: float
    before: str

    def text(self) -> str:
        """One line."""
        place = (
            f"block {self.block}, {self.part} ({self.tensor})" if self.block >= 0 else f"behind the last block ({self.tensor})"
        )
        last = f"; {self.before} still agrees" if self.before else "; nothing before it was compared"
        return f"image {self.image} first differs at {place}: {self.difference:.2g} of {self.limit:.2g} allowed{last}"

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self) | {"text": self.text()}


def first_divergence(
    model: onnx.ModelProto, oracle: Any, pixels: NDArray[np.float32], number: int, mode: str, static: int | None = None
) -> Divergence | None:
    """Compare a graph with its reference on one image.

    Args:
        model: the pruned graph. oracle: its `PrunedViT`. pixels: [n,C,H,W]; number: which of them. mode: precision of the recipe.
        static: the graph's fixed batch.

    Returns:
        The first difference beyond the tolerance of the precision, None where everything compared agrees.
    """
    places = _places(model, len(oracle.dense.blocks))
    image = pixels[number : number + 1]
    theirs = _watched(oracle, image)
    ours = _run(model, list(places.values()), np.repeat(image, static or 1, axis=0))
    limit, before = TOLERANCE.get(mode, OTHER), ""
    for (block, part), name in places.items():
        other = theirs.get((block, part))
        if other is None:
            continue
        rows = _live_rows(theirs, block, part, oracle.geometry)
        difference = _sets_differ(ours[name], other) if part == "kept" else _distance(ours[name], other, rows)
        if not difference <= limit:
            return Divergence(number, block, part, name, difference, limit, before)
        before = f"block {block}, {part}" if block >= 0 else part
    return None


def _places(model: onnx.ModelProto, depth: int) -> dict[tuple[int, str], str]:
    """(block, part) -> tensor of the graph, in the order of computation; logits last."""
    made = {output: node for node in model.graph.node for output in node.output}
    outputs = {value.name for value in model.graph.output}
    found: dict[tuple[int, str], str] = {}
    for block in range(depth):
        scope = f"{SCOPE}{block}"
        product = made.get(f"{scope}/attn/k/matmul")
        rows = product.input[0] if product is not None else ""
        while rows in made and made[rows].op_type == "Cast":
            rows = made[rows].input[0]
        names = {
            "norm1": rows, "attn/k": f"{scope}/attn/k", "attn/v": f"{scope}/attn/v", "kept": f"kept_{block}",
            "attn/proj": f"{scope}/attn/proj",
        }  # fmt: skip
        found |= {(block, part): names[part] for part in PARTS if names[part] in made or names[part] in outputs}
    return found | {(-1, "logits"): model.graph.output[0].name}


def _run(model: onnx.ModelProto, names: list[str], image: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Tensors [1,...] of the graph by name."""
    probed = onnx.ModelProto()
    probed.CopyFrom(emulated(model))
    present = {value.name for value in probed.graph.output}
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in present)
    session = make_session(probed)
    values = session.run(names, {session.get_inputs()[0].name: image})
    return {name: value[:1] for name, value in zip(names, values, strict=True)}


def _watched(oracle: Any, image: NDArray[np.float32]) -> dict[tuple[int, str], NDArray[Any]]:
    """What the reference computes on one image; of half types only what passes through modules is seen."""
    import torch

    found: dict[tuple[int, str], NDArray[Any]] = {}
    with _hooks(oracle, found), torch.inference_mode():
        logits = oracle(torch.from_numpy(np.ascontiguousarray(image)))
    found |= {(site.block, "kept"): kept.numpy() for site, kept in zip(oracle.sites, oracle.kept, strict=True)}
    return found | {(-1, "logits"): logits.float().numpy()}


@contextmanager
def _hooks(oracle: Any, found: dict[tuple[int, str], NDArray[Any]]) -> Iterator[None]:
    def packed(block: int) -> Callable[[Any, Any, Any], None]:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            _, key, value = output.float().chunk(3, dim=-1)
            found.setdefault((block, "attn/k"), key.numpy().copy())
            found.setdefault((block, "attn/v"), value.numpy().copy())

        return keep

    def plain(block: int, part: str) -> Callable[[Any, Any, Any], None]:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            found.setdefault((block, part), output.float().numpy().copy())

        return keep

    handles = []
    for number, block in enumerate(oracle.dense.blocks):
        watched = {"norm1": (block.norm1, plain(number, "norm1"))}
        attention = block.attn
        if isinstance(getattr(attention, "q_norm", None), _identity()):  # with a norm on keys the graph's tensor is another one
            watched |= {"qkv": (attention.qkv, packed(number)), "proj": (attention.proj, plain(number, "attn/proj"))}
        handles += [
            module.register_forward_hook(hook) for module, hook in watched.values() if hasattr(module, "register_forward_hook")
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _identity() -> type:
    from torch import nn

    return nn.Identity


def _live_rows(theirs: dict[tuple[int, str], NDArray[Any]], block: int, part: str, geometry: Geometry) -> int:
    """Rows that hold tokens: pads stand behind them and hold whatever was left there."""
    last = block if part == "attn/proj" else block - 1
    kept = [rows for (site, kind), rows in theirs.items() if kind == "kept" and site <= last]
    patches = min((int((rows >= 0).sum()) for rows in kept), default=geometry.patches)
    return geometry.prefix + patches


def _distance(ours: NDArray[Any], theirs: NDArray[Any], live: int) -> float:
    """Largest difference of the first `live` rows, over the reference's largest magnitude; infinite where widths differ."""
    if ours.ndim != theirs.ndim or ours.shape[-1] != theirs.shape[-1]:
        return float("inf")
    if ours.ndim == 3:
        rows = min(ours.shape[1], theirs.shape[1], live)
        ours, theirs = ours[:, :rows], theirs[:, :rows]
    difference = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0))
    return difference / max(float(np.abs(theirs).max(initial=0)), 1e-6) if np.isfinite(difference) else float("inf")


def _sets_differ(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Patches that only one of the two keeps."""
    one, other = (set(rows[rows >= 0].tolist()) for rows in (ours, theirs))
    return float(len(one ^ other))
