"""Whether the gate on decisions could have failed: how many decisions lie beyond the margin within which a flip is legal.

In a coarse type the margin may be wider than every decision of a method (ATS's sampling points in bfloat16, halting scores behind a
large gate). No flip is illegal then, and the gate alone proves nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

USUAL = 0.99  # a share above which nothing is said


def count(margin: NDArray[Any] | None, surest: NDArray[Any] | None, agreeing: NDArray[np.bool_], limit: float) -> tuple[int, int]:
    """Decisions of one site that are known, and those of them that may not flip.

    Args:
        margin: [n,P] distance of each patch from the opposite decision, infinite where it was not asked; None = not known.
        surest: [n] what bounds every distance of an image: decisions before this site that no list shows. agreeing: bool [n], the images
            that are compared here. limit: a flip within it is legal.
    """
    if margin is None:
        return 0, 0
    distance = margin if surest is None else np.minimum(margin, surest[:, None])
    asked = np.isfinite(margin) & agreeing[:, None]
    return int(asked.sum()), int((asked & (distance > limit)).sum())


def proved(decisions: int, could: int, unproved: int) -> bool:
    """False where no decision could have failed and some images whose decisions differ are compared by nothing else."""
    return could > 0 or decisions == 0 or unproved == 0


def note(decisions: int, could: int, limit: float, unproved: int) -> str:
    """What is said beside the gate; "" where nearly all decisions could have failed."""
    if not decisions or could >= USUAL * decisions:
        return ""
    if could:
        return f"{100 * could / decisions:.1f} % of {decisions:,} decisions could have failed, margin {limit:.2g}"
    wide = f"no decision could have failed: all {decisions:,} lie within the margin of {limit:.2g}"
    if not unproved:
        return f"{wide}; the logits carry the proof"
    return f"{wide}, and {unproved} images that differ are compared by nothing else; take fp16 or set precision.flip_margin"
