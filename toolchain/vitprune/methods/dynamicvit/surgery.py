"""Sites before a block whose rows are ranked by a small trained network (DynamicViT); its weights become initialisers."""

from __future__ import annotations

import hashlib

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.canonical import canonical
from vitprune.graph.emit import FLOAT, Emitter
from vitprune.graph.outlines import outline
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.graph.passes.conditions import attention_chains, sites_in_graph
from vitprune.graph.types import Tensor
from vitprune.methods._dropping.operator import Roles, describe_ranking, entering, left_behind
from vitprune.methods._dropping.selection import splice, top_k, track
from vitprune.methods.base import Site, keys_of
from vitprune.methods.dynamicvit import weights as predictor
from vitprune.methods.dynamicvit.keys import NORM_EPS, DynamicVitOptions, Params
from vitprune.ops.sites import TOKEN_PREDICTOR
from vitprune.support.resources import located


def gelu(emit: Emitter, x: Tensor, label: str) -> Tensor:
    """x/2 * (1 + erf(x / sqrt 2))."""
    bent = emit.op("Erf", [emit.op("Mul", [x, emit.constant(np.sqrt(0.5), FLOAT)], f"{label}/scaled")], f"{label}/erf")
    gate = emit.op("Add", [bent, emit.constant(1.0, FLOAT)], f"{label}/gate")
    return emit.op("Mul", [emit.op("Mul", [x, gate], f"{label}/gated"), emit.constant(0.5, FLOAT)], label)


def predicted(emit: Emitter, x: Tensor, weights: predictor.Weights, slots: int, prefix: int) -> tuple[Tensor, Roles]:
    """Scores of patches, and the initialisers they are made with by their role in `vitprune::TokenPredictor`.

    A score is how much likelier keeping is than dropping, as a difference of logits [B,slots], for the patches of x [B,prefix+slots,C].
    Ranks are those of the log-probability of keeping, which rises with this difference. All rows go through the network, since the
    few prefix rows cost less than a copy without them. The half of the channels that describes the whole image is the
    same for all rows, so it passes through its columns of the next linear map once per image instead of once per row.
    """
    half = len(weights["in_conv.0.weight"]) // 2

    def linear(x: Tensor, name: str) -> Tensor:
        return emit.linear(x, weights[f"{name}.weight"].T, weights[f"{name}.bias"], name)

    def entered(part: slice, label: str) -> Tensor:
        w, b = weights["in_conv.1.weight"][part], weights["in_conv.1.bias"][part]
        flat = emit.linear(x, w.T, b, f"in_conv.1.{label}")
        held.update(zip((f"{label}.weight", f"{label}.bias"), parameters(flat), strict=True))
        return gelu(emit, flat, f"in_gelu.{label}")

    held: Roles = {"x": x}
    affine = [emit.constant(weights[f"in_conv.0.{part}"], FLOAT, f"in_conv.0.{part}") for part in ("weight", "bias")]
    held |= {"norm.weight": affine[0], "norm.bias": affine[1]}
    x = emit.op("LayerNormalization", [x, *affine], "in_conv.0", axis=-1, epsilon=NORM_EPS)
    mean = np.concatenate([np.zeros(prefix), np.full(slots, 1 / slots)]).reshape(1, 1, -1)
    whole = emit.op("MatMul", [emit.constant(mean, FLOAT), entered(slice(half, None), "global")], "global")
    first = weights["out_conv.0.weight"].T
    here = emit.linear(entered(slice(half), "local"), first[:half], None, "out_conv.0.local")
    there = emit.linear(whole, first[half:], weights["out_conv.0.bias"], "out_conv.0.global")
    y = linear(gelu(emit, emit.op("Add", [here, there], "out_conv.0"), "out_gelu0"), "out_conv.2")
    for label, made in (("there", there), ("next", y)):
        held.update(zip((f"{label}.weight", f"{label}.bias"), parameters(made), strict=True))
    held["here.weight"] = here.inputs[0].inputs[1]
    keep, drop = weights["out_conv.4.weight"]
    gap = emit.linear(gelu(emit, y, "out_gelu1"), (keep - drop)[:, None], -np.diff(weights["out_conv.4.bias"]), "out_conv.4.gap")
    held.update(zip(("gap.weight", "gap.bias"), parameters(gap), strict=True))
    rows = emit.op("Squeeze", [gap, emit.constant([2])], "score/rows")
    return emit.slice(rows, prefix, None, 1, "score") if prefix else rows, held


def parameters(linear: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [in,out] and bias of what `Emitter.linear` made."""
    add = linear.inputs[0]
    return add.inputs[0].inputs[0].inputs[1], add.inputs[1]


class DynamicVitSurgery(GraphPass):
    """Write every block canonically and put one predictor and one ranking before the block of each site."""

    name = "predictor"

    def requires(self, surgery: Surgery) -> str:
        """Sites must lie in the graph."""
        return sites_in_graph(surgery)

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        params = keys_of(surgery.recipe.prune, Params)
        weights = predictor.load(params, surgery.sites)
        self._note(surgery, params)
        sites = {site.block: site for site in surgery.sites}
        for block in surgery.anatomy.blocks:
            if block.index in sites:
                site = sites[block.index]
                self._drop(surgery, block, site, weights[site.options.stage], bool(predictor.warning(params)))
            canonical(surgery, block)
        return True

    def _note(self, surgery: Surgery, params: Params) -> None:
        if text := predictor.warning(params):
            surgery.notes.setdefault("warnings", []).append(text)
            surgery.notes["predictor"] = {"source": predictor.UNTRAINED, "seed": params.predictor_seed, "trained": False}
        elif params.predictor is not None:  # None has been refused with the weights
            path = located(params.predictor)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            surgery.notes["predictor"] = {"source": path.name, "sha256": digest, "trained": True}

    def _drop(
        self, surgery: Surgery, block: Block, site: Site[DynamicVitOptions], weights: predictor.Weights, untrained: bool
    ) -> None:
        emit = surgery.emitter.child(f"block{block.index}/prune")
        network = surgery.emitter.child(f"block{block.index}/predictor" + ("_untrained" if untrained else ""))

        def reduced(x: Tensor) -> Tensor:
            score, held = predicted(network, x, weights, site.options.slots, surgery.anatomy.prefix)
            surgery.outlines.append(
                outline(TOKEN_PREDICTOR, held, {"score": score}, prefix_tokens=surgery.anatomy.prefix, epsilon=float(NORM_EPS))
            )
            entered = {"x": x, "score": score, **entering(surgery)}
            index = top_k(emit, score, site.options.keep)
            shape = surgery.rows_shape(block.index, site.options.keep)
            left = emit.take_rows(x, track(surgery, emit, index), "x/kept", shape)
            leaving = {"rows": left, "index": index, **left_behind(surgery)}
            describe_ranking(surgery, site.options.keep, "given", block.heads, entered, leaving)
            return left

        splice(surgery, block.x, reduced)

    def ensures(self, surgery: Surgery) -> str:
        """One predictor and one ranking per site, and one clean attention chain per block."""
        for part, each in (("/score/rows", 1), ("/top", 1)):
            found = sum(node.name.endswith(part) and node.name.startswith("vitprune/") for node in surgery.graph.nodes)
            if found != each * len(surgery.sites):
                return f"{found} '{part}' nodes for {len(surgery.sites)} sites"
        return attention_chains(surgery)
