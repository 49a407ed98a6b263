"""A site of Ward merging as one operator, for a runtime that has it (`vitprune::WardMerge`, docs/plugin.md)."""

from __future__ import annotations

from vitprune.graph.outlines import Outline, outline
from vitprune.graph.passes.base import Surgery
from vitprune.graph.types import Tensor
from vitprune.methods.base import Site
from vitprune.methods.ward_merge.keys import WardOptions
from vitprune.ops.sites import WARD_MERGE

Roles = dict[str, Tensor | None]
ANY_DAMAGE = 1e10  # above what a pair can do


def described(
    surgery: Surgery, site: Site[WardOptions], entering: Roles, leaving: Roles, heads: int, by_cls: bool, proportional: bool
) -> Outline:
    """The outline of a site.

    Args:
        surgery, site: where it is. entering, leaving: its tensors by role. heads: of the block. by_cls: the attention is the row of the CLS
            token, one value per head. proportional: the key bias holds log(size).
    """
    options = site.options
    fixed = options.r is not None
    bound = site.limit if fixed or options.capacity or surgery.padded else 0
    return outline(
        WARD_MERGE, entering, leaving, prefix=surgery.anatomy.prefix, most=bound, padded=int(surgery.padded or fixed),
        loses=int(fixed or bool(options.capacity)), limit=float(min(options.limit, ANY_DAMAGE)),
        pairs=-1 if options.r is None else min(options.r, site.patches), rounds=options.rounds, power=float(options.power),
        everyone=float(options.everyone), share=1.0 / heads if by_cls else 1.0, heads=heads if by_cls else 0, proportional=int(proportional),
    )  # fmt: skip
