"""Token rows of all images behind each other, without pads, from the first site on that keeps different numbers of them.

Pads cost what tokens cost: at batch 8 every image pays for the one that keeps most. Here the rows of a batch lie in one matrix [T,C];
norms, linear maps, activations and residual sums do not know whose row it is, and attention is one `PackedAttention` over the images'
segments. Whatever is not known to work row by row (scores, selections, merging, the head) gets its tensor with pads as before, so a
graph that is not understood becomes slower, not wrong. For ONNX Runtime alone: it uses NonZero, which builders of NVIDIA refuse.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from vitprune.graph import types
from vitprune.graph.anatomy.static import scalar_of, value_of
from vitprune.graph.emit import FLOAT, INT64, Emitter
from vitprune.graph.lowering.attention import above
from vitprune.graph.lowering.layouts import Layout
from vitprune.graph.lowering.linear import bias_of
from vitprune.graph.lowering.row_wise import by_rows, constant_axes
from vitprune.graph.ragged import Ragged, stored
from vitprune.graph.sorting import toposort
from vitprune.graph.types import Graph, Node, Tensor, dims, given, redirect
from vitprune.ops.packed_attention import NAME
from vitprune.ops.token_sample import DOMAIN


@dataclass
class Rows:
    """What is known of a tensor whose first axes are images and tokens: its layout, its rank with both axes, whether it is packed."""

    tensor: Tensor
    layout: Layout
    rank: int
    packed: bool


def pack(graph: Graph, model: onnx.ModelProto) -> dict[str, int]:
    """Pack a graph with fused attention, which is changed.

    Args:
        graph: the imported model after `fuse_attention`. model: what it was imported from, with its places (`graph/ragged.py`).

    Returns:
        Counts for the report: `attention` packed, `unpacked` tensors that something needs with pads; zeros where nothing was done.
    """
    prefix, places = stored(model)
    packing = _Packing(graph, prefix)
    toposort(graph)
    tensors = graph.tensors()
    wanted = {one.tokens: one for one in places if one.tokens in tensors and (not one.keep or one.keep in tensors)}
    if any(one.keep for one in wanted.values()):
        for tensor in graph.inputs:
            packing.enter(tensor, wanted, tensors)
        for node in list(graph.nodes):
            packing.step(node, wanted, tensors)
        packing.finish()
        graph.cleanup(remove_unused_graph_inputs=False)
        toposort(graph)
        packing.counts["unpacked"] = sum(
            node.name.startswith("packed/") and node.name.endswith("/padded") for node in graph.nodes
        )
    return packing.counts


class _Packing:
    """One walk through a sorted graph."""

    def __init__(self, graph: Graph, prefix: int) -> None:
        self.graph, self.prefix = graph, prefix
        self.emit = Emitter(graph, "packed")
        self.known: dict[int, Rows] = {}
        self.by_keep: dict[str, Layout] = {}
        self.padded: dict[int, Tensor] = {}
        self.joined: dict[int, Tensor] = {}
        self.gathers: dict[tuple[int, int], Tensor] = {}
        self.counts = {"attention": 0, "unpacked": 0}

    def enter(self, tensor: Tensor, wanted: dict[str, Ragged], tensors: dict[str, Tensor]) -> None:
        """Note a place where token rows are born."""
        place = wanted.get(tensor.name)
        if place is None:
            return
        if place.keep not in self.by_keep:
            scope = self.emit.child(f"layout{len(self.by_keep)}")
            keep = tensors[place.keep] if place.keep else None
            self.by_keep[place.keep] = Layout(scope, keep, self.prefix, None if keep is not None else tensor)
        self.known[id(tensor)] = Rows(tensor, self.by_keep[place.keep], 3, packed=False)

    def step(self, node: Node, wanted: dict[str, Ragged], tensors: dict[str, Tensor]) -> None:
        """One node: pack it where it works row by row, else give it what it reads with pads."""
        born = [tensor for tensor in node.outputs if tensor.name in wanted]
        if born:
            self._birth(node, born, wanted, tensors)
        elif node.op == "MultiHeadAttention" and self._attention(node):
            self.counts["attention"] += 1
        elif not self._row_wise(node) and not self._prefix_rows(node):
            self._with_pads(node)

    def _birth(self, node: Node, born: list[Tensor], wanted: dict[str, Ragged], tensors: dict[str, Tensor]) -> None:
        """Rows of which images have different numbers from here on: their readers get them packed."""
        readers = {id(tensor): list(tensor.outputs) for tensor in born}
        source = self._gathered_from(node)
        if source is None:
            self._with_pads(node)
        for tensor in born:
            self.enter(tensor, wanted, tensors)
            layout = self.known[id(tensor)].layout
            if layout.keep is None:
                continue  # nobody has left yet
            label = f"tokens{len(self.known)}"
            if source is None:
                packed = layout.pack(tensor, 3, label)
                self.padded[id(packed)] = tensor
            else:
                packed = self._gathered(node, source, layout, label)
            redirect(readers[id(tensor)], tensor, packed)
            self.known[id(packed)] = Rows(packed, layout, 3, packed=True)

    def _gathered_from(self, node: Node) -> Rows | None:
        """What a gather of token rows reads from, where its layout is known and the node is not needed for itself."""
        if (
            node.op != "GatherND"
            or node.attrs.get("batch_dims") != 1
            or any(node.outputs[0] is one for one in self.graph.outputs)
        ):
            return None
        return self.known.get(id(node.inputs[0]))

    def _gathered(self, node: Node, source: Rows, layout: Layout, label: str) -> Tensor:
        """Packed rows of `layout`, straight from the rows of `source`; the node gathers rows of every image by its own numbers."""
        key = (id(node.inputs[1]), id(source.layout))
        if key not in self.gathers:
            emit = self.emit.child(label)
            numbers = emit.op("Squeeze", [node.inputs[1], emit.constant([2])], "numbers", dtype=INT64)
            found = emit.op("GatherElements", [source.layout.place(), numbers], "found", dtype=INT64, axis=1)
            flat = emit.op("Reshape", [found, emit.constant([-1])], "flat", dtype=INT64)
            self.gathers[key] = emit.op("Gather", [flat, layout.rows()], "rows", dtype=INT64, axis=0)
        x = self._packed(node.inputs[0])
        return self.emit.op("Gather", [x, self.gathers[key]], label, dtype=FLOAT, axis=0)

    def _packed(self, tensor: Tensor) -> Tensor:
        """A tensor of known layout without pads."""
        rows = self.known[id(tensor)]
        if rows.packed:
            return tensor
        if id(tensor) not in self.joined:
            self.joined[id(tensor)] = rows.layout.pack(tensor, rows.rank, f"joined{len(self.joined)}")
        return self.joined[id(tensor)]

    def _with_pads(self, node: Node) -> None:
        """Let a node read packed tensors with pads."""
        node.inputs = [self._unpacked(tensor) if self._is_packed(tensor) else tensor for tensor in node.inputs]

    def _is_packed(self, tensor: Tensor) -> bool:
        return id(tensor) in self.known and self.known[id(tensor)].packed

    def _unpacked(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.padded:
            self.padded[id(tensor)] = self.known[id(tensor)].layout.unpack(tensor, f"unpacked{len(self.padded)}")
        return self.padded[id(tensor)]

    def _row_wise(self, node: Node) -> bool:
        """Pack a node that works row by row; note the layout of one that would, where its rows have pads."""
        found = [self.known[id(tensor)] for tensor in node.inputs if id(tensor) in self.known]
        if not found or any(one.layout is not found[0].layout for one in found):
            return False
        ranks = [self.known[id(tensor)].rank if id(tensor) in self.known else 0 for tensor in node.inputs]
        packed = [one.packed for one in found]
        change = by_rows(node, ranks)
        if change is None:
            return False
        alone = all(id(tensor) in self.known or types.is_constant(tensor) for tensor in node.inputs if tensor.name)
        if alone and all(packed):
            change.carry_out(node, self.emit)
        elif any(packed):
            self._with_pads(node)
        for output in node.outputs:
            self.known[id(output)] = Rows(output, found[0].layout, change.rank, packed=alone and all(packed))
            if alone and all(packed):
                output.shape = None
        return True

    def _prefix_rows(self, node: Node) -> bool:
        """Reading prefix tokens, which every image has, needs no pads."""
        if not node.inputs or not self._is_packed(node.inputs[0]):
            return False
        numbers = self._prefix_numbers(node)
        if numbers is None:
            return False
        layout = self.known[id(node.inputs[0])].layout
        scope = self.emit.child(f"prefix{len(self.graph.nodes)}")
        at = scope.op("Add", [layout.starts(), scope.constant(numbers)], "rows", dtype=INT64)
        if node.op == "Gather" and given(value_of(node.inputs[1])).ndim == 0:
            at = scope.op("Squeeze", [at, scope.constant([1])], "row", dtype=INT64)
        node.op, node.attrs, node.inputs = "Gather", {"axis": 0}, [node.inputs[0], at]
        return True

    def _prefix_numbers(self, node: Node) -> list[int] | None:
        """The prefix tokens that a node takes, and nothing but them."""
        named = [_whole(tensor) for tensor in node.inputs[1:]]
        if node.op == "Gather" and node.attrs.get("axis", 0) == 1 and named[0] is not None:
            numbers = named[0]
        elif node.op == "Slice" and constant_axes(node) == [1] and named[0] and named[1] and (len(named) < 4 or named[3] == [1]):
            numbers = list(range(named[0][0], min(named[1][0], self.prefix + 1))) if named[0][0] >= 0 else []
        else:
            return None
        return numbers if numbers and all(0 <= one < self.prefix for one in numbers) else None

    def _attention(self, node: Node) -> bool:
        """MultiHeadAttention of rows whose layouts are known -> PackedAttention; not where every image has all of its rows."""
        query, key, value = node.inputs[:3]
        if any(id(tensor) not in self.known or self.known[id(tensor)].rank != 3 for tensor in (query, key, value)):
            return False
        asked, seen = self.known[id(query)].layout, self.known[id(key)].layout
        if self.known[id(value)].layout is not seen or (asked.keep is None and seen.keep is None):
            return False
        known, bias = self._bias(node, seen)
        if not known:
            return False
        inputs = [self._packed(query), self._packed(key), self._packed(value), asked.ends(), seen.ends()]
        output = node.outputs[0]
        node.outputs.clear()
        attributes = {"num_heads": node.attrs["num_heads"], "scale": node.attrs.get("scale", 1.0)}
        inputs += [] if bias is None else [bias]
        made = types.node(NAME, f"{node.name}/packed", inputs, [output], domain=DOMAIN, attrs=attributes)
        self.graph.nodes.append(made)
        output.shape = None
        self.known[id(output)] = Rows(output, asked, 3, packed=True)
        return True

    def _bias(self, node: Node, seen: Layout) -> tuple[bool, Tensor | None]:
        """Whether what is added to the logits is one value per key, and these values [T]; None where they only hide pads."""
        mask, wide = (node.inputs[index] if len(node.inputs) > index and node.inputs[index].name else None for index in (4, 5))
        if len(node.inputs) > 3 and node.inputs[3].name or (mask is not None and wide is not None):
            return False, None
        if mask is None and wide is None:
            return True, None
        flat = _below_mask(mask) if mask is not None else _below_expand(given(wide))
        if flat is None or len(dims(flat)) not in (0, 2):
            return False, None
        if seen.keep is not None and _hides_only(flat, seen.keep):
            return True, None
        if id(flat) not in self.joined:
            self.joined[id(flat)] = seen.pack(flat, 2, f"bias{len(self.joined)}")
        return True, self.joined[id(flat)]

    def finish(self) -> None:
        """Outputs of the graph keep their names and their pads; linear maps of rows become one Gemm."""
        for place, tensor in enumerate(self.graph.outputs):
            if self._is_packed(tensor):
                padded = self._unpacked(tensor)
                tensor.name, padded.name = f"{tensor.name}/packed", tensor.name
                self.graph.outputs[place] = padded
        for node in [one for one in self.graph.nodes if one.op == "MatMul" and self._is_packed(one.inputs[0])]:
            _gemm(self.graph, node)


def _whole(tensor: Tensor) -> list[int] | None:
    """Whole numbers of a constant, at most one axis of them."""
    values = value_of(tensor)
    return None if values is None or values.ndim > 1 or values.dtype.kind != "i" else [int(one) for one in values.reshape(-1)]


def _below_mask(mask: Tensor) -> Tensor | None:
    """Of a padding mask int32 [B,N] the bias [B,N] that it was made of: `Cast(bias > -0.5)`."""
    cast = above(mask, "Cast")
    greater = above(cast.inputs[0], "Greater") if cast is not None else None
    return greater.inputs[0] if greater is not None and scalar_of(greater.inputs[1]) == -0.5 else None


def _below_expand(wide: Tensor) -> Tensor | None:
    """Of a bias per query row the bias [B,N] that was repeated."""
    expand = above(wide, "Expand")
    column = above(expand.inputs[0], "Unsqueeze") if expand is not None else None
    return column.inputs[0] if column is not None else None


def _hides_only(flat: Tensor, keep: Tensor) -> bool:
    """Whether a bias [B,N] is zero on every row that is there: `-1e4 * (not keep)` behind zeros for the prefix."""
    concat = above(flat, "Concat")
    product = above(concat.inputs[-1] if concat is not None else flat, "Mul")
    cast = above(product.inputs[0], "Cast") if product is not None else None
    absent = above(cast.inputs[0], "Not") if cast is not None else None
    return absent is not None and absent.inputs[0] is keep


def _gemm(graph: Graph, matmul: Node) -> None:
    """MatMul of packed rows and the Add of its bias -> Gemm, which ONNX Runtime does only for known shapes."""
    bias = bias_of(matmul)
    if bias is None:
        return
    add = matmul.outputs[0].outputs[0]
    output = add.outputs[0]
    add.outputs.clear()
    graph.nodes.append(types.node("Gemm", f"{matmul.name}/gemm", [*matmul.inputs, bias], [output]))
