"""What graph surgery has to know of a family of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from vitprune.graph.anatomy.find import Anatomy
from vitprune.graph.passes.base import GraphPass, Surgery


@dataclass(frozen=True)
class Family:
    """A family: how its graphs are told from others, where their blocks are, and what follows the method's pass.

    Attributes:
        name: as in `Method.families`.
        blocks: what its blocks are made of, for people.
        matches: whether a dense graph is one of this family.
        find: its anatomy; raises ExportError VP32x where it is not understood.
        canonical: write every block in canonical form, nothing pruned.
        passes: what runs behind the method's own pass.
        find_dense: its anatomy where features are asked for; None = the family has none. dense_passes: what then follows.
    """

    name: str
    blocks: str
    matches: Callable[[onnx.ModelProto], bool]
    find: Callable[[onnx.ModelProto], Anatomy]
    canonical: Callable[[Surgery], None]
    passes: tuple[type[GraphPass], ...]
    find_dense: Callable[[onnx.ModelProto], Anatomy] | None = None
    dense_passes: tuple[type[GraphPass], ...] = ()
