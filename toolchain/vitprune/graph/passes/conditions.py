"""Conditions that the passes of several methods check, before and after."""

from __future__ import annotations

from vitprune.graph.passes.base import Surgery


def sites_in_graph(surgery: Surgery) -> str:
    """Before: every site lies at a block of the graph."""
    depth = len(surgery.anatomy.blocks)
    return next((f"site at block {site.block} of {depth}" for site in surgery.sites if site.block >= depth), "")


def attention_chains(surgery: Surgery, shared: int = 0) -> str:
    """After: every block has exactly one MatMul–(Add)–Softmax–MatMul chain without other readers, save `shared` blocks."""
    clean = 0
    for node in surgery.graph.nodes:
        if node.op == "Softmax" and node.attrs.get("axis") == -1 and node.name.endswith("/probabilities"):
            reader = node.outputs[0].outputs
            above = node.inputs[0].inputs[0]
            above = next(one for one in above.inputs if one.inputs).inputs[0] if above.op == "Add" else above
            clean += len(reader) == 1 and reader[0].op == "MatMul" and above.op == "MatMul" and len(above.outputs[0].outputs) == 1
    wanted = len(surgery.anatomy.blocks) - shared
    return "" if clean == wanted else f"{clean} clean attention chains for {wanted} blocks"
