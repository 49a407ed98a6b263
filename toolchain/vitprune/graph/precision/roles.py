"""Which nodes of a pruned graph belong to which layer: linear maps of q, k, v, projection and MLP, and the products of attention.

Attention is written by the surgeries, whose node names say what a node is; the MLP is the dense graph's and is found by its place
between LN2 and the second residual sum. Nothing that scores or decides is among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vitprune.errors import RecipeError
from vitprune.graph.anatomy.feed_forward import first_linear, folded, not_understood, second_linear
from vitprune.graph.passes.base import Surgery
from vitprune.graph.types import Node, Tensor, constant, is_constant

# Computed by a layer, and what merely moves its values on: moved in the half type they are half the bytes, and no value changes.
MAPS = r"(?:q|k|v|cls_query)/matmul|q|k|v|cls_query"
PRODUCTS = r"logits|context/heads"
MOVES = (
    r"(?:query|key|value)/(?:heads|transpose)|context/transpose|context|(?:q|k|cls_query)/merge|(?:q|k|cls_query)/split"
    r"|h/kept|cls"
)
ATTENTION = re.compile(rf"vitprune/block(\d+)/(?:[a-z_0-9]+/)*?(?:attn|prune|score|merge|all)/(?:{MAPS}|{PRODUCTS}|{MOVES})")
SOFTMAX = re.compile(r"vitprune/block(\d+)/attn/probabilities")
PROJECTION = re.compile(r"vitprune/block(\d+)/attn/proj(?:/matmul)?")


def layers(surgery: Surgery) -> dict[str, str]:
    """Layer (`vitprune.support.precision.layer_names`) of every node that belongs to one, by node name.

    Raises:
        RecipeError: VP115 of `half_softmax`. ExportError: VP316 when a block's MLP is not two linear maps with an activation between them, or attention is not found.
    """
    found: dict[str, str] = dict(half_softmax(surgery))
    for node in surgery.graph.nodes:
        if match := ATTENTION.fullmatch(node.name):
            found[node.name] = f"blocks.{match[1]}.attn.qkv"
        elif match := PROJECTION.fullmatch(node.name):
            found[node.name] = f"blocks.{match[1]}.attn.proj"
    for block in surgery.anatomy.blocks:
        second = second_linear(surgery.tensors[block.mlp_branch], block.index)
        first = first_linear(second[0].inputs[0], block.index)
        found |= {node.name: f"blocks.{block.index}.mlp.fc2" for node in second}
        found |= {node.name: f"blocks.{block.index}.mlp.fc1" for node in first}
        missing = [part for part in ("attn.qkv", "attn.proj") if f"blocks.{block.index}.{part}" not in found.values()]
        if missing:
            raise not_understood(block.index, f"its {missing[0]} was not written by a surgery")
    return found


def half_softmax(surgery: Surgery) -> Iterator[tuple[str, str]]:
    """Softmax nodes that the recipe wants in a half type, with their layers: of blocks without a site, whose probabilities decide nothing.

    Raises:
        RecipeError: VP115 when every block prunes or merges.
    """
    if surgery.recipe.precision.softmax != "half":
        return
    sites, any_found = {site.block for site in surgery.sites}, False
    for node in surgery.graph.nodes:
        match = SOFTMAX.fullmatch(node.name)
        if match and int(match[1]) not in sites:
            any_found = True
            yield node.name, f"blocks.{match[1]}.attn.qkv"
    if not any_found:
        raise RecipeError(
            115,
            "precision.softmax=half is not available here",
            cause=f"{surgery.method.name} prunes or merges in every block, and what decides stays FP32",
            next_step="--set precision.softmax=fp32",
        )


def freeze(surgery: Surgery, nodes: set[str]) -> None:
    """Constants that other nodes hand to the given ones become initialisers, so that they can be typed."""
    for node in surgery.graph.nodes:
        if node.name in nodes:
            node.inputs = list(_frozen(node))


def _frozen(node: Node) -> Iterator[Tensor]:
    for tensor in node.inputs:
        value = None if is_constant(tensor) else folded(tensor)
        yield tensor if value is None else constant(f"{tensor.name}/{len(tensor.outputs)}/{node.name}", value)
