"""EViT: the keep rate of top-k, with or without the fused token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitprune.methods._dropping.knob import KeepRate
from vitprune.methods.knob import Dimension, Knob

if TYPE_CHECKING:
    from vitprune.methods.base import Geometry


class FusingKeepRate(KeepRate):
    """Share of the entering tokens that every stage keeps."""

    def dimensions(self, geometry: Geometry) -> list[Dimension]:
        """See `Knob.dimensions`."""
        return [*super().dimensions(geometry), Dimension("fuse", (True, False))]

    def shaped(self, chosen: dict[str, Any], geometry: Geometry) -> tuple[dict[str, Any], Knob]:
        """See `Knob.shaped`."""
        keys, knob = super().shaped(chosen, geometry)
        return keys | {"fuse": chosen["fuse"]}, knob
