"""An MLP that stands beside the attention of a block and reads the same normed rows (Dehghani et al., arXiv 2302.05442)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitprune.graph.anatomy.positions import source_of
from vitprune.graph.anatomy.projections import Linear, columns_of, fail, linear_above, producer
from vitprune.graph.anatomy.static import value_of

FURTHEST = 64


@dataclass(frozen=True)
class Beside:
    """Such an MLP; tensors by name in the original graph.

    hidden: its hidden rows [B,N,D] before the activation, which `linear` makes of the normed rows. output: what it adds.
    """

    hidden: str
    output: str
    linear: Linear


def beside_of(other: Any, h: Any, index: int) -> Beside | None:
    """The MLP beside an attention.

    Args:
        other: what the attention's branch is added to. h: the normed rows of the block [B,N,C].

    Raises:
        ExportError: VP322 when it depends on `h` and is no MLP of two linear maps.
    """
    if other is h or not _follows(other, h):  # a block whose norms follow its branches has no norm before them
        return None
    last = linear_above(other)
    inner = next((one for one in _near(other) if last is not None and one.name == last.source), None)
    hidden = source_of(inner) if inner is not None else None
    linear = None if hidden is None else first_linear_map(hidden)
    while linear is None and hidden is not None and hidden is not h:
        hidden = source_of(hidden)
        linear = None if hidden is None else first_linear_map(hidden)
    if hidden is None:
        raise fail(index, f"tensor '{other.name}'", "an MLP of two linear maps beside the attention")
    if linear is None or linear.source != h.name:
        raise fail(index, f"tensor '{hidden.name}'", "hidden rows of the MLP that a linear map makes of the normed rows")
    return Beside(hidden.name, other.name, linear)


def first_linear_map(hidden: Any) -> Linear | None:
    """The linear map, or the columns of a packed one, that makes hidden rows; a bias may be added behind."""
    node, bias = producer(hidden), None
    if node is not None and node.op == "Add" and linear_above(hidden) is None:
        constants = [value for one in node.inputs if (value := value_of(one)) is not None]
        live = [one for one in node.inputs if value_of(one) is None]
        if len(constants) != 1 or len(live) != 1:
            return None
        bias, hidden = constants[0].reshape(-1), live[0]
        node = producer(hidden)
    found = linear_above(hidden)
    if found is None and node is not None:
        found = columns_of(node, hidden)
    if found is None or bias is None:
        return found
    return Linear(found.weight, bias if found.bias is None else found.bias + bias, found.source)


def _follows(tensor: Any, h: Any) -> bool:
    return any(one is h for one in _near(tensor))


def _near(tensor: Any) -> list[Any]:
    """The nearest tensors above one, itself first."""
    found, seen = [tensor], {id(tensor)}
    for one in found:
        node = producer(one)
        if node is None or len(found) > FURTHEST:
            continue
        for above in node.inputs:
            if id(above) not in seen:
                seen.add(id(above))
                found.append(above)
    return found
