"""ATS sites in the last stage of CvT: query rows leave, convolutions see zeros in the cells of dropped tokens.

Per block: the rows of LN1(x) are put back into their grid cells (zeros elsewhere), the three depthwise convolutions run on the grid,
queries are gathered at the cells of the tokens that stay, and key/value cells without a present token in their kernel window are
hidden by an additive bias. Definition: `vitprune.methods.ats.cvt_reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitprune.graph.canonical import attend, keys, project, queries, replace_attention, start, update, values
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.families.cvt import incidence
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.methods._dropping.sampling import score, token_sample
from vitprune.methods.ats.keys import AtsOptions
from vitprune.methods.base import Site
from vitprune.ops.token_sample import NAME


@dataclass
class _Grid:
    """Cells [B,C,H,W] of LN1(x); live float [B,P] and count [B,cells] of present tokens, None while all are present."""

    cells: Any
    live: Any = None
    count: Any = None


class CvtSurgery(GraphPass):
    """Write every block of the last stage with explicit grids and insert one TokenSample per site."""

    name = "cvt_sampling"

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        sites = {site.block: site for site in surgery.sites}
        for block in surgery.anatomy.blocks:
            self._block(surgery, block, sites.get(block.index))
        last = surgery.tensors[surgery.anatomy.blocks[-1].output]
        for node in [n for n in last.outputs if n.op == "Split"]:
            # the head splits CLS from a fixed number of tokens
            em = surgery.emitter.child("head")
            surgery.replace(node.outputs[0], em.slice(last, 0, 1, 1, "cls"))
        return True

    def _block(self, surgery: Surgery, block: Any, site: Site[AtsOptions] | None) -> None:
        em = surgery.emitter.child(f"block{block.index}/attn")
        h = surgery.tensors[block.h]
        cls = em.slice(h, 0, 1, 1, "cls")
        window = incidence(surgery.anatomy.grid, block.convolve_key.weight.shape[2], block.convolve_key.stride, block.convolve_key.padding)  # type: ignore[attr-defined] # fmt: skip
        grid = self._grid(surgery, em.child("grid"), h, window)
        surgery.bias = self._bias(em.child("grid"), grid)
        key = keys(em, block, _join(em, cls, _convolve(em, grid.cells, block.convolve_key, "k"), "k"))
        value = values(em, block, _join(em, cls, _convolve(em, grid.cells, block.convolve_value, "v"), "v"))
        cells = _convolve(em, grid.cells, block.convolve_query, "q")
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
            column = em.op("Unsqueeze", [surgery.patch, em.constant([2])], "q/cells", dtype=INT64)
            cells = em.take_rows(cells, column, "q/present")
        context = attend(em, block, queries(em, block, _join(em, cls, cells, "q")), key, value, bias)
        x = None if rows is None else em.take_rows(surgery.tensors[block.x], rows, "x/kept")
        replace_attention(surgery, block, project(em, block, context), x)

    def _grid(self, surgery: Surgery, em: Emitter, h: Any, window: np.ndarray) -> _Grid:
        """Put the token rows of h [B,1+K,C] into their cells."""
        height, width = surgery.anatomy.grid  # type: ignore[attr-defined]
        patches, channels = surgery.anatomy.patches, surgery.anatomy.width
        if surgery.patch is None:
            rows, live, count = em.slice(h, 1, None, 1, "tokens"), None, None
        else:
            spare = em.op("Where", [surgery.valid, surgery.patch, em.constant(patches)], "cell", dtype=INT64)
            present = em.op("Cast", [surgery.valid], "present", dtype=INT64, to=7)
            number = em.op("CumSum", [present, em.constant(1)], "row", dtype=INT64)  # row of h: slots are packed, CLS is row 0
            batch = em.slice(em.op("Shape", [h], "shape", dtype=INT64), 0, 1, 0, "batch", dtype=INT64)
            shape = em.op("Concat", [batch, em.constant([patches + 1])], "shape/cells", dtype=INT64, axis=0)
            none = em.op("Expand", [em.constant(np.zeros((1, 1))), shape], "none", dtype=INT64)
            # every present token writes its own cell; pads all write the spare column behind, which is cut off
            wide = em.op("ScatterElements", [none, spare, number], "rows/wide", dtype=INT64, axis=1)
            row = em.slice(wide, 0, patches, 1, "rows", dtype=INT64)
            taken = em.take_rows(h, em.op("Unsqueeze", [row, em.constant([2])], "rows/column", dtype=INT64), "taken")
            there = em.op("Greater", [row, em.constant(0)], "there", dtype=BOOL)
            live = em.op("Cast", [there], "live", to=1)
            mask = em.op("Unsqueeze", [there, em.constant([2])], "there/column", dtype=BOOL)
            rows = em.op("Where", [mask, taken, em.constant(0.0, FLOAT)], "tokens")
            count = em.op("MatMul", [live, em.constant(window.T, FLOAT)], "count")
        columns = em.op("Transpose", [rows], "columns", perm=[0, 2, 1])
        return _Grid(em.op("Reshape", [columns, em.constant([0, channels, height, width])], "cells"), live, count)

    def _bias(self, em: Emitter, grid: _Grid) -> Any:
        """Key bias [B,1,1,1+cells]: cells without a present token are hidden, CLS is not; None while all are present."""
        if grid.count is None:
            return None
        some = em.op("Greater", [grid.count, em.constant(0.5, FLOAT)], "some", dtype=BOOL)
        hidden = em.op("Where", [some, em.constant(0.0, FLOAT), em.constant(-1.0e4, FLOAT)], "hidden")
        zero = em.op("Mul", [em.slice(hidden, 0, 1, 1, "first"), em.constant(0.0, FLOAT)], "zero")
        flat = em.op("Concat", [zero, hidden], "bias/flat", axis=1)
        return em.op("Unsqueeze", [flat, em.constant([1, 2])], "bias")

    def _lift(self, em: Emitter, significance: Any, grid: _Grid, window: np.ndarray) -> Any:
        """Share every cell's score equally among the present tokens in its window: [B,cells] -> [B,P]."""
        if grid.count is None:
            divisor = em.constant(np.maximum(window.sum(axis=1), 1)[None], FLOAT)
        else:
            some = em.op("Greater", [grid.count, em.constant(0.5, FLOAT)], "some", dtype=BOOL)
            divisor = em.op("Where", [some, grid.count, em.constant(1.0, FLOAT)], "divisor")
        shared = em.op("MatMul", [em.op("Div", [significance, divisor], "shares"), em.constant(window, FLOAT)], "score/patches")
        return shared if grid.live is None else em.op("Mul", [shared, grid.live], "score/live")

    def ensures(self, surgery: Surgery) -> str:
        """One TokenSample per live site; nothing of the dense blocks' convolutions is left."""
        live = [site for site in surgery.sites if not site.options.bypass]
        found = sum(node.op == NAME for node in surgery.graph.nodes)
        return "" if found == len(live) else f"{found} TokenSample nodes for {len(live)} sites"


def _convolve(em: Emitter, cells: Any, convolution: Any, label: str) -> Any:
    """Depthwise convolution of cells [B,C,H,W] as rows [B,cells,C]."""
    size, pad = convolution.weight.shape[2], convolution.padding
    inputs = [
        cells, em.constant(convolution.weight, FLOAT, f"{label}/conv.weight"), em.constant(convolution.bias, FLOAT, f"{label}/conv.bias")
    ]  # fmt: skip
    out = em.op(
        "Conv",
        inputs,
        f"{label}/conv",
        group=len(convolution.weight),
        kernel_shape=[size, size],
        strides=[convolution.stride] * 2,
        pads=[pad] * 4,
    )
    flat = em.op("Reshape", [out, em.constant([0, len(convolution.weight), -1])], f"{label}/flat")
    return em.op("Transpose", [flat], f"{label}/rows", perm=[0, 2, 1])


def _join(em: Emitter, cls: Any, rows: Any, label: str) -> Any:
    return em.op("Concat", [cls, rows], f"{label}/joined", axis=1)
