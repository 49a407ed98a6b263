"""ATS sites in the last stage of CvT: query rows leave, convolutions see zeros in the cells of dropped tokens.

Per block: the rows of LN1(x) are put back into their grid cells (zeros elsewhere), the three depthwise convolutions run on the grid,
queries are gathered at the cells of the tokens that stay, and key/value cells without a present token in their kernel window are
hidden by an additive bias. Definition: `vitprune.methods.ats.cvt_reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from vitprune.graph.canonical import attend, keys, project, queries, replace_attention, start, update, values
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.families.cvt import incidence
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.graph.types import Tensor
from vitprune.methods._dropping.sampling import score, token_sample
from vitprune.methods.ats.keys import AtsOptions
from vitprune.methods.base import Site
from vitprune.ops.token_sample import NAME

if TYPE_CHECKING:
    from vitprune.graph.families.cvt import ConvBlock, Convolution, CvtAnatomy


@dataclass
class _Grid:
    """Cells [B,C,H,W] of LN1(x); live float [B,P] and count [B,cells] of present tokens, None while all are present."""

    cells: Tensor
    live: Tensor | None = None
    count: Tensor | None = None


class CvtSurgery(GraphPass):
    """Write every block of the last stage with explicit grids and insert one TokenSample per site."""

    name = "cvt_sampling"

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        sites = {site.block: site for site in surgery.sites}
        for block in surgery.anatomy.blocks:
            self._block(surgery, cast("ConvBlock", block), sites.get(block.index))
        last = surgery.tensors[surgery.anatomy.blocks[-1].output]
        for node in [n for n in last.outputs if n.op == "Split"]:
            # the head splits CLS from a fixed number of tokens
            emit = surgery.emitter.child("head")
            surgery.replace(node.outputs[0], emit.slice(last, 0, 1, 1, "cls"))
        return True

    def _block(self, surgery: Surgery, block: ConvBlock, site: Site[AtsOptions] | None) -> None:
        emit = surgery.emitter.child(f"block{block.index}/attn")
        h = surgery.tensors[block.h]
        cls = emit.slice(h, 0, 1, 1, "cls")
        reduced = block.convolve_key
        window = incidence(_extent(surgery), reduced.weight.shape[2], reduced.stride, reduced.padding)
        grid = self._grid(surgery, emit.child("grid"), h, window)
        surgery.bias = self._bias(emit.child("grid"), grid)
        key = keys(emit, block, _join(emit, cls, _convolve(emit, grid.cells, block.convolve_key, "k"), "k"))
        value = values(emit, block, _join(emit, cls, _convolve(emit, grid.cells, block.convolve_value, "v"), "v"))
        cells = _convolve(emit, grid.cells, block.convolve_query, "q")
        bias, rows = surgery.bias, None
        if site is not None:
            if site.options.bypass:
                surgery.kept.append(None)
            else:
                scoring = surgery.emitter.child(f"block{block.index}/prune")
                significance = score(scoring, surgery, block, site.options.score, h, key, value)
                by_patch = self._lift(scoring, significance, grid, window)
                if surgery.patch is not None:
                    by_patch = scoring.op("GatherElements", [by_patch, surgery.patch], "score/present", axis=1)
                start(surgery, scoring, by_patch)
                index, keep = token_sample(scoring, surgery, site, by_patch)
                rows = update(surgery, scoring, index, keep)
        if surgery.patch is not None:
            column = emit.op("Unsqueeze", [surgery.patch, emit.constant([2])], "q/cells", dtype=INT64)
            cells = emit.take_rows(cells, column, "q/present")
        context = attend(surgery, emit, block, queries(emit, block, _join(emit, cls, cells, "q")), key, value, bias)
        x = None if rows is None else emit.take_rows(surgery.tensors[block.x], rows, "x/kept")
        replace_attention(surgery, block, project(emit, block, context), x)

    def _grid(self, surgery: Surgery, emit: Emitter, h: Tensor, window: np.ndarray) -> _Grid:
        """Put the token rows of h [B,1+K,C] into their cells."""
        height, width = _extent(surgery)
        patches, channels = surgery.anatomy.patches, surgery.anatomy.width
        if surgery.patch is None:
            rows, live, count = emit.slice(h, 1, None, 1, "tokens"), None, None
        else:
            spare = emit.op("Where", [surgery.slots.valid, surgery.slots.patch, emit.constant(patches)], "cell", dtype=INT64)
            present = emit.op("Cast", [surgery.slots.valid], "present", dtype=INT64, to=7)
            number = emit.op(
                "CumSum", [present, emit.constant(1)], "row", dtype=INT64
            )  # row of h: slots are packed, CLS is row 0
            batch = emit.slice(emit.op("Shape", [h], "shape", dtype=INT64), 0, 1, 0, "batch", dtype=INT64)
            shape = emit.op("Concat", [batch, emit.constant([patches + 1])], "shape/cells", dtype=INT64, axis=0)
            none = emit.op("Expand", [emit.constant(np.zeros((1, 1))), shape], "none", dtype=INT64)
            # every present token writes its own cell; pads all write the spare column behind, which is cut off
            wide = emit.op("ScatterElements", [none, spare, number], "rows/wide", dtype=INT64, axis=1)
            row = emit.slice(wide, 0, patches, 1, "rows", dtype=INT64)
            taken = emit.take_rows(h, emit.op("Unsqueeze", [row, emit.constant([2])], "rows/column", dtype=INT64), "taken")
            there = emit.op("Greater", [row, emit.constant(0)], "there", dtype=BOOL)
            live = emit.op("Cast", [there], "live", to=1)
            mask = emit.op("Unsqueeze", [there, emit.constant([2])], "there/column", dtype=BOOL)
            rows = emit.op("Where", [mask, taken, emit.constant(0.0, FLOAT)], "tokens")
            count = emit.op("MatMul", [live, emit.constant(window.T, FLOAT)], "count")
        columns = emit.op("Transpose", [rows], "columns", perm=[0, 2, 1])
        return _Grid(emit.op("Reshape", [columns, emit.constant([0, channels, height, width])], "cells"), live, count)

    def _bias(self, emit: Emitter, grid: _Grid) -> Tensor | None:
        """Key bias [B,1,1,1+cells]: cells without a present token are hidden, CLS is not; None while all are present."""
        if grid.count is None:
            return None
        some = emit.op("Greater", [grid.count, emit.constant(0.5, FLOAT)], "some", dtype=BOOL)
        hidden = emit.op("Where", [some, emit.constant(0.0, FLOAT), emit.constant(-1.0e4, FLOAT)], "hidden")
        zero = emit.op("Mul", [emit.slice(hidden, 0, 1, 1, "first"), emit.constant(0.0, FLOAT)], "zero")
        flat = emit.op("Concat", [zero, hidden], "bias/flat", axis=1)
        return emit.op("Unsqueeze", [flat, emit.constant([1, 2])], "bias")

    def _lift(self, emit: Emitter, significance: Tensor, grid: _Grid, window: np.ndarray) -> Tensor:
        """Share every cell's score equally among the present tokens in its window: [B,cells] -> [B,P]."""
        if grid.count is None:
            divisor = emit.constant(np.maximum(window.sum(axis=1), 1)[None], FLOAT)
        else:
            some = emit.op("Greater", [grid.count, emit.constant(0.5, FLOAT)], "some", dtype=BOOL)
            divisor = emit.op("Where", [some, grid.count, emit.constant(1.0, FLOAT)], "divisor")
        shared = emit.op(
            "MatMul", [emit.op("Div", [significance, divisor], "shares"), emit.constant(window, FLOAT)], "score/patches"
        )
        return shared if grid.live is None else emit.op("Mul", [shared, grid.live], "score/live")

    def ensures(self, surgery: Surgery) -> str:
        """One TokenSample per live site; nothing of the dense blocks' convolutions is left."""
        live = [site for site in surgery.sites if not site.options.bypass]
        found = sum(node.op == NAME for node in surgery.graph.nodes)
        return "" if found == len(live) else f"{found} TokenSample nodes for {len(live)} sites"


