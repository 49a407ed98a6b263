"""A dropping site as one operator, for a runtime that has it (`vitprune::PruneSite`, docs/plugin.md)."""

from __future__ import annotations

import numpy as np

from vitprune.graph.outlines import outline
from vitprune.graph.passes.base import Surgery
from vitprune.graph.types import Tensor
from vitprune.methods.base import SamplingOptions, Site
from vitprune.ops.sites import PRUNE_SITE, TOKEN_HALT

Roles = dict[str, Tensor | None]
KIND, HALT = PRUNE_SITE, TOKEN_HALT
FORMS = {"per_head": "per_head", "pooled": "pooled", "attention": "sum"}  # of ATS's scores, by their names in recipes
EVERY_SCORE = float(np.finfo(np.float32).min)  # a threshold that every score exceeds: with a capacity, a ranking


def entering(surgery: Surgery) -> Roles:
    """What a site takes over from the ones before it: valid bool [B,P] and patch int64 [B,P], None while all patches are there."""
    return {"valid": surgery.valid, "patch": surgery.patch}


def left_behind(surgery: Surgery) -> Roles:
    """What a site leaves to the next ones: patch and kept int64, and the key bias."""
    return {"patch": surgery.patch, "kept": surgery.kept[-1], "bias": surgery.bias}


def describe_sampling(
    surgery: Surgery,
    site: Site[SamplingOptions],
    form: str,
    heads: int,
    entered: Roles,
    leaving: Roles,
    kind: str = KIND,
    **more: float,
) -> None:
    """Note the outline of a site that selects with a TokenSample node.

    Args:
        form: of the score, as `vitprune_plugin.h` names it. entered, leaving: tensors by role. kind, more: another operator
            and what it has besides.
    """
    options = site.options
    _describe(
        surgery, kind, heads, entered, leaving, form=form, mode=options.mode, num_samples=options.num_samples, threshold=float(options.threshold),
        capacity=site.limit if surgery.padded else options.capacity, expected=options.expected, pad_to_capacity=int(surgery.padded),
        **more,
    )  # fmt: skip


def describe_ranking(
    surgery: Surgery, keep: int, form: str, heads: int, entered: Roles, leaving: Roles, combine: str | None = None
) -> None:
    """Note the outline of a site that keeps a constant number; combine: what becomes of the others (`FixedRateOptions`)."""
    _describe(
        surgery, KIND, heads, entered, leaving, form=form, combine=combine or "nothing", mode="threshold", num_samples=1, threshold=EVERY_SCORE,
        capacity=keep, expected=keep, pad_to_capacity=1,
    )  # fmt: skip


def describe_halting(
    surgery: Surgery, site: Site[SamplingOptions] | None, heads: int, entered: Roles, leaving: Roles, **gate: float
) -> None:
    """Note the outline of a step of halting, and of the compaction behind it; gate: channel, gate_scale, gate_center, limit, exits, last."""
    options = SamplingOptions(mode="threshold") if site is None else site.options
    limit = 0 if site is None else site.limit if surgery.padded else options.capacity
    _describe(
        surgery, HALT, heads, entered, leaving, form="given", mode=options.mode, num_samples=1, threshold=float(options.threshold),
        capacity=limit, expected=options.expected, pad_to_capacity=int(surgery.padded and site is not None),
        compacts=int(site is not None), **gate,
    )  # fmt: skip


def _describe(surgery: Surgery, kind: str, heads: int, entered: Roles, leaving: Roles, **attributes: float | str) -> None:
    anatomy = surgery.anatomy
    common: dict[str, float | str] = {"combine": "nothing", "heads": heads}
    common |= {"prefix_tokens": anatomy.prefix, "originals": anatomy.patches}
    surgery.outlines.append(outline(kind, entered, leaving, **(common | attributes)))
