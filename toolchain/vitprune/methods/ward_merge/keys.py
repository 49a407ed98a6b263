"""Recipe keys and site options of Ward merging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vitprune.methods._merging.keys import Count, MergingOptions, MergingParams
from vitprune.methods.base import Geometry, SamplingOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Positive = Annotated[int, Field(gt=0, le=65536)]


class Params(MergingParams):
    """Recipe keys of Ward merging (prop_attn, trace: see `MergingParams`).

    stages: blocks that merge; null = every block but the last, whose threshold is 0.
    mu: the one knob of adaptive counts: threshold of the damage from the middle of the depth on; before it rises with the square
        of the block number. 0 merges nothing. Calibrate it for the model, the data and the resolution.
    counts: adaptive = every pair below the threshold merges, as many as an image has; fixed = the `r` cheapest pairs of a block,
        so that shapes are constant.
    r: with fixed counts, pairs merged per block, one number or one per stage.
    sketch: numbers that damages are computed from, random sums of the channels; null = all channels.
    importance_power: exponent of the importance in a row's mass; 0 = masses are sizes.
    rounds: times per block that nearest pairs merge.
    capacity: largest number of rows a stage may leave; where more are left the heaviest stay and the others are lost (`overflow`).
    """

    method: Literal["ward_merge"] = "ward_merge"
    mu: float = Field(default=0.2, ge=0, le=1e6)
    counts: Literal["adaptive", "fixed"] = "adaptive"
    r: Count | list[Count] | None = None
    sketch: Positive | None = 128
    importance_power: float = Field(default=0.4, ge=0, le=4)
    rounds: int = Field(default=2, ge=1, le=4)
    capacity: Positive | list[Positive | None] | None = None

    def blocks(self, geometry: Geometry) -> list[int]:
        """Blocks that merge, in order."""
        return list(range(max(1, geometry.depth - 1))) if self.stages is None else self.stages


@dataclass(frozen=True)
class WardOptions(MergingOptions, SamplingOptions):
    """Settings of a site.

    limit: strict upper bound of a pair's damage (infinite with fixed counts). r: pairs that merge, None = adaptive. sketch, power,
    rounds: as in `Params`. everyone: tokens of the image before anything merged.
    """

    limit: float = 0.0
    r: int | None = None
    sketch: int | None = 128
    power: float = 0.4
    rounds: int = 2
    everyone: int = 0

    @property
    def idle(self) -> bool:
        """See `MergingOptions.idle`."""
        return self.bypass or (self.limit == 0 if self.r is None else self.r == 0)


def threshold(mu: float, block: int, depth: int) -> float:
    """Largest damage that may merge in a block: mu * min(1, ((block + 1) / (depth / 2))^2), and 0 in the last one."""
    return 0.0 if block == depth - 1 else mu * min(1.0, ((block + 1) / (depth / 2)) ** 2)


def signs(width: int) -> NDArray[np.float32]:
    """Signs of the channels in the count sketch, float32 [width]: always the same, drawn once at random.

    Channel c goes into sum c mod d. The order of a residual stream's channels means nothing, so with random signs that is as good
    as a random grouping, and needs no gather.
    """
    import numpy as np

    drawn = np.random.RandomState(20).randint(0, 2, size=width)  # noqa: NPY002 - its stream is frozen, a Generator's is not
    return (2 * drawn - 1).astype(np.float32)
