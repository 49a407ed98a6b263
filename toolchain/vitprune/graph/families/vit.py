"""Plain ViTs: blocks of norm, attention, norm and MLP over one sequence of tokens."""

from __future__ import annotations

import onnx

from vitprune.graph import canonical as attention
from vitprune.graph.anatomy.find import find
from vitprune.graph.families.base import Family
from vitprune.graph.passes.base import Surgery
from vitprune.graph.passes.heads import Heads
from vitprune.graph.passes.outputs import Outputs
from vitprune.graph.passes.pooling import Pooling


def _canonical(surgery: Surgery) -> None:
    for block in surgery.anatomy.blocks:
        attention.canonical(surgery, block)


def _matches(model: onnx.ModelProto) -> bool:
    """Every graph that no other family claims; `find` names what it does not understand."""
    return True


FAMILY = Family("ViT", "linear projections", _matches, find, _canonical, (Heads, Pooling, Outputs))
