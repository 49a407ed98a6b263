"""POMT, "Prune One More Token" (Eliopoulos et al., WACV 2025, arXiv 2407.05941); equations of methods.md §7.4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.errors import RecipeError
from vitprune.methods._dropping.sites import FixedRateOptions, fixed_block_tokens
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site
from vitprune.methods.pomt.keys import Params

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.methods.knob import Knob
    from vitprune.vit.reference_method import ReferenceMethod


class Pomt(Method):
    """Prune one more token is enough."""

    name: ClassVar[str] = "pomt"
    summary: ClassVar[str] = "R tokens leave once, after one block's attention; their mean stays; R from the device's latency"
    paper: ClassVar[str] = "Eliopoulos et al., WACV 2025, arXiv 2407.05941"
    params: ClassVar[type[MethodParams]] = Params
    places: ClassVar[Literal["map", "last", ""]] = "last"
    follows: ClassVar[bool] = True
    needs_cls: ClassVar[bool] = False
    varies: ClassVar[str] = "which tokens; their number is fixed"

    def sites(self, params: Any, geometry: Geometry) -> list[Site[FixedRateOptions]]:
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
        options = FixedRateOptions(score="columns", slots=geometry.patches, keep=keep, combine="mean")
        return [Site(params.stages[0], geometry.patches, keep, options)]

    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """The combined token is a row that `kept` does not list; counts follow from the site."""
        return fixed_block_tokens(sites, geometry)

    @property
    def reference(self) -> type[ReferenceMethod]:
        """See `Method.reference`."""
        from vitprune.methods._dropping.reference import FixedRateReference

        return FixedRateReference

    @property
    def surgery(self) -> type[GraphPass]:
        """See `Method.surgery`."""
        from vitprune.methods._dropping.surgery import FixedRateSurgery

        return FixedRateSurgery

    @property
    def knob(self) -> Knob:
        """See `Method.knob`."""
        from vitprune.methods.pomt.knob import Removed

        return Removed()


METHOD = Pomt()
