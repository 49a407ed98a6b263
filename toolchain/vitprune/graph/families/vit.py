"""Plain ViTs: blocks of norm, attention, norm and MLP over one sequence of tokens."""

from __future__ import annotations

import onnx

from vitprune.graph import canonical as attention
from vitprune.graph.anatomy.find import Anatomy, find
from vitprune.graph.families.base import Family
from vitprune.graph.passes.attention_pooling import AttentionPooling, write_pools
from vitprune.graph.passes.base import Surgery
from vitprune.graph.passes.heads import Heads
from vitprune.graph.passes.outputs import Outputs
from vitprune.graph.passes.pooling import Pooling
from vitprune.graph.passes.unmerge import Unmerge


def _canonical(surgery: Surgery) -> None:
    for block in surgery.anatomy.blocks:
        attention.canonical(surgery, block)
    write_pools(surgery)


def _matches(model: onnx.ModelProto) -> bool:
    """Every graph that no other family claims; `find` names what it does not understand."""
    return True


def _find_dense(model: onnx.ModelProto) -> Anatomy:
    return find(model, features=True)


FAMILY = Family(
    "ViT",
    "linear projections",
    _matches,
    find,
    _canonical,
    (Heads, Pooling, AttentionPooling, Outputs),
    _find_dense,
    (Unmerge, Outputs),
)
