"""A drawing of a benchmark: milliseconds of dense and pruned models by batch, medians with their 95th percentile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitprune.bundle_parts.output import unwritable
from vitprune.errors import RecipeError, TargetError

SUFFIXES = (".svg", ".png", ".pdf")


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw a document of `benchmarking.suite.benchmark`.

    Raises:
        TargetError: VP201 matplotlib is not installed. RecipeError: VP107 the file, VP199 its kind.
    """
    if path.suffix not in SUFFIXES:
        raise RecipeError(199, f"--plot '{path.name}'", cause=f"it ends in {', '.join(SUFFIXES)}", next_step="--plot speed.svg")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TargetError(
            201, "a drawing needs matplotlib", cause="the package is not installed", next_step="pip install 'vitprune[plots]'"
        ) from error
    rows = [(f"{e['bundle']}, batch {e['batch']}", e["dense"], e["pruned"]) for e in document["results"]]
    figure = Figure(figsize=(7, 0.9 + 0.7 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, dense, pruned) in enumerate(rows):
        for offset, timing, colour in ((-0.2, dense, "#8a97a8"), (0.2, pruned, "#2b6cb0")):
            if timing is not None:
                reach = [[0.0], [max(0.0, timing["p95_ms"] - timing["median_ms"])]]
                axes.barh(place + offset, timing["median_ms"], 0.36, xerr=reach, color=colour, ecolor="#444", capsize=2)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ms of a call: median, to the 95th percentile; grey dense, blue pruned")
    try:
        figure.savefig(path)
    except OSError as error:
        raise unwritable(path, error) from error
