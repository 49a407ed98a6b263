"""How much memory a bundle needs, from its weights and token counts: an estimate, and its parts say where it comes from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from vitprune import methods
from vitprune.backends._tensorrt.building import COPIES_OF_WEIGHTS
from vitprune.methods.base import BlockTokens, Geometry
from vitprune.support import onnx_weights

if TYPE_CHECKING:
    import onnx

    from vitprune.bundle import Bundle

MIB = 1 << 20
# Assumptions, not measurements: CUDA context and TensorRT's libraries in a process; the system of a device without a desktop.
PROCESS_MIB = 1024
SYSTEM_MIB = 1024
# Of a number between layers, by the type of the products; int8 and fp8 leave the rest in a half type.
VALUE_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 2, "fp8": 2}


@dataclass(frozen=True)
class Estimate:
    """MiB: weights, activations at the largest batch with every site at its limit, scratch memory of the builder."""

    weights: int
    activations: int
    workspace: int

    @property
    def least(self) -> int:
        """What a run cannot do without."""
        return self.weights + self.activations

    @property
    def build(self) -> int:
        """What a build is expected to take, process included."""
        return PROCESS_MIB + COPIES_OF_WEIGHTS * self.weights + self.activations + self.workspace

    def text(self) -> str:
        """One line."""
        parts = asdict(self)
        return f"about {self.build} MiB to build ({', '.join(f'{name} {size}' for name, size in parts.items())} MiB)"


def estimate(bundle: Bundle, model: onnx.ModelProto, batch: int, workspace_mib: int | None) -> Estimate:
    """Estimate for a batch.

    Args:
        bundle: for geometry, method and number type. model: its graph, for the weights.
        batch: largest batch. workspace_mib: the builder's limit, 0 when it has none.
    """
    geometry = Geometry(**bundle.manifest.model["geometry"])
    method = methods.get(bundle.recipe.prune.method)
    sites = method.sites(bundle.recipe.prune, geometry)
    blocks = method.block_tokens(sites, geometry, [site.limit for site in sites])
    values = max(_values(block, geometry) for block in blocks)
    size = batch * values * VALUE_BYTES[bundle.recipe.precision.mode]
    return Estimate(_mib(onnx_weights.total(model)), _mib(size), workspace_mib or 0)


def _values(block: BlockTokens, geometry: Geometry) -> float:
    """Numbers alive at once in a block: residual with Q, K, V and two attention matrices, or residual with the MLP's two halves."""
    attention = block.queries * geometry.width + 2 * block.entering * geometry.width
    attention += 2 * geometry.heads * block.queries * block.entering
    mlp = 2 * block.mlp * geometry.mlp_hidden
    return block.entering * geometry.width + max(attention, mlp)


def _mib(size: float) -> int:
    return math.ceil(size / MIB)
