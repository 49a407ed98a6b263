"""What a device is expected to take for a bundle and for its dense model: launches, bytes over bandwidth, MACs over rate.

A model, not a measurement: peaks of data sheets, kernels one after the other, nothing overlaps. What it is good for is the question whether the
kernels that score and select can eat what fewer tokens save.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vitprune import methods
from vitprune.errors import first_line
from vitprune.methods.base import BlockTokens, Geometry
from vitprune.methods.cost import dense_blocks, model_macs
from vitprune.preflight.memory import VALUE_BYTES
from vitprune.support.device_speed import LaunchTime, Speed

if TYPE_CHECKING:
    import onnx

    from vitprune.bundle import Bundle
    from vitprune.graph.launches import Launches

MODELLED = "modelled, not measured"
WEIGHT_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}


@dataclass(frozen=True)
class Work:
    """What one run has to do: kernels to start, bytes to move, multiply-accumulates, counts that are copied to the host."""

    launches: int
    bytes: float
    macs: float
    copies: int = 0


@dataclass(frozen=True)
class Time:
    """Milliseconds of a run: starting kernels, moving bytes, multiplying, waiting for counts.

    captured: all of it in a CUDA graph, None where none can be captured.
    """

    launching: float
    moving: float
    multiplying: float
    copying: float
    captured: float | None

    @property
    def total(self) -> float:
        """Kernels started one by one."""
        return self.launching + self.moving + self.multiplying + self.copying

    def document(self) -> dict[str, float | None]:
        """JSON-ready form."""
        return {
            "ms": self.total, "launching_ms": self.launching, "moving_ms": self.moving, "multiplying_ms": self.multiplying,
            "copying_ms": self.copying, "captured_ms": self.captured,
        }  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """Times of the dense and the pruned model at a batch."""

    dense: Time
    pruned: Time
    batch: int

    @property
    def ratio(self) -> float:
        """Pruned over dense, kernels started one by one in both."""
        return self.pruned.total / self.dense.total

    @property
    def captured_ratio(self) -> float | None:
        """Pruned over dense, both in a CUDA graph; None where the pruned one cannot be captured."""
        if self.pruned.captured is None or self.dense.captured is None:
            return None
        return self.pruned.captured / self.dense.captured

    @property
    def loses(self) -> bool:
        """Whether pruning makes it slower in every way that the pruned model can be run."""
        return min(self.ratio, self.captured_ratio or self.ratio) > 1

    def text(self) -> str:
        """One line, which says that it is a model."""
        captured = "" if self.captured_ratio is None else f", {self.captured_ratio:.2f}x in CUDA graphs"
        return (
            f"{MODELLED}: {self.pruned.total:.2f} ms of {self.dense.total:.2f} ms dense at batch {self.batch} "
            f"({self.ratio:.2f}x{captured})"
        )

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "what": MODELLED, "batch": self.batch, "dense": self.dense.document(), "pruned": self.pruned.document(),
            "ratio": self.ratio, "captured_ratio": self.captured_ratio,
        }  # fmt: skip


def time(work: Work, launch: LaunchTime, speed: Speed, rate: float) -> Time:
    """Launch time x kernels + bytes / bandwidth + MACs / rate + copies. `rate`: MACs a second."""
    moving, multiplying = 1e3 * work.bytes / (speed.memory_gbs * 1e9), 1e3 * work.macs / rate
    captured = None if work.copies else work.launches * launch.captured_us / 1e3 + moving + multiplying
    return Time(work.launches * launch.kernel_us / 1e3, moving, multiplying, work.copies * launch.copy_us / 1e3, captured)


def values_moved(block: BlockTokens, before: float, geometry: Geometry) -> float:
    """Numbers that a block's kernels read and write for one image.

    Two norms, the maps to queries, keys and values, attention, projection and sum, two maps of the MLP and sum; where rows leave (fewer than
    `before`), a site reads keys and values once and copies the rows that stay twice.
    """
    n, q, m, c, h = block.entering, block.queries, block.mlp, geometry.width, geometry.mlp_hidden
    norms = 2 * n * c + 2 * m * c
    attention = (q + q) * c + (n + 2 * n) * c + (q + 2 * n + q) * c + (2 * q + q) * c
    mlp = m * (c + h) + m * (h + 2 * c)
    site = 2 * n * c + 4 * m * c if m < before else 0.0
    return norms + attention + mlp + site


def weights_of(geometry: Geometry) -> float:
    """Numbers in the maps of the model: patches, blocks, head."""
    embedding = geometry.embed_macs / max(1, geometry.patches)
    per_block = 4 * geometry.width**2 + 2 * geometry.width * geometry.mlp_hidden
    return embedding + geometry.depth * per_block + geometry.width * geometry.classes


def work(geometry: Geometry, blocks: Sequence[BlockTokens], launches: int, batch: int, mode: str, copies: int = 0) -> Work:
    """The work of one run of a batch in a number type; every weight is read once."""
    before = [float(geometry.tokens), *(block.mlp for block in blocks[:-1])]
    moved = sum(values_moved(block, rows, geometry) for block, rows in zip(blocks, before, strict=True))
    values = moved + 2 * geometry.tokens * geometry.width
    size = batch * values * VALUE_BYTES[mode] + weights_of(geometry) * WEIGHT_BYTES[mode]
    return Work(launches, size, batch * model_macs(geometry, blocks), copies)


def kept_as_run(bundle: Bundle, batch: int) -> list[float]:
    """Patches behind every site as the graph computes them.

    Its limit where shapes are padded; else the mean of the stored samples, and in a batch the largest of them, which the others are padded to.
    """
    if bundle.recipe.graph.shapes == "padded":
        return [float(site["limit"]) for site in bundle.manifest.sites]
    samples = bundle.samples()
    counts = [(samples[f"kept_{site['block']}"] >= 0).sum(axis=1) for site in bundle.manifest.sites]
    return [float(np.mean(count) if batch == 1 else np.max(count)) for count in counts]


def estimate(bundle: Bundle, counted: Counted, launch: LaunchTime, speed: Speed, batch: int) -> Estimate | None:
    """Both times on a module of a target, None where its data sheet has no rate for the bundle's number type.

    Args:
        bundle: for geometry, method, type and token counts. counted: of `count`.
        launch, speed: constants of the target file. batch: images in one run.
    """
    mode = bundle.recipe.precision.mode
    rate = speed.macs_per_second(mode)
    if rate is None:
        return None
    geometry = Geometry(**bundle.manifest.model["geometry"])
    method = methods.get(bundle.recipe.prune.method)
    sites = method.sites(bundle.recipe.prune, geometry)
    blocks = method.block_tokens(sites, geometry, kept_as_run(bundle, batch))
    whole = work(geometry, dense_blocks(geometry), counted.total(counted.dense), batch, mode)
    less = work(geometry, blocks, counted.total(counted.pruned), batch, mode, counted.copies)
    return Estimate(time(whole, launch, speed, rate), time(less, launch, speed, rate), batch)


@dataclass(frozen=True)
class Counted:
    """Kernels of the dense and of the pruned graph: before the blocks, then of every block.

    copies: sites whose count of tokens depends on the data and shapes follow it, so that the host waits for it.
    """

    dense: list[Launches]
    pruned: list[Launches]
    copies: int

    @staticmethod
    def total(parts: list[Launches]) -> int:
        """Kernels of a whole graph."""
        return sum(part.total for part in parts)


def with_plugins(bundle: Bundle, model: onnx.ModelProto | None, counted: Counted, backend: str) -> tuple[Counted, int] | None:
    """The same with sites as plugin nodes (`build-engine --sites plugin`), and how many sites are one; None where none is.

    Args:
        model: the bundle's, read here where it is None. counted: of `count`, with sites as plain nodes.
        backend: only TensorRT's builder takes plugins.

    Raises:
        ValueError: the graph cannot be lowered, and why.
    """
    from vitprune.graph.launches import by_block, with_plugins
    from vitprune.support import onnx_weights
    from vitprune.support.onnx_file import read_model

    model = read_model(bundle.model_path) if model is None else model
    if backend != "tensorrt" or onnx_weights.any_elsewhere(model):
        return None
    try:
        graph, made = with_plugins(model)
    except Exception as error:
        raise _no_lowering(error) from error
    depth = int(bundle.manifest.model["geometry"]["depth"])
    return (replace(counted, pruned=by_block(graph, depth, True)), made) if made else None


def _no_lowering(error: Exception) -> ValueError:
    """A bundle's files may hold anything, and a count is not worth an end."""
    return ValueError(f"the graph cannot be lowered: {first_line(error)[:160]}")


