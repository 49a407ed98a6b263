"""Token counts on the knees of a device's latency: where one more token costs a whole further tile.

In padded shapes every count is a constant, so it can be put where it is worth most: up to a knee whose tokens cost no more, or down to
one that a few tokens have just passed (POMT, WACV 2025, arXiv 2407.05941, chooses its one count so).
"""

from __future__ import annotations

from typing import Any

from vitprune import methods
from vitprune.calibration.bench import Bench
from vitprune.errors import RecipeError
from vitprune.tuning.table import Curve

STEEP = 4.0  # a step is this many times the mean slope of its curve
STEP = 0.03  # and this share of the time, more than a measurement errs by
FREE = 0.03  # share by which a count may be dearer and still counts as costing the same


def knees(curve: Curve) -> list[int]:
    """Measured counts behind which the time jumps; the last one is where the curve ends and no knee."""
    tokens, times = curve.tokens, curve.milliseconds
    slope = (times[-1] - times[0]) / (tokens[-1] - tokens[0])
    found = []
    for place in range(len(tokens) - 1):
        step, width = times[place + 1] - times[place], tokens[place + 1] - tokens[place]
        if step > STEEP * slope * width and step > STEP * times[place]:
            found.append(tokens[place])
    return found


def on_knee(curve: Curve, tokens: int, most: int) -> int:
    """The count to use in place of one.

    Args:
        curve: of a block. tokens: wanted, prefix included. most: tokens that enter, and so the most that can be left.

    Returns:
        The next knee above where its tokens are free; the next one below where more of the time than twice their share goes
        with the tokens; else the count itself.
    """
    edges = knees(curve)
    above = next((edge for edge in edges if tokens <= edge <= most), None)
    if above is not None and curve.at(above) <= (1 + FREE) * curve.at(tokens):
        return above
    below = next((edge for edge in reversed(edges) if edge < tokens), None)
    if below is not None and curve.at(tokens) - curve.at(below) > 2 * curve.at(tokens) * (tokens - below) / tokens:
        return below
    return tokens


def snapped(bench: Bench, prune: dict[str, Any], curve: Curve) -> dict[str, Any]:
    """Method keys whose constant counts lie on knees; the keys as they are where the method has none, or cannot get there.

    Args:
        bench: model and recipe. prune: method keys of padded shapes. curve: a block's time by tokens, prefix included.
    """
    recipe = bench.with_prune(prune)
    sites, prefix = bench.method.sites(recipe.prune, bench.geometry), bench.geometry.prefix
    blocks = bench.method.block_tokens(sites, bench.geometry, [float(site.limit) for site in sites])
    rows, most = [], bench.geometry.tokens
    for site in sites:
        most = on_knee(curve, min(most, round(blocks[site.block].mlp)), most)
        rows.append(most - prefix)
    knob = methods.get(recipe.prune.method).knob
    if getattr(recipe.prune, "capacity", None) is not None:
        changed = prune | {"capacity": rows}
    else:
        changed = prune | (knob.with_rows(recipe.prune, sites, rows) if knob is not None else {})
    try:
        bench.method.sites(bench.with_prune(changed).prune, bench.geometry)
    except RecipeError:  # so few rows cannot be reached from where an earlier site was moved to
        return prune
    return changed
