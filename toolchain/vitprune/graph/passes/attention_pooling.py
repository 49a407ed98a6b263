"""Attention pooling behind the blocks hides pad slots and counts a merged row as often as it has patches.

A key of n equal patches has n times the weight of one: log(n) is added to its logit (proportional attention, Bolya et al., ICLR 2023,
arXiv 2210.09461, eq. 1).
"""

from __future__ import annotations

import numpy as np

from vitprune.errors import ExportError
from vitprune.graph.anatomy.attention_pool import AttentionPool
from vitprune.graph.canonical import head_norm
from vitprune.graph.emit import BOOL, FLOAT, Emitter
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.graph.types import Tensor

HIDDEN = -1.0e4


class AttentionPooling(GraphPass):
    """Write every pool anew, without a token count, with a bias on its keys."""

    name = "attention_pooling"

    def requires(self, surgery: Surgery) -> str:
        """Some key for every image.

        Raises:
            ExportError: VP313 where none may be left.
        """
        if surgery.anatomy.pools and any(site.options.may_be_empty for site in surgery.sites):
            raise ExportError(
                313,
                f"{surgery.method.name} cannot be combined with attention pooling",
                cause="an image may keep no patch at all, and a softmax over no keys has no value",
                next_step="choose a method that keeps patches of every image: vitprune methods",
            )
        return ""

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        write_pools(surgery)
        return bool(surgery.anatomy.pools)


def write_pools(surgery: Surgery) -> None:
    """Attention of the latent queries over the tokens that are left."""
    for number, pool in enumerate(surgery.anatomy.pools):
        emit = surgery.emitter.child(f"attention_pool{number}")
        surgery.replace(surgery.tensors[pool.projected], _written(surgery, emit, pool))


def _written(surgery: Surgery, emit: Emitter, pool: AttentionPool) -> Tensor:
    """The projection's output [B,L,C']."""
    rows = surgery.tensors[pool.tokens]
    inner = pool.heads * pool.head_dim

    def split(x: Tensor, perm: list[int], label: str, normed: bool = False) -> Tensor:
        apart = emit.op("Reshape", [x, emit.constant([0, 0, pool.heads, pool.head_dim])], f"{label}/heads")
        apart = head_norm(emit, apart, pool.key_norm, f"{label}/norm") if normed and pool.key_norm is not None else apart
        return emit.op("Transpose", [apart], f"{label}/turned", perm=perm)

    key = split(emit.linear(rows, pool.key.weight, pool.key.bias, "k"), [0, 2, 3, 1], "key", normed=True)
    value = split(emit.linear(rows, pool.value.weight, pool.value.bias, "v"), [0, 2, 1, 3], "value")
    query = emit.constant(pool.query.transpose(1, 0, 2)[None], FLOAT, "query")
    logits = emit.op("MatMul", [query, key], "logits")
    bias = _bias(surgery, emit, pool)
    logits = logits if bias is None else emit.op("Add", [logits, bias], "biased")
    weights = emit.op("Softmax", [logits], "weights", axis=-1)
    context = emit.op("Transpose", [emit.op("MatMul", [weights, value], "context")], "context/turned", perm=[0, 2, 1, 3])
    flat = emit.op("Reshape", [context, emit.constant([0, 0, inner])], "context/flat")
    return emit.linear(flat, pool.projection.weight, pool.projection.bias, "proj")


def _bias(surgery: Surgery, emit: Emitter, pool: AttentionPool) -> Tensor | None:
    """[B,1,1,N] on the logits of the pool's keys: log(patches), and pads out of sight; None where each stands for itself."""
    parts = []
    if surgery.weight is not None:
        parts.append(emit.op("Log", [surgery.weight], "log_patches"))
    if surgery.valid is not None:
        pad = emit.op("Cast", [emit.op("Not", [surgery.valid], "pad", dtype=BOOL)], "pad_float", to=1)
        parts.append(emit.op("Mul", [pad, emit.constant(HIDDEN, FLOAT)], "hidden"))
    if not parts:
        return None
    flat = parts[0] if len(parts) == 1 else emit.op("Add", parts, "bias/patches")
    ahead = surgery.anatomy.prefix - pool.skipped
    if ahead > 0:
        first = emit.op(
            "Cast", [emit.op("Cast", [emit.slice(flat, 0, 1, 1, "first")], "none/bool", dtype=BOOL, to=9)], "none", to=1
        )
        front = emit.op("Mul", [first, emit.constant(np.zeros((1, ahead)), FLOAT)], "bias/prefix")
        flat = emit.op("Concat", [front, flat], "bias/all", axis=1)
    return emit.op("Unsqueeze", [flat, emit.constant([1, 2])], "bias")
