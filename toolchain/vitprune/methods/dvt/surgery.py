"""One member of a DVT cascade: take over features and relations of the model before, hand on its own (methods.md §4.2-4.4, §4.8).

The dense graph of the member is that of a plain ViT. The pass adds the attention logits of the model before to every block, widens the
MLP input by features made from its tokens, and names the tensors that the next model needs. Resampling between grids is a product with
constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitprune.graph.anatomy.find import Block
from vitprune.graph.anatomy.static import value_of
from vitprune.graph.canonical import attend, keys, project, queries, replace_attention, values
from vitprune.graph.emit import FLOAT, Emitter
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.graph.types import Tensor, dims, given, variable
from vitprune.methods.dvt.grids import feature_matrix, relation_matrix

RESAMPLERS = {"Resize", "Upsample", "AveragePool", "GlobalAveragePool", "MaxPool"}
NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class Reuse:
    """What a member takes from the one before it.

    weights: the member's parameters under their official names (without the member's own name). old, new: grids. epsilon: of LayerNorm.
    """

    weights: Mapping[str, NDArray[np.float32]]
    old: int
    new: int
    epsilon: float = NORM_EPSILON


class DvtSurgery(GraphPass):
    """Insert reuse into member `number` (1-based); `reuse` None = it takes nothing, `hands_on` = it names its own tensors."""

    name = "reuse"

    def __init__(self, number: int, reuse: Reuse | None, hands_on: bool) -> None:
        self.number, self.reuse, self.hands_on = number, reuse, hands_on

    def requires(self, surgery: Surgery) -> str:
        """Weights of the right shapes and the right grid."""
        anatomy, reuse = surgery.anatomy, self.reuse
        if reuse is None:
            return ""
        if anatomy.patches != reuse.new**2 or anatomy.prefix != 1:
            return f"{anatomy.patches} patches and {anatomy.prefix} prefix tokens, expected {reuse.new**2} and 1"
        maps = len(anatomy.blocks) * anatomy.blocks[0].heads
        found = reuse.weights["relation_reuse_conv.0.weight"].shape[1]
        if found != maps:
            return f"relation_reuse_conv reads {found} maps, the member has {maps}"
        wide = anatomy.width + reuse.weights["blocks.0.feature_resuse_mlp.1.fc2.weight"].shape[0]
        bad = [b.index for b in anatomy.blocks if reuse.weights[f"blocks.{b.index}.norm2.weight"].shape != (wide,)]
        return f"norm2 of block {bad[0]} is not over {wide} channels" if bad else ""

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        relations: Tensor | None = None
        tokens: Tensor | None = None
        if self.reuse is not None:
            handed, tokens = self._inputs(surgery, self.reuse)
            relations = self._resampled(surgery, self.reuse, handed)
        logits = [self._block(surgery, block, tokens, relations) for block in surgery.anatomy.blocks]
        if self.hands_on:
            self._outputs(surgery, logits)
        return True

    def _inputs(self, surgery: Surgery, reuse: Reuse) -> tuple[Tensor, Tensor]:
        """Graph inputs r [B,LH,n,n] and z [B,n,C] of the model before."""
        batch, before = dims(surgery.graph.inputs[0])[0], reuse.old**2 + 1
        maps = len(surgery.anatomy.blocks) * surgery.anatomy.blocks[0].heads
        tokens = variable(f"z{self.number - 1}", FLOAT, [batch, before, surgery.anatomy.width])
        relations = variable(f"r{self.number - 1}", FLOAT, [batch, maps, before, before])
        surgery.graph.inputs += [tokens, relations]
        return relations, tokens

    def _resampled(self, surgery: Surgery, reuse: Reuse, relations: Tensor) -> Tensor:
        """Conv1x1, GELU, Conv1x1 at the low resolution, then Pm R Pm^T: [B,LH,N,N]."""
        emit = surgery.emitter.child("relation")
        hidden = gelu(emit, self._convolve(emit, reuse, relations, "relation_reuse_conv.0"), "gelu")
        mixed = self._convolve(emit, reuse, hidden, "relation_reuse_conv.2")
        matrix = relation_matrix(reuse.old, reuse.new)
        rows = emit.op("MatMul", [emit.constant(matrix, FLOAT, "resample/rows"), mixed], "queries")
        return emit.op("MatMul", [rows, emit.constant(matrix.T, FLOAT, "resample/columns")], "resampled")

    def _convolve(self, emit: Emitter, reuse: Reuse, x: Tensor, name: str) -> Tensor:
        parameters = [emit.constant(reuse.weights[f"{name}.{part}"], FLOAT, f"{name}.{part}") for part in ("weight", "bias")]
        return emit.op("Conv", [x, *parameters], name, kernel_shape=[1, 1])

    def _block(self, surgery: Surgery, block: Block, tokens: Tensor | None, relations: Tensor | None) -> Tensor:
        """Rewrite one block; returns its attention logits [B,H,N,N], what it was given included."""
        emit = surgery.emitter.child(f"block{block.index}/attn")
        h, bias = surgery.tensors[block.h], None
        if relations is not None:
            bias = emit.slice(relations, block.index * block.heads, (block.index + 1) * block.heads, 1, "reused")
        context = attend(surgery, emit, block, queries(emit, block, h), keys(emit, block, h), values(emit, block, h), bias)
        replace_attention(surgery, block, project(emit, block, context))
        if self.reuse is not None:
            self._feed_forward(surgery, self.reuse, block, given(tokens))
        softmax = next(node for node in surgery.graph.nodes if node.name == f"{emit.prefix}/probabilities")
        return softmax.inputs[0]

    def _feed_forward(self, surgery: Surgery, reuse: Reuse, block: Block, tokens: Tensor) -> None:
        """fc1(LN2([y | C_l])) in place of fc1(LN2(y))."""
        emit, at = surgery.emitter.child(f"block{block.index}/mlp"), f"blocks.{block.index}"
        weights, maker = reuse.weights, f"{at}.feature_resuse_mlp"
        normed = self._norm(emit, reuse, tokens, f"{maker}.0", "features/norm")
        hidden = gelu(emit, self._linear(emit, reuse, normed, f"{maker}.1.fc1", "features/fc1"), "features/gelu")
        made = self._linear(emit, reuse, hidden, f"{maker}.1.fc2", "features/fc2")
        matrix = surgery.emitter.constant(feature_matrix(reuse.old, reuse.new), FLOAT)
        context = emit.op("MatMul", [matrix, made], "features/resampled")
        attended = surgery.tensors[block.attended]
        wide = emit.op("Concat", [attended, context], "wide", axis=2)
        normed = self._norm(emit, reuse, wide, f"{at}.norm2", "norm")
        fresh = emit.linear(normed, weights[f"{at}.mlp.fc1.weight"].T, weights[f"{at}.mlp.fc1.bias"], "fc1")
        surgery.replace(hidden_layer(attended, block), fresh)

    def _norm(self, emit: Emitter, reuse: Reuse, x: Tensor, name: str, label: str) -> Tensor:
        parameters = [emit.constant(reuse.weights[f"{name}.{part}"], FLOAT, f"{label}.{part}") for part in ("weight", "bias")]
        return emit.op("LayerNormalization", [x, *parameters], label, axis=-1, epsilon=reuse.epsilon)

    def _linear(self, emit: Emitter, reuse: Reuse, x: Tensor, name: str, label: str) -> Tensor:
        return emit.linear(x, reuse.weights[f"{name}.weight"].T, reuse.weights[f"{name}.bias"], label)

    def _outputs(self, surgery: Surgery, logits: list[Tensor]) -> None:
        """Outputs z [B,N,C], tokens before the final norm, and r [B,LH,N,N], all logits before their softmax."""
        anatomy, emit = surgery.anatomy, surgery.emitter.child("reuse")
        batch, count = dims(surgery.graph.inputs[0])[0], anatomy.patches + anatomy.prefix
        tokens = emit.op("Identity", [surgery.tensors[anatomy.blocks[-1].output]], "tokens")
        relations = emit.op("Concat", logits, "relations", axis=1)
        tokens.name, tokens.shape = f"z{self.number}", [batch, count, anatomy.width]
        relations.name, relations.shape = f"r{self.number}", [batch, len(logits) * anatomy.blocks[0].heads, count, count]
        surgery.graph.outputs += [tokens, relations]

    def ensures(self, surgery: Surgery) -> str:
        """Every block reuses, nothing resamples by an operator, and the outputs are there."""
        ops = [node.op for node in surgery.graph.nodes]
        if refused := RESAMPLERS.intersection(ops):
            return f"the graph resamples by {sorted(refused)[0]}"
        reused = sum(node.name.endswith("/mlp/wide") for node in surgery.graph.nodes)
        wanted = len(surgery.anatomy.blocks) if self.reuse is not None else 0
        if reused != wanted:
            return f"{reused} of {wanted} blocks reuse features"
        outputs = 3 if self.hands_on else 1
        return "" if len(surgery.graph.outputs) == outputs else f"{len(surgery.graph.outputs)} outputs instead of {outputs}"


def gelu(emit: Emitter, x: Tensor, label: str) -> Tensor:
    """The erf GELU, written the way opset 18 can and runtimes recognise."""
    inner = emit.op("Erf", [emit.op("Mul", [x, emit.constant(math.sqrt(0.5), FLOAT)], f"{label}/scaled")], f"{label}/erf")
    plus = emit.op("Add", [inner, emit.constant(1.0, FLOAT)], f"{label}/plus")
    return emit.op("Mul", [emit.op("Mul", [x, plus], f"{label}/product"), emit.constant(0.5, FLOAT)], label)


def hidden_layer(attended: Tensor, block: Block) -> Tensor:
    """The tensor [B,N,hidden] that fc1 of a plain block writes, found below the attention residual."""
    frontier, seen = [node for node in attended.outputs if node.outputs[0].name != block.output], 0
    while frontier and seen < 64:
        node, seen = frontier.pop(0), seen + 1
        weight = value_of(node.inputs[1]) if node.op in ("MatMul", "Gemm") and len(node.inputs) > 1 else None
        if weight is not None:
            output = node.outputs[0]
            reader = output.outputs[0] if len(output.outputs) == 1 else None
            biased = reader is not None and reader.op == "Add" and any(value_of(t) is not None for t in reader.inputs)
            return reader.outputs[0] if biased and reader is not None else output
        frontier.extend(consumer for output in node.outputs for consumer in output.outputs)
    raise KeyError(f"fc1 of block {block.index}")
