"""A self-contained HTML report: verdict, dense against pruned, tokens per site, pictures of the kept tokens."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.reports.pictures import data_uri, displayable, with_dropped, with_groups
from vitprune.validation.compare import Gate
from vitprune.validation.verdict import Verdict

STYLE = """
:root{color-scheme:light dark;--ink:#16202e;--soft:#5c6b7f;--line:#d9e0e8;--paper:#fff;--card:#f5f7fa;--bar:#2b6cb0;--good:#1f7a4d;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e8edf3;--soft:#9fb0c3;--line:#2c3846;--paper:#10161d;--card:#18212b;--bar:#6ba8e5;--good:#58c48d;--bad:#f2877f}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1080px;margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.6rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:2rem 0 .6rem}p.note{color:var(--soft);margin:.2rem 0}
table{border-collapse:collapse;width:100%}th,td{padding:.35rem .7rem;border-bottom:1px solid var(--line);text-align:right;font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:600}
.verdict{display:inline-block;padding:.15rem .6rem;border-radius:.4rem;font-weight:700;color:#fff}.pass{background:var(--good)}.fail{background:var(--bad)}.open{background:#8a6d00}
.gallery{overflow-x:auto}.row{display:flex;gap:.5rem;align-items:flex-start;padding:.5rem 0;border-bottom:1px solid var(--line)}
figure{margin:0;text-align:center;flex:none}img{display:block;border-radius:.3rem;image-rendering:pixelated;width:112px;height:auto}
figcaption{font-size:.74rem;color:var(--soft);margin-top:.15rem}.who{width:118px;flex:none;font-size:.85rem}
"""


def table(columns: list[str], rows: list[list[str]]) -> str:
    """An HTML table of plain texts."""
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _bars(verdict: Verdict, patches: int) -> str:
    """Mean kept patches per site with the range seen, as inline SVG."""
    width, row, left = 860, 24, 90
    scale = (width - left - 120) / patches
    parts = []
    for number, site in enumerate(verdict.comparison.sites):
        y = number * row + 4
        low, high = left + site.kept_min * scale, left + site.kept_max * scale
        parts.append(
            f'<text x="0" y="{y + 13}" fill="currentColor" font-size="13">block {site.block}</text>'
            f'<rect x="{left}" y="{y}" width="{patches * scale:.1f}" height="16" fill="var(--line)" rx="3"/>'
            f'<rect x="{left}" y="{y}" width="{site.kept_mean * scale:.1f}" height="16" fill="var(--bar)" rx="3"/>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 8}" y2="{y + 8}" stroke="currentColor" stroke-width="2"/>'
            f'<text x="{left + patches * scale + 8:.1f}" y="{y + 13}" fill="currentColor" font-size="13">{site.kept_mean:.1f} ({site.kept_min}–{site.kept_max})</text>'
        )
    height = len(verdict.comparison.sites) * row + 6
    return (
        f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="kept patches per site">{"".join(parts)}</svg>'
    )


def _gallery(
    arrays: dict[str, NDArray[Any]],
    kept: list[NDArray[np.int64]],
    blocks: list[int],
    preprocessing: dict[str, Any],
    grid: tuple[int, int],
    names: list[str],
    count: int,
    groups: list[NDArray[np.int64]] | None = None,
) -> str:
    if not kept:
        return "<p>no tokens are dropped by this method</p>"
    total = np.sum([(site >= 0).sum(axis=1) for site in kept], axis=0)
    order = np.argsort(total, kind="stable")
    pick = np.unique(np.concatenate([order[: count // 2], order[-(count - count // 2) :]]))
    rows = []
    for image in sorted(pick, key=lambda i: total[i]):
        pixels = displayable(arrays["images"][image], preprocessing)
        scale = max(1, 112 // pixels.shape[0])
        everything = np.arange(grid[0] * grid[1])
        figures = [
            f'<figure><img alt="input" src="{data_uri(with_dropped(pixels, everything, grid, scale))}"><figcaption>input</figcaption></figure>'
        ]
        for number, (block, site) in enumerate(zip(blocks, kept, strict=True)):
            if groups:
                picture = data_uri(with_groups(pixels, groups[number][image], grid, scale))
            else:
                picture = data_uri(with_dropped(pixels, site[image], grid, scale))
            left = int((site[image] >= 0).sum())
            figures.append(
                f'<figure><img alt="kept after block {block}" src="{picture}"><figcaption>block {block}: {left}</figcaption></figure>'
            )
        guess = _name(names, int(arrays["run_logits"][image].argmax()))
        truth = f"<br>label {escape(_name(names, int(arrays['labels'][image])))}" if "labels" in arrays else ""
        rows.append(
            f'<div class="row"><div class="who">image {image}<br><b>{escape(guess)}</b>{truth}<br>{int(total[image])} patches over all sites</div>{"".join(figures)}</div>'
        )
    return "".join(rows)


def _interval(gate: Gate) -> str:
    return "" if gate.interval is None else f"{gate.interval[0]:.3g} to {gate.interval[1]:.3g}{gate.unit}"


def _name(names: list[str], number: int) -> str:
    return names[number] if number < len(names) else f"class {number}"


def html_report(
    verdict: Verdict, arrays: dict[str, NDArray[Any]], kept: list[NDArray[np.int64]], preprocessing: dict[str, Any], grid: tuple[int, int],
    *, facts: list[list[str]] | None = None, class_names: list[str] | None = None, count: int = 10,
    groups: list[NDArray[np.int64]] | None = None,
) -> str:  # fmt: skip
    """Write the report.

    Args:
        verdict: the validation's outcome.
        arrays: images [n,C,H,W], run_logits [n,classes] and, where known, labels.
        kept: per site int64 [n,K], what the run kept.
        preprocessing: to show the images as they were. grid: patch rows and columns.
        facts: rows of (what, dense, pruned). class_names: for captions. count: number of images shown, easiest and hardest.
        groups: of merging methods, per site int64 [n,P]: for every patch the patch that represents its row; shown in mean colours.
    """
    comparison = verdict.comparison
    blocks = [site.block for site in comparison.sites]
    word, style = verdict.status.upper(), {"passed": "pass", "failed": "fail", "undecided": "open"}[verdict.status]
    gates = table(
        ["gate", "limit", "seen", "95 % interval", ""],
        [
            [
                g.name,
                f"{g.limit:g}{g.unit}",
                f"{g.seen:.3g}{g.unit}",
                _interval(g),
                "holds" if g.passed else "undecided" if g.undecided else "broken",
            ]
            for g in verdict.gates
        ],
    )
    sizes = table(["", "dense", "pruned"], facts) if facts else ""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><title>vitprune: {escape(verdict.bundle)}</title><style>{STYLE}</style>
<h1>{escape(verdict.bundle)} <span class="verdict {style}">{word}</span></h1>
<p class="note">{escape(verdict.backend)} against {escape(verdict.reference)}, {comparison.images} images ({escape(verdict.data)}); evidence: {escape(verdict.rung)}</p>
{"<h2>Dense against pruned</h2>" + sizes if sizes else ""}
<h2>Gates</h2>{gates}
<h2>Kept patches per site</h2><p class="note">mean over the images; the line is the range seen; of {grid[0] * grid[1]} patches</p>{_bars(verdict, grid[0] * grid[1])}
<h2>Which tokens were {"merged" if groups else "kept"}</h2><p class="note">the images that needed the fewest tokens, then those that needed the most; {"merged patches have their mean colour" if groups else "dropped patches are dark"}</p>
<div class="gallery">{_gallery(arrays, kept, blocks, preprocessing, grid, class_names or [], count, groups)}</div>
</html>
"""
