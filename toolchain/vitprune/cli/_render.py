"""Tables of results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vitprune import console

if TYPE_CHECKING:
    from vitprune.bundle import Bundle
    from vitprune.validation.features import OutputFigures
    from vitprune.validation.verdict import Verdict

MARKS = {(True, False): "[green]✓[/green]", (False, False): "[red]✗[/red]", (False, True): "[yellow]?[/yellow]"}
COLOURS = {"passed": "green", "failed": "red", "undecided": "yellow"}


def exported(bundle: Bundle, command: str) -> None:
    """What a new bundle holds."""
    notes = json.loads((bundle.path / "reports" / "export.json").read_text(encoding="utf-8"))
    check = notes["check"]
    for warning in notes.get("warnings", []):
        console.warn(warning)
    live = sum(not site["bypass"] for site in bundle.manifest.sites)
    files = (name for name in bundle.manifest.files if name.removesuffix(".data") in bundle.model_files)
    size = sum((bundle.path / name).stat().st_size for name in files) / 2**20
    models = "" if len(bundle.model_files) == 1 else f"{len(bundle.model_files)} models, "
    if "dense_export" in notes:
        console.info(notes["dense_export"])
    if check.get("features"):
        worst = max(output["max_abs"] for output in check["features"])
        console.info(
            f"evidence: graph = PyTorch reference on the CPU, features within {worst:.1e} on {check['images']} images, same kept sets"
        )
        console.info(f"features: {notes['features']['means']}")
    elif "logits_max_abs" in check:
        console.info(
            f"evidence: graph = PyTorch reference on the CPU, logits within {check['logits_max_abs']:.1e} on {check['images']} images, same kept sets"
        )
    else:
        console.info(
            f"evidence: with nothing pruned the graph reproduces the dense one within {check['canonical_max_abs']:.1e}; there is no PyTorch reference"
        )
    console.result(
        f"bundle [bold]{console.plain(bundle.path)}[/bold]: {models}{live} prune sites, {notes['nodes']} nodes, {size:.1f} MiB, samples {console.plain(notes['samples'])}"
    )
    console.document(
        command,
        {
            "status": "ok",
            "exit_code": 0,
            "bundle": str(bundle.path),
            "manifest": bundle.manifest.model_dump(mode="json"),
            "notes": notes,
        },
    )


def verdict(outcome: Verdict) -> None:
    """Sites, gates and the closing line of a validation."""
    comparison = outcome.comparison
    rows = [
        [
            f"block {s.block}",
            f"{s.kept_mean:.1f}",
            f"{s.kept_min}–{s.kept_max}",
            str(s.images_differing),
            f"{s.legal_flips}/{s.illegal_flips}",
            str(s.overflowed),
        ]
        for s in comparison.sites
    ]
    if rows:
        console.table(
            f"kept patches, {comparison.images} images ({outcome.data})",
            ["site", "mean", "range", "images differing", "flips legal/illegal", "overflowed"],
            rows,
        )
    for title, columns, lines in outcome.tables:
        console.table(title, columns, lines)
    if comparison.features:
        console.table(
            f"features, {comparison.logits_compared} images",
            ["output", "rows", "largest difference", "cosine mean", "p1", "against dense: mean", "p1"],
            [_feature_row(output) for output in comparison.features],
        )
    if comparison.accuracy is not None:
        console.table("top-1 accuracy", list(comparison.accuracy), [[f"{value:.2f} %" for value in comparison.accuracy.values()]])
    if (drop := comparison.drop) is not None:
        console.info(
            f"dense alone right on {drop.lost}, pruned alone on {drop.won} of {drop.images} images; McNemar's p {drop.p:.2g}"
        )
    _evidence(comparison.evidence)
    console.info(console.macs_line(**outcome.macs))
    for gate in outcome.gates:
        console.info(f"  {MARKS[gate.passed, gate.undecided]} {console.plain(gate.text())}")
    console.result(
        f"[bold {COLOURS[outcome.status]}]{outcome.status.upper()}[/] {console.plain(outcome.bundle)} on {console.plain(outcome.backend)} against {console.plain(outcome.reference)}; evidence: {outcome.rung}"
    )


def _feature_row(output: OutputFigures) -> list[str]:
    dense = (output.dense_cosine_mean, output.dense_cosine_p1)
    return [
        output.name,
        str(output.rows),
        f"{output.max_abs:.1e}",
        f"{output.cosine_mean:.6f}",
        f"{output.cosine_p1:.6f}",
        *("–" if value is None else f"{value:.4f}" for value in dense),
    ]


def _evidence(facts: dict[str, Any]) -> None:
    """Numerics with locked decisions, the images that differ most, and where a failure begins."""
    if (locked := facts.get("locked")) and locked["logits_max_abs"] is not None:
        console.info(
            f"decisions locked: logits within {locked['logits_max_abs']:.2g} on {locked['images']} images ({locked['followed']} of them "
            f"followed); as they fell: within {locked['free_max_abs']:.2g}"
        )
    for one in facts.get("worst_images", [])[:3]:
        block = one["differs_from_block"]
        where = "" if block is None else f", decides otherwise from block {block}"
        console.detail(f"image {one['image']}: logits differ by {one['logits_max_abs']:.2g}{where}")
    if "divergence" in facts:
        console.info(f"[bold]first difference[/bold] {console.plain(facts['divergence']['text'])}")
