"""ATS with dropped tokens merged instead of lost, ours (methods.md §17): "ATS with `dropped: merge`"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.methods import ats
from vitprune.methods.base import BlockTokens, Geometry, MethodParams, Site
from vitprune.methods.tome import merged_after_attention

if TYPE_CHECKING:
    from torch import Tensor


class Params(ats.Params):
    """Recipe keys of ATS (mode, stages, num_samples, capacity) and of merging.

    dropped: always "merge"; it says what becomes of a patch that is not sampled.
    prop_attn: add log(size) to the key logits of later blocks. trace: also output `group_<block>`, int64 [B,P]: for every original
    patch the patch that represents its row.
    """

    method: Literal["ats_merge"] = "ats_merge"  # type: ignore[assignment]
    dropped: Literal["merge"] = "merge"
    prop_attn: bool = True
    trace: bool = False


def nearest_kept(metric: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Kept patch most similar to every patch, ties to the lower slot.

    Args:
        metric: float32 [B,P,d] of unit length (`vitprune.methods.tome.metric`). chosen: bool [B,P], kept slots.

    Returns:
        int64 [B,P], its slot, and float32 [B,P], how far ahead of the second most similar it is (infinite when alone).
    """
    import torch

    similarity = (metric @ metric.transpose(1, 2)).masked_fill(~chosen[:, None, :], float("-inf"))
    into = similarity.argmax(dim=2)
    best = similarity.gather(2, into[:, :, None])[:, :, 0]
    others = similarity.scatter(2, into[:, :, None], float("-inf")).amax(dim=2)
    return into, torch.where(others.isinf(), torch.full_like(others, float("inf")), best - others)


class AtsMerge(ats.Ats):
    """ATS whose dropped patches join their most similar kept patch."""

    name: ClassVar[str] = "ats_merge"
    summary: ClassVar[str] = "ATS with dropped: merge: a patch that is not sampled joins the kept patch most similar to it"
    paper: ClassVar[str] = "this project; sampling after Fayyaz et al., ECCV 2022, arXiv 2111.15667"
    kind: ClassVar[str] = "sampled_merging"
    params: ClassVar[type[MethodParams]] = Params
    training: ClassVar[str] = "none"

    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
        """ATS's sites with the options of merging."""
        more = {"proportional": params.prop_attn, "trace": params.trace}
        return [replace(site, options={**site.options, **more}) for site in super().sites(params, geometry)]

    def block_tokens(self, sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """All rows are needed after attention, so queries are not pruned; see `Method.block_tokens`."""
        return merged_after_attention(sites, geometry, kept)


METHOD = AtsMerge()
