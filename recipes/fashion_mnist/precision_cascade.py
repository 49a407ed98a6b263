"""The cascade in every type, for `precision.py`: members' graphs on ONNX Runtime's CPU with early exit, against fp32 and the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.backends.onnxruntime import make_session
from vitprune.data.images import Images
from vitprune.exporting.ranges import with_opset
from vitprune.graph.lowering.rounding import emulated
from vitprune.graph.precision.audit import layers_by_type
from vitprune.methods.dvt import members, ranges
from vitprune.methods.dvt.graphs import dense_graphs, member_graphs
from vitprune.methods.dvt.host import Member, all_exits, torch_members
from vitprune.methods.dvt.keys import EXITS
from vitprune.methods.dvt.precision import in_precision
from vitprune.methods.dvt.validating import compare, exits_of, reference_arrays
from vitprune.recipe import Recipe

BATCH = 50
Exits = tuple[NDArray[np.float32], NDArray[np.int64]]  # logits [n,classes] of the exit that answers, and its number [n] from 1
Compared = Callable[[NDArray[np.float32], NDArray[np.float32]], dict[str, Any]]


def evaluate(
    recipe: Recipe, pixels: NDArray[np.float32], calibration: Callable[[int], NDArray[np.float32]], referenced: int, modes: Sequence[str],
    compared: Compared,
) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """What the cascade gives in fp32 and in each mode.

    Args:
        pixels: test images [n,C,H,W]. calibration: gives at most so many. referenced: how many images are also compared with PyTorch.
        compared: the figures of a run's logits against fp32's.
    """
    cascade = members.load(None, recipe, pretrained=False, seed=0, weights=None).module
    thresholds, full = recipe.prune.thresholds, None
    for mode in ("fp32", *modes):
        given = with_opset(recipe.with_("precision.mode", mode))
        dense, beyond = dense_graphs(cascade, given), {}
        if mode != "fp32":
            given, beyond = ranges.settle(cascade, given, dense, pixels[:64], calibration)
        graphs = member_graphs(cascade, given, dense=dense)
        logits = through([runnable(graph) for graph in graphs], pixels)
        exits = exits_of(logits, thresholds)
        answers = np.stack(logits)[exits - 1, np.arange(len(exits))]
        full = full or (answers, exits)
        layers: Counter[str] = Counter()
        for graph in graphs:
            layers.update(layers_by_type(graph))
        found = compared(full[0], answers) | {
            "sites": at_exits(full[1], exits), "bytes": sum(graph.ByteSize() for graph in graphs), "overflow": beyond, "layers": dict(layers)
        }  # fmt: skip
        if mode != "fp32" and referenced:
            inputs = Images(pixels[:referenced], None, "test images")
            arrays = reference_arrays(torch_members(in_precision(cascade, given)), inputs, thresholds)
            gates = given.gates(float(np.abs(arrays["logits"]).max()))
            evidence = compare([one[:referenced] for one in logits], arrays, thresholds, gates).evidence
            illegal, differing = evidence["illegal_flips"], evidence["images_differing"]
            apart = arrays["margin"][exits_of([one[:referenced] for one in logits], thresholds) != arrays["exits"]]
            found["reference"] = {
                "images": len(inputs.pixels), "legal": differing - illegal, "illegal": illegal, "decisions": evidence["decisions"],
                "could_fail": evidence["could_fail"], "margin": gates.flip_margin,
                "largest": float(apart.max(initial=0)) / gates.flip_margin,
            }  # fmt: skip
        yield mode, found


def through(cascade: Sequence[Member], pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Logits of every exit, in pieces."""
    pieces = [all_exits(cascade, pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    return [np.concatenate([piece[number] for piece in pieces]) for number in range(EXITS)]


def runnable(graph: Any) -> Member:
    """A member's graph as a function of arrays."""
    session = make_session(emulated(graph).SerializeToString(), threads=1, spin=False)
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, dict(feeds)), strict=True))


def at_exits(one: NDArray[np.int64], other: NDArray[np.int64]) -> list[dict[str, int]]:
    """Per exit that decides, images on which two runs decide differently there for the first time."""
    first = np.where(one != other, np.minimum(one, other), 0)
    return [{"block": number, "images": int((first == number).sum())} for number in range(1, EXITS)]