class Uncounted(ValueError):
    """A bundle of a kind that this model does not count."""


def count(bundle: Bundle, model: onnx.ModelProto | None, backend: str) -> Counted:
    """Kernels of a bundle and its dense graph on a backend; model: the bundle's, read here where it is None.

    Raises:
        Uncounted: a cascade, a backend that chooses kernels on the device, a bundle without its dense graph. ValueError: the graph cannot
            be lowered, and why.
    """
    from vitprune.backends._native import for_onnxruntime
    from vitprune.graph import ragged, skeletons
    from vitprune.graph.launches import Sites, by_block, executed
    from vitprune.support.onnx_file import read_model

    forms: dict[str, tuple[Sites, bool]] = {
        "onnxruntime": ("one operator" if for_onnxruntime("auto")[0] else "nodes", False),
        "tensorrt": ("sampling", True), "tensorrt_rtx": ("nodes", True),
    }  # fmt: skip
    if len(bundle.model_files) > 1:
        raise Uncounted("a cascade is several models, and which of them run depends on the image")
    if backend not in forms:
        raise Uncounted(f"{backend.replace('_', '-')} chooses its kernels on the device")
    if skeletons.SKELETON not in bundle.manifest.files:
        raise Uncounted("the bundle has no dense graph to compare with: export it again")
    sites, fused = forms[backend]
    depth = int(bundle.manifest.model["geometry"]["depth"])
    try:
        model = read_model(bundle.model_path) if model is None else model
        dense = skeletons.fleshed(read_model(bundle.path / skeletons.SKELETON), model)
        graphs = [executed(one, sites) for one in (dense, model)]
    except Exception as error:
        raise _no_lowering(error) from error
    follows_data = bundle.recipe.graph.shapes != "padded" and bool(ragged.stored(model)[1])
    copies = sum(not site["bypass"] for site in bundle.manifest.sites) if follows_data else 0
    counted = [by_block(one, depth, fused) for one in graphs]
    return Counted(counted[0], counted[1], copies)