def _extent(surgery: Surgery) -> tuple[int, int]:
    """Height and width of the last stage in tokens."""
    return cast("CvtAnatomy", surgery.anatomy).grid


def _convolve(emit: Emitter, cells: Tensor, convolution: Convolution, label: str) -> Tensor:
    """Depthwise convolution of cells [B,C,H,W] as rows [B,cells,C]."""
    size, pad = convolution.weight.shape[2], convolution.padding
    inputs = [
        cells, emit.constant(convolution.weight, FLOAT, f"{label}/conv.weight"), emit.constant(convolution.bias, FLOAT, f"{label}/conv.bias")
    ]  # fmt: skip
    out = emit.op(
        "Conv",
        inputs,
        f"{label}/conv",
        group=len(convolution.weight),
        kernel_shape=[size, size],
        strides=[convolution.stride] * 2,
        pads=[pad] * 4,
    )
    flat = emit.op("Reshape", [out, emit.constant([0, len(convolution.weight), -1])], f"{label}/flat")
    return emit.op("Transpose", [flat], f"{label}/rows", perm=[0, 2, 1])


def _join(emit: Emitter, cls: Tensor, rows: Tensor, label: str) -> Tensor:
    return emit.op("Concat", [cls, rows], f"{label}/joined", axis=1)
