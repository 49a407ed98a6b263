"""The section of RESULTS.md on other forms of the shipped model, from forms.json and from the shipped model's own runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = {
    "rotary": "rotary positions (`vit_small_patch16_rope_224`'s attention)",
    "average": "mean of the patches, no CLS token; scoring methods by mean attention",
}


def _cell(run: dict[str, Any] | None, dense: dict[str, Any]) -> str:
    if run is None:
        return "not run"
    return f"{run['top1']:.2f} % ({run['top1'] - dense['top1']:+.2f} at {run['macs_share']:.3f})"


def sections(folder: Path, table: Callable[[list[str], list[list[str]]], str], runs: dict[str, dict[str, Any]]) -> list[str]:
    """Headings and tables; none where nothing is stored."""
    place = folder / "forms.json"
    if not place.exists() or "dense" not in runs:
        return []
    stored = json.loads(place.read_text())
    methods = sorted({name for form in stored.values() for name in form} - {"dense"})
    own = {method: runs.get(f"{method}-untrained-65") for method in methods}
    rows = [["the shipped model", f"{runs['dense']['top1']:.2f} %", *(_cell(own[method], runs["dense"]) for method in methods)]]
    rows += [
        [WORDS[form], f"{found['dense']['top1']:.2f} %", *(_cell(found.get(method), found["dense"]) for method in methods)]
        for form, found in stored.items()
    ]
    count = min(run["images"] for found in stored.values() for run in found.values())
    return [
        "## Other forms of the model",
        "Off the shelf, calibrated to 0.65 x the dense MACs on the same training images. The shipped model was trained for 28 epochs (`train.py`); "
        "the others start from its weights, without what their form leaves out, and were trained for two epochs more (`train_forms.py`). "
        f"Accuracy on {count:,} test images, points to the same model's dense accuracy, share of its MACs.",
        table(["model", "dense", *methods], rows),
    ]
