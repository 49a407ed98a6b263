"""What a search found, as a picture and as one HTML page that needs nothing else."""

from __future__ import annotations

from html import escape
from pathlib import Path

from vitprune.bundle_parts.output import unwritable
from vitprune.reports import page
from vitprune.reports.parts import Report, Section
from vitprune.support.files import write_atomic
from vitprune.tuning.outcome import Outcome
from vitprune.tuning.tune import Tuned

WIDTH, HEIGHT, LEFT, TOP = 860, 420, 70, 16
COLUMNS = ("share", "MACs", "method", "found", "agree", "error", "patches per site", "trial")
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#00819c", "#8a6d00", "#b3261e", "#4a5568", "#6b46c1")


def write_report(folder: Path, found: Tuned) -> Path:
    """Write front.svg and report.html into the folder of a search; the page's path.

    Raises:
        RecipeError: VP107.
    """
    picture = plot(found)
    try:
        write_atomic(folder / "front.svg", picture.encode())
        write_atomic(folder / "report.html", page.page(_report(found, picture)).encode())
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder / "report.html"


def loss_of(one: Outcome) -> float:
    """Percent of the dense predictions that are lost, or for models without classes the error in percent."""
    return 100 * (one.error if one.agreement is None else 1 - one.agreement)


def plot(found: Tuned) -> str:
    """Cost against loss of every setting, the front joined, the chosen one ringed; SVG."""
    outcomes = found.outcomes
    methods = sorted({one.method for one in outcomes})
    share = next(value for value in found.document["budget"].values() if value is not None)
    right = max([share, *(one.spent for one in outcomes)]) * 1.03
    left = min([share, *(one.spent for one in outcomes)]) * 0.97
    lowest = min((loss_of(one) for one in outcomes), default=0.0)
    high = max(1e-6, min(max((loss_of(one) for one in outcomes), default=1.0), 6 * lowest + 2))  # far ones lie on the upper edge

    def x(value: float) -> float:
        return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - 150)

    def y(value: float) -> float:
        return HEIGHT - 46 - min(value, high) / high * (HEIGHT - 46 - TOP)

    parts = [
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - 150}" height="{HEIGHT - 46 - TOP}" fill="none" stroke="#8896a8"/>',
        f'<line x1="{x(share):.1f}" x2="{x(share):.1f}" y1="{TOP}" y2="{HEIGHT - 46}" stroke="#8896a8" stroke-dasharray="5 4"/>',
        f'<text x="{x(share) - 4:.1f}" y="{TOP + 14}" text-anchor="end" font-size="12" fill="currentColor">budget {share:g}</text>',
    ]
    for step in range(5):
        a, b = left + (right - left) * step / 4, high * step / 4
        parts.append(
            f'<text x="{x(a):.1f}" y="{HEIGHT - 28}" text-anchor="middle" font-size="12" fill="currentColor">{a:.2f}</text>'
        )
        parts.append(
            f'<text x="{LEFT - 8}" y="{y(b) + 4:.1f}" text-anchor="end" font-size="12" fill="currentColor">{b:.3g}</text>'
        )
    line = " ".join(f"{x(one.spent):.1f},{y(loss_of(one)):.1f}" for one in found.front)
    parts.append(f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/>')
    for one in outcomes:
        colour = COLOURS[methods.index(one.method) % len(COLOURS)]
        text = escape(f"trial {one.number}: {one.candidate}, {one.kind}, {one.spent:.3f}, {loss_of(one):.2f}")
        mark = f'<circle cx="{x(one.spent):.1f}" cy="{y(loss_of(one)):.1f}" r="4" fill="{colour}" fill-opacity=".75"><title>{text}</title></circle>'
        parts.append(mark)
    if found.chosen is not None:
        one = found.chosen
        parts.append(
            f'<circle cx="{x(one.spent):.1f}" cy="{y(loss_of(one)):.1f}" r="9" fill="none" stroke="currentColor" stroke-width="2"/>'
        )
    for number, name in enumerate(methods):
        at = TOP + 10 + 20 * number
        parts.append(f'<circle cx="{WIDTH - 136}" cy="{at}" r="5" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(f'<text x="{WIDTH - 124}" y="{at + 4}" font-size="13" fill="currentColor">{escape(name)}</text>')
    latency = found.document["budget"]["macs"] is None
    below = "share of the dense latency" if latency else "share of the dense MACs"
    unit = "error of the outputs, %" if outcomes and outcomes[0].agreement is None else "dense predictions lost, %"
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}" font-size="13" fill="currentColor">{below}; upwards: {unit}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" '
        f'font-family="system-ui,sans-serif" color="#16202e" aria-label="cost against loss">{"".join(parts)}</svg>\n'
    )


def _report(found: Tuned, picture: str) -> Report:
    """The page's parts."""
    document, chosen = found.document, found.chosen
    unreached = document["trials"] - len(found.outcomes)
    seen = (
        f"{document['images']} images ({document['data']}), {len(found.outcomes)} settings evaluated, {unreached} cut short or out of reach; "
        "agreement is with the dense model, no labels are used"
    )
    keys = () if chosen is None else tuple((key, str(value)) for key, value in chosen.prune.items())
    title = "Nothing meets the budget" if chosen is None else f"Chosen, recipe.yaml: {chosen.candidate}"
    tried = tuple(_row(one) for one in sorted(found.outcomes, key=lambda one: one.rank))
    return Report(
        f"vitprune tune: {document['model']}",
        "",
        (
            Section(title, found.why, ("key", "value") if keys else (), keys),
            Section("Cost against loss", seen, drawing=picture.replace('color="#16202e" ', "")),
            Section("Pareto front", "front/*.yaml", COLUMNS, tuple(map(_row, found.front))),
            Section("Everything that was evaluated", "", COLUMNS, tried),
        ),
    )


def _row(one: Outcome) -> tuple[str, ...]:
    agreed = "–" if one.agreement is None else f"{100 * one.agreement:.2f} %"
    tokens = ", ".join(f"{value:.0f}" for value in one.tokens)
    return f"{one.spent:.3f}", f"{one.macs:.3f}", one.candidate, one.kind, agreed, f"{one.error:.5f}", tokens, str(one.number)
