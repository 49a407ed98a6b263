"""POMT, "Prune One More Token" (Eliopoulos et al., WACV 2025, arXiv 2407.05941); equations of methods.md §7.4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from vitprune.errors import RecipeError
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site
from vitprune.methods.evit import fixed_block_tokens

if TYPE_CHECKING:
    from torch import Tensor


class Params(MethodParams):
    """Recipe keys of POMT.

    stages: the one block after whose attention tokens leave. remove: R, by how many tokens the sequence gets shorter; R + 1
    patches leave and their mean comes in, so R = 0 changes nothing but the order of tokens.
    """

    method: Literal["pomt"] = "pomt"
    stages: list[int] = Field(default=[3], min_length=1, max_length=1)
    remove: int = Field(default=56, ge=0, le=65536)


def score(attention: Tensor, value: Tensor, prefix: int) -> Tensor:
    """Column term plus value term, both normalised over the patches of one image.

    Args:
        attention: softmax probabilities [B,H,N,N]. value: [B,H,N,d]. prefix: leading tokens that are not scored.

    Returns:
        float32 [B,N-prefix]: c_j / max_i c_i + softmax_j(v), with c_j the sum over all queries of the maximum over heads of
        attention, v_j the sum over channels of the maximum over heads of the values.
    """
    column = attention.float().amax(dim=1).sum(dim=1)[:, prefix:]
    content = value.float().amax(dim=1).sum(dim=-1)[:, prefix:]
    return column / column.amax(dim=1, keepdim=True) + content.softmax(dim=1)


def mean(rows: Tensor, score: Tensor, dropped: Tensor) -> Tensor:
    """Mean of the dropped rows: rows [B,P,C], dropped bool [B,P] with the same count per image -> [B,1,C]."""
    weight = dropped.to(rows.dtype)
    return (weight / weight.sum(dim=1, keepdim=True)).unsqueeze(1) @ rows


class Pomt(Method):
    """Prune one more token is enough."""

    name: ClassVar[str] = "pomt"
    summary: ClassVar[str] = "R tokens leave once, after one block's attention; their mean stays; R from the device's latency"
    paper: ClassVar[str] = "Eliopoulos et al., WACV 2025, arXiv 2407.05941"
    kind: ClassVar[str] = "fixed_rate"
    params: ClassVar[type[MethodParams]] = Params
    needs_cls: ClassVar[bool] = False
    varies: ClassVar[str] = "which tokens; their number is fixed"

    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
        """The one site.

        Raises:
            RecipeError: VP110 beyond the depth, VP123 when no patch would be left.
        """
        self.check_stages(params, geometry)
        keep = geometry.patches - params.remove - 1
        if keep < 1:
            raise RecipeError(
                123,
                f"prune.remove is {params.remove}, the model has {geometry.patches} patches",
                cause="remove + 1 patches leave and are replaced by their mean; at least one patch must stay",
                next_step=f"--set prune.remove={max(0, geometry.patches - 2)} or less",
            )
        options = {"score": "columns", "slots": geometry.patches, "keep": keep, "combine": "mean"}
        return [Site(params.stages[0], geometry.patches, keep, options)]

    def block_tokens(self, sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """The combined token is a row that `kept` does not list; counts follow from the site."""
        return fixed_block_tokens(sites, geometry)


METHOD = Pomt()
