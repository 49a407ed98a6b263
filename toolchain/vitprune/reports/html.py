"""A validation as one page: verdict, dense against pruned, gates, tokens per site, pictures of what became of the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.reports.page import page
from vitprune.reports.parts import Report, Section
from vitprune.reports.pictures import data_uri, displayable, with_dropped, with_groups
from vitprune.validation.compare import Gate
from vitprune.validation.verdict import Verdict

SIDE = 112  # pixels that a picture has at least


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
    comparison, patches = verdict.comparison, grid[0] * grid[1]
    sections = [_evidence(verdict)]
    if facts:
        sections.append(Section("Dense against pruned", columns=("", "dense", "pruned"), rows=tuple(map(tuple, facts))))
    sections += [Section(title, columns=tuple(columns), rows=tuple(map(tuple, rows))) for title, columns, rows in verdict.tables]
    sections.append(
        Section("Gates", columns=("gate", "limit", "seen", "95 % interval", "outcome"), rows=tuple(map(_gate, verdict.gates)))
    )
    if comparison.sites:
        note = f"mean over the images; the line is the range seen; of {patches} patches"
        sections.append(Section("Kept patches per site", note, drawing=_bars(verdict, patches)))
    sections.append(_gallery(verdict, arrays, kept, preprocessing, grid, class_names or [], count, groups))
    return page(Report(verdict.bundle, verdict.status, tuple(sections)))


def _evidence(verdict: Verdict) -> Section:
    images = f"{verdict.comparison.images} images ({verdict.data})"
    return Section("Compared", f"{verdict.backend} against {verdict.reference}, {images}; evidence: {verdict.rung}")


def _gate(gate: Gate) -> tuple[str, ...]:
    interval = "" if gate.interval is None else f"{gate.interval[0]:.3g} to {gate.interval[1]:.3g}{gate.unit}"
    outcome = "holds" if gate.passed else "undecided" if gate.undecided else "broken"
    said = f"{outcome}; {gate.note}" if gate.note else outcome
    return gate.name, f"{gate.limit:g}{gate.unit}", f"{gate.seen:.3g}{gate.unit}", interval, said


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
    verdict: Verdict, arrays: dict[str, NDArray[Any]], kept: list[NDArray[np.int64]], preprocessing: dict[str, Any], grid: tuple[int, int],
    names: list[str], count: int, groups: list[NDArray[np.int64]] | None,
) -> Section:  # fmt: skip
    """Images that needed the fewest tokens, then those that needed the most, with what is left of them at every site."""
    title = f"Which tokens were {'merged' if groups else 'kept'}"
    if not kept:
        return Section(title, "no tokens are dropped by this method")
    total = np.sum([(site >= 0).sum(axis=1) for site in kept], axis=0)
    order = np.argsort(total, kind="stable")
    pick = np.unique(np.concatenate([order[: count // 2], order[-(count - count // 2) :]]))
    rows = []
    for image in sorted(pick, key=lambda i: total[i]):
        pixels = displayable(arrays["images"][image], preprocessing)
        scale = max(1, SIDE // pixels.shape[0])
        whole = with_dropped(pixels, np.arange(grid[0] * grid[1]), grid, scale)
        row = [(_who(arrays, int(image), int(total[image]), names), data_uri(whole))]
        for number, (site, left) in enumerate(zip(verdict.comparison.sites, kept, strict=True)):
            shown = (
                with_groups(pixels, groups[number][image], grid, scale)
                if groups
                else with_dropped(pixels, left[image], grid, scale)
            )
            row.append((f"block {site.block}: {int((left[image] >= 0).sum())} left", data_uri(shown)))
        rows.append(tuple(row))
    how = "merged patches have their mean colour" if groups else "dropped patches are dark"
    return Section(
        title, f"the images that needed the fewest tokens, then those that needed the most; {how}", pictures=tuple(rows)
    )


def _who(arrays: dict[str, NDArray[Any]], image: int, patches: int, names: list[str]) -> str:
    """The input's caption: its number, what the model says it is, what it is."""
    guess = _name(names, int(arrays["run_logits"][image].argmax()))
    truth = f"\nlabel {_name(names, int(arrays['labels'][image]))}" if "labels" in arrays else ""
    return f"image {image}\nsaid {guess}{truth}\n{patches} patches over all sites"


def _name(names: list[str], number: int) -> str:
    return names[number] if number < len(names) else f"class {number}"
