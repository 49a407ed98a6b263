"""Find the transformer blocks of a dense ViT graph, whichever exporter wrote it.

Anchors are the attention Softmax nodes. From each one the walk goes up to the linear maps of queries, keys and values and
down to the projection and the residual sum. Nothing is guessed: what does not match is an error that names the block, the
node and the pattern expected.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vitprune.errors import ExportError
from vitprune.graph.anatomy.attention_pool import AttentionPool, pools_of
from vitprune.graph.anatomy.embedding import embedding
from vitprune.graph.anatomy.layout import prefix_of
from vitprune.graph.anatomy.mlp import mlp
from vitprune.graph.anatomy.parallel import Beside, beside_of
from vitprune.graph.anatomy.positions import of_patches, same
from vitprune.graph.anatomy.projections import (
    PASS_THROUGH,
    HeadNorm,
    Linear,
    fail,
    producer,
    walk_up,
)
from vitprune.graph.anatomy.readers import Mean, readers_of
from vitprune.graph.anatomy.static import over_pairs, static_copy, value_of
from vitprune.graph.anatomy.taps import shape_behind, taps_of, token_output
from vitprune.graph.anatomy.walking import (
    ancestors_within,
    attention_product,
    before_moves,
    down_to_projection,
    down_to_residual,
    only_consumer,
    tensor_named,
)
from vitprune.graph.sorting import toposort
from vitprune.support.attention import PositionBias, Rotation

NORM_PARTS = {"LayerNormalization", "ReduceMean", "Sub", "Pow", "Mul", "Add", "Sqrt", "Div", "Reciprocal"} | PASS_THROUGH


@dataclass(frozen=True)
class Block:
    """One pre-norm transformer block; tensors by name in the original graph.

    x: block input [B,N,C]. h: LN1(x). query, key, value: linear maps of h (weights [C,H*d]). scale: factor on the attention
    logits. context: input of the projection [B,N,H*d]. projected: the projection's output. attended: sum of x and the attention branch
    (residual_node makes it). output: the block's output. attention_branch, mlp_branch: what the two residual sums add. rotation: of
    queries and keys. position_bias: on the logits. context_norm: before the projection. beside: the MLP where it reads h too, beside the
    attention; attended is the output then, and mlp_branch what the MLP adds.
    """

    index: int
    heads: int
    head_dim: int
    tokens: int
    x: str
    h: str
    query: Linear
    key: Linear
    value: Linear
    scale: float
    query_norm: HeadNorm | None
    key_norm: HeadNorm | None
    projection: Linear
    projected: str
    residual_node: str
    attended: str
    output: str
    mlp_hidden: int
    attention_branch: str
    mlp_branch: str
    rotation: Rotation | None = field(default=None, kw_only=True)
    position_bias: PositionBias | None = field(default=None, kw_only=True)
    beside: Beside | None = field(default=None, kw_only=True)
    context_norm: HeadNorm | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Anatomy:
    """Blocks and outer parts of a dense ViT graph.

    embed_macs: MACs from the image to the tokens. reads_cls: whether the head reads token 0. means: averages over tokens after the
    last block. slices: nodes behind the last block that take all tokens from one on, with its number. keys: rows of keys
    where they do not follow the tokens, else 0. taps: of features, blocks whose output is read behind the blocks; output_shapes: of
    the graph's outputs, without the batch. pools: by attention, behind the last block.
    """

    input: str
    image_shape: tuple[int, ...]
    outputs: tuple[str, ...]
    blocks: tuple[Block, ...]
    patches: int
    prefix: int
    width: int
    embed_macs: int
    classes: int
    reads_cls: bool
    means: tuple[Mean, ...] = ()
    slices: dict[str, int] = field(default_factory=dict)
    keys: int = 0
    taps: tuple[int, ...] = ()
    output_shapes: tuple[tuple[int, ...], ...] = ()
    pools: tuple[AttentionPool, ...] = ()


def check_norm(h: Any, x_name: str, index: int) -> None:
    """H must be a norm of x: only norm operators between them."""
    frontier, seen = [h], set()
    while frontier:
        tensor = frontier.pop()
        if tensor.name == x_name or tensor.name in seen or value_of(tensor) is not None:
            continue
        seen.add(tensor.name)
        node = producer(tensor)
        if node is None or node.op not in NORM_PARTS or len(seen) > 16:
            raise fail(
                index,
                node if node is not None else f"tensor '{tensor.name}'",
                "a LayerNorm of the block's input before q, k, v (pre-norm)",
            )
        frontier.extend(node.inputs)


def _block(index: int, softmax: gs.Node, batch: int, opset: int) -> Block:
    shape = [int(size) for size in softmax.outputs[0].shape]
    heads, tokens = shape[1] if len(shape) == 4 else shape[0] // batch, shape[-1]
    product, scale, bias = attention_product(softmax, index)
    reader = only_consumer(softmax.outputs[0], index)
    while reader.op in PASS_THROUGH:
        reader = only_consumer(reader.outputs[0], index)
    if reader.op != "MatMul" or reader.inputs[1].shape is None:
        raise fail(index, reader, "A·V as the only reader of the attention probabilities")
    head_dim = int(reader.inputs[1].shape[-1])
    query = walk_up(product.inputs[0], index, heads, head_dim, tokens, opset)
    key = walk_up(product.inputs[1], index, heads, head_dim, tokens, opset)
    if bias is not None and len(bias) not in (1, heads):
        raise fail(index, softmax, f"position biases of {heads} heads, found {len(bias)}")
    if not same(query.rotation, key.rotation):
        raise fail(index, product, "queries and keys with the same rotary positions")
    value = walk_up(reader.inputs[1], index, heads, head_dim)
    sources = {query.linear.source, key.linear.source, value.linear.source}
    if len(sources) != 1:
        raise fail(index, softmax, f"queries, keys and values of the same rows (self-attention), found {sorted(sources)}")
    if value.scale != 1.0 or value.norm is not None:
        raise fail(index, reader, "values straight from their linear map")
    projection, projected, context_norm = down_to_projection(reader, index)
    if context_norm is not None and context_norm.weight.size != heads * head_dim:
        raise fail(index, reader, f"a norm over all {heads * head_dim} channels before the projection")
    residual = down_to_residual(projected, index)
    branch = ancestors_within(projected, residual)
    x = next((t for t in residual.inputs if t.name not in branch), None)
    if x is None:
        raise fail(index, residual, "a residual sum of the block's input and the attention branch")
    h = before_moves(tensor_named(query.linear.source, softmax), [batch, tokens])
    beside = beside_of(x, h, index)
    if beside is not None:
        summed = residual.outputs[0]
        residual = down_to_residual(summed, index)
        branch = ancestors_within(summed, residual)
        x = next((t for t in residual.inputs if t.name not in branch), None)
        if x is None:
            raise fail(index, residual, "a residual sum of the block's input and both branches")
    for tensor in (h, projected):
        if list(tensor.shape or ())[:2] != [batch, tokens]:
            raise fail(
                index, f"tensor '{tensor.name}' {tensor.shape}", f"rows of {tokens} tokens with the batch in front, [B,N,C]"
            )
    check_norm(h, x.name, index)
    if beside is None:
        hidden, output, mlp_branch = mlp(residual.outputs[0], index)
    else:
        hidden, output, mlp_branch = int(beside.linear.weight.shape[1]), residual.outputs[0].name, beside.output
    return Block(
        index=index, heads=heads, head_dim=head_dim, tokens=tokens, x=x.name, h=h.name,
        query=query.linear, key=key.linear, value=value.linear, scale=scale * query.scale * key.scale,
        query_norm=query.norm, key_norm=key.norm, projection=projection, projected=projected.name,
        residual_node=residual.name, attended=residual.outputs[0].name, output=output, mlp_hidden=hidden,
        attention_branch=next(tensor.name for tensor in residual.inputs if tensor is not x), mlp_branch=mlp_branch,
        rotation=query.rotation, context_norm=context_norm, beside=beside,
        position_bias=None if bias is None else PositionBias(np.broadcast_to(bias, (heads, *bias.shape[1:])).copy(), 0),
    )  # fmt: skip


def _placed(block: Block, prefix: int) -> Block:
    """A block with the rotation of its patches alone, and the number of prefix tokens where positions bias its logits."""
    if block.position_bias is not None:
        block = replace(block, position_bias=replace(block.position_bias, prefix=prefix))
    if block.rotation is None:
        return block
    rotation = of_patches(block.rotation, prefix)
    if rotation is None:
        raise fail(block.index, f"tensor '{block.h}'", f"{prefix} prefix tokens that are left out of the rotation")
    return replace(block, rotation=rotation)


def find(model: onnx.ModelProto, features: bool = False) -> Anatomy:
    """Anatomy of a dense ViT graph.

    Args:
        model: the graph. features: whatever stands behind the blocks reads all tokens in their places, so it need not be understood;
            the first prefix token, where there are any, is then held to be the class token.

    Raises:
        ExportError: VP320 open dimensions, VP321 not a ViT, VP322 a block or head of another form (named), VP338 what stands behind
            the blocks reads more than their outputs.
    """
    graph = static_copy(model)
    toposort(graph)
    softmaxes = [
        node for node in graph.nodes
        if node.op == "Softmax" and over_pairs(node)
    ]  # fmt: skip
    if not softmaxes:
        counts: dict[str, int] = {}
        for node in graph.nodes:
            counts[node.op] = counts.get(node.op, 0) + 1
        common = ", ".join(f"{n} {op}" for op, n in sorted(counts.items(), key=lambda item: -item[1])[:4])
        raise ExportError(
            321,
            "this graph is not a Vision Transformer with explicit attention",
            cause=f"no Softmax over [batch, heads, tokens, tokens] was found (it has {common or 'no nodes'})",
            next_step="give the ONNX of a dense ViT, exported without fused attention nodes",
        )
    batch = int(graph.inputs[0].shape[0])
    blocks = tuple(_block(index, softmax, batch, graph.opset) for index, softmax in enumerate(softmaxes))
    tensors = graph.tensors()
    embedded = embedding(graph, tensors[blocks[0].x])
    if embedded is None:
        raise fail(None, "the input side", "a patch embedding, by a Conv or a MatMul with a constant")
    patches, embed_macs = embedded
    prefix = prefix_of(graph, tensors[blocks[0].x], patches)
    blocks = tuple(_placed(block, prefix) for block in blocks)
    image = graph.inputs[0]
    if features:
        taps = taps_of(graph, [block.output for block in blocks], [block.h for block in blocks])
        return Anatomy(
            input=image.name, image_shape=tuple(int(d) for d in image.shape[1:]), outputs=tuple(o.name for o in graph.outputs),
            blocks=blocks, patches=patches, prefix=prefix, width=int(tensors[blocks[0].x].shape[-1]), embed_macs=embed_macs, classes=0,
            reads_cls=prefix > 0, taps=taps, output_shapes=tuple(shape_behind(output) for output in graph.outputs),
        )  # fmt: skip
    readers = readers_of(graph, tensors[blocks[-1].output], prefix, pools_of(graph, tensors[blocks[-1].output]))
    if readers.whole:
        raise token_output(readers.whole[0])
    return Anatomy(
        input=image.name, image_shape=tuple(int(d) for d in image.shape[1:]), outputs=tuple(o.name for o in graph.outputs),
        blocks=blocks, patches=patches, prefix=prefix, width=int(tensors[blocks[0].x].shape[-1]),
        embed_macs=embed_macs, classes=int(graph.outputs[0].shape[-1]) if graph.outputs[0].shape else 0,
        reads_cls=0 in readers.prefix_rows, means=tuple(readers.means), slices=readers.slices,
        pools=tuple(readers.pools),
    )  # fmt: skip
