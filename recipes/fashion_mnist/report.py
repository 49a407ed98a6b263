"""RESULTS.md and its plots from the stored JSON of `results.py`; no number in it is typed.

python recipes/fashion_mnist/report.py
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ablation
import forms_report
import types_report

HERE = Path(__file__).parent
Run = dict[str, Any]
# What the papers ask: (question, name of one run, name of the other), both calibrated to 0.65 x the dense MACs; answered where both
# are stored.
QUESTIONS = [
    ("ATS against top-k, off the shelf", "ats-untrained-65", "topk-untrained-65"),
    ("ATS against top-k, fine-tuned", "ats-65", "topk-65"),
    ("ATS fine-tuned against off the shelf", "ats-65", "ats-untrained-65"),
    ("ATS at many stages against one, off the shelf", "ats-untrained-65", "ats_single-untrained-65"),
    ("ATS at many stages against one, fine-tuned", "ats-65", "ats_single-65"),
    ("ATS with ‖V‖ in the score against without, off the shelf", "ats-untrained-65", "ats-plain_scores-untrained-65"),
    ("ATS with ‖V‖ in the score against without, fine-tuned with", "ats-65", "ats-plain_scores-65"),
    ("ATS: dropped tokens merged against lost, off the shelf", "ats_merge-untrained-65", "ats-untrained-65"),
    ("ATS: dropped tokens merged against lost, fine-tuned", "ats_merge-65", "ats-65"),
    ("AS-ViT adaptive against fixed k (top-k), trained", "asvit-65", "topk-65"),
    ("AS-ViT adaptive against fixed k (top-k), calibrated only", "asvit-untrained-65", "topk-untrained-65"),
    ("AS-ViT with against without head weights, calibrated only", "asvit-untrained-65", "asvit-plain_heads-untrained-65"),
    ("AS-ViT with against without head weights, trained with", "asvit-65", "asvit-plain_heads-65"),
    ("AS-ViT trained against calibrated only", "asvit-65", "asvit-untrained-65"),
    ("EViT's fused token against none (top-k), off the shelf", "evit-untrained-65", "topk-untrained-65"),
    ("EViT's fused token against none (top-k), trained", "evit-65", "topk-65"),
    ("Merging (ToMe) against dropping (top-k), off the shelf", "tome-untrained-65", "topk-untrained-65"),
    ("Merging (ToMe) against dropping (top-k), trained", "tome-65", "topk-65"),
    ("Merging by threshold against a fixed number (ToMe), off the shelf", "tome_threshold-untrained-65", "tome-untrained-65"),
    ("Merging by threshold against a fixed number (ToMe), trained", "tome_threshold-65", "tome-65"),
    ("DVT against a single dense model", "dvt", "dense"),
]


def load(folder: Path) -> list[Run]:
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(runs, key=lambda run: (-run["macs_share"], run["name"]))


def overlap(one: Run, other: Run) -> bool:
    return one["ci95"][0] <= other["ci95"][1] and other["ci95"][0] <= one["ci95"][1]


def row(run: Run, dense: Run | None) -> list[str]:
    latency = run.get("latency", {})
    tokens = ", ".join(f"{site['mean']:.0f}" for site in run["sites"]) or "–"
    change = "–" if dense is None or run is dense else f"{run['top1'] - dense['top1']:+.2f}"
    return [
        run["name"], "yes" if run["trained"] else "no", f"{run['top1']:.2f} [{run['ci95'][0]:.2f}, {run['ci95'][1]:.2f}]", change,
        f"{run['macs'] / 1e6:.1f} M", f"{run['macs_share']:.3f}", tokens,
        *(f"{latency[key]['ratio']:.2f}" if key in latency else "–" for key in ("batch_1", "batch_8")),
    ]  # fmt: skip


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows]])


def questions(runs: dict[str, Run]) -> list[list[str]]:
    rows = []
    for text, first, second in QUESTIONS:
        if first not in runs or second not in runs:
            rows.append([text, "not run", "", ""])
            continue
        one, other = runs[first], runs[second]
        points = one["top1"] - other["top1"]
        verdict = "within the intervals" if overlap(one, other) else ("yes, better" if points > 0 else "no, worse")
        sides = f"{one['top1']:.2f} % at {one['macs_share']:.3f} / {other['top1']:.2f} % at {other['macs_share']:.3f}"
        rows.append([text, sides, f"{points:+.2f}", verdict])
    return rows


# Pairs of runs at one share, judged image by image where both stored which they got right.
PAIRED = [
    (f"{first}-{share}", f"{second}-{share}")
    for first, second in (
        ("ward_merge-untrained", "tome_falling-untrained"),
        ("ward_merge-fixed-untrained", "tome_falling-untrained"),
        ("ward_merge", "tome_falling"),
    )
    for share in (80, 65, 50, 40)
]


def ward_verdict(runs: dict[str, Run]) -> str:
    """Whether Ward merging is better than ToMe off the shelf at half of the MACs and less, and what the ablation says about why."""
    words = []
    for share in (50, 40):
        one, other = runs.get(f"ward_merge-untrained-{share}"), runs.get(f"tome_falling-untrained-{share}")
        if one is None or other is None:
            return "Whether it is better at half of the MACs and less was not measured."
        points, half = difference(one, other)
        words.append("yes" if points > half else "no, worse" if points < -half else "no, inside the interval")
    text = f"Better than ToMe off the shelf, beyond the interval: at .50 {words[0]}; at .40 {words[1]}."
    base, parts = runs.get("ward_merge-untrained-50"), []
    for name, what in (("q0", "without the weighting by the CLS token"), ("rounds1", "with one round")):
        other = runs.get(f"ward_merge-{name}-untrained-50")
        if base is not None and other is not None and difference(other, base)[0] > difference(other, base)[1]:
            points, half = difference(other, base)
            parts.append(f"{what} it gains {points:.2f} [{points - half:.2f}, {points + half:.2f}] points at .50")
    if parts and set(words) != {"yes"}:
        text += f" The ablation below says what costs it: {', '.join(parts)}."
    return text


def paired(runs: dict[str, Run]) -> list[list[str]]:
    """Difference in top-1 points of two runs on the same images, with the 95 % interval of paired differences."""
    rows = []
    for first, second in PAIRED:
        if "right" not in runs.get(first, {}) or "right" not in runs.get(second, {}):
            continue
        one, other = runs[first], runs[second]
        points, half = difference(one, other)
        verdict = "better" if points > half else "worse" if points < -half else "no difference beyond the interval"
        sides = f"{one['top1']:.2f} % at {one['macs_share']:.3f} / {other['top1']:.2f} % at {other['macs_share']:.3f}"
        rows.append([f"{first} / {second}", sides, f"{points:+.2f} [{points - half:+.2f}, {points + half:+.2f}]", verdict])
    return rows


def difference(one: Run, other: Run) -> tuple[float, float]:
    """Points of top-1 between two runs on the same images, and half of the 95 % interval of paired differences."""
    pairs = list(zip(one["right"], other["right"], strict=True))
    gained, lost, count = pairs.count(("1", "0")), pairs.count(("0", "1")), len(pairs)
    half = 196 * math.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
    return 100 * (gained - lost) / count, half


def tuned(found: dict[str, Any]) -> str:
    """What `tuned.py` stored, in words."""
    chosen, rivals = found["chosen"], found["rivals"]
    if chosen is None:
        return f"Nothing met {found['share']} of the MACs."
    best = rivals[0] if rivals else None
    against = "no recipe or calibrated setting costs as little"
    if best is not None:
        holds = "holds" if chosen["agreement"] >= best["agreement"] else "does not hold"
        against = f"the best of {len(rivals)} recipes and calibrated settings at that cost, {best['candidate']} ({best['kind']}), has {100 * best['agreement']:.2f} % ({holds})"
    shared = found["two_processes"]
    return (
        f"{found['trials']} trials on {found['images']} training images without labels (`tuned.py`): {chosen['candidate']} ({chosen['kind']}) gives "
        f"{100 * chosen['agreement']:.2f} % of the dense model's predictions at {chosen['macs']:.3f} of its MACs; {against}. Killed at trial {found['killed_at']} and gone on "
        f"with: {'the same front' if found['same_front_after_kill'] else 'ANOTHER front'}. Two processes on one study of {shared['trials']}: "
        f"{'both know the same' if shared['same_outcomes'] else 'they DIFFER in the'} {shared['evaluated']} outcomes."
    )


def winners(runs: list[Run]) -> list[list[str]]:
    rows = []
    for share in (0.8, 0.65, 0.5, 0.4):
        near = [run for run in runs if run["method"] != "dense" and share - 0.08 <= run["macs_share"] <= share + 0.02]
        best = max(near, key=lambda run: run["top1"], default=None)
        if best is None:
            rows.append([f"{share} x", "no run", "", ""])
            continue
        ties = [run["name"] for run in near if run is not best and overlap(run, best)]
        rows.append(
            [f"{share} x", f"{best['name']} ({best['macs_share']:.3f})", f"{best['top1']:.2f} %", ", ".join(ties) or "none"]
        )
    return rows


def adaptive(run: Run) -> bool:
    """Whether the work differs from image to image."""
    return "dvt" in run or any(site["deviation"] > 0 for site in run["sites"])


def named(runs: list[Run], dense: Run) -> str:
    return ", ".join(f"{run['name']} ({run['top1'] - dense['top1']:+.2f} at {run['macs_share']:.2f})" for run in runs) or "none"


def claims(runs: dict[str, Run]) -> list[str]:
    """The issue's own bars, with what was found."""
    dense, lines = runs.get("dense"), []
    if dense is None:
        return ["The dense model has not been evaluated yet."]
    lines.append(f"- Dense model at least 91 %: {dense['top1']:.2f} % ({'holds' if dense['top1'] >= 91 else 'does not hold'}).")
    small = [run for run in runs.values() if run["macs_share"] <= 0.7 and adaptive(run)]
    close = [run for run in small if run["top1"] >= dense["top1"] - 0.3]
    inside = [run for run in small if run not in close and run["top1"] >= dense["ci95"][0]]
    lines.append(
        "- Adaptive methods at no more than 0.70 x dense MACs, two of them within 0.3 points of dense or as good within its interval "
        f"({'holds' if len({run['method'] for run in close + inside}) >= 2 else 'does not hold'}). Within 0.3 points: {named(close, dense)}; "
        f"not, but in dense's interval: {named(inside, dense)}; lower: {named([run for run in small if run not in close + inside], dense)}."
    )
    if {"ats-65", "ats-untrained-65"} <= runs.keys():
        gain = runs["ats-65"]["top1"] - runs["ats-untrained-65"]["top1"]
        lines.append(f"- ATS fine-tuned against off the shelf: {gain:+.2f} points ({'holds' if gain > 0 else 'does not hold'}).")
    if "dvt" in runs:
        found = runs["dvt"]["dvt"]
        last, ratio = found["exits_alone"][-1]["top1"], found["full_to_mean"]
        same = runs["dvt"]["top1"] >= last or overlap(runs["dvt"], found["exits_alone"][-1])
        lines.append(
            f"- DVT: {runs['dvt']['top1']:.2f} % against {last:.2f} % of its largest model alone, {ratio:.2f} x fewer MACs than always "
            f"running to the end ({'holds' if same and ratio >= 1.6 else 'does not hold'} for 1.6 x), "
            f"{1 / runs['dvt']['macs_share']:.2f} x fewer than the dense model."
        )
    return lines


def details(runs: list[Run]) -> list[str]:
    parts = []
    for run in runs:
        if "avit" in run:
            shares = ", ".join(f"{100 * value:.0f} %" for value in run["avit"]["halted_share_by_block"])
            parts.append(f"**{run['name']}**: patches halted before block 0, 1, ...: {shares}.")
        if "dvt" in run:
            shares = ", ".join(f"{100 * value:.1f} %" for value in run["dvt"]["exit_shares"])
            alone = ", ".join(f"{value['top1']:.2f} %" for value in run["dvt"]["exits_alone"])
            parts.append(f"**{run['name']}**: images answered at exits 1, 2, 3: {shares}; accuracy of each exit alone: {alone}.")
    return parts


def markdown(runs: list[Run], plots: list[str], types: Sequence[str] = (), search: dict[str, Any] | None = None) -> str:
    named = {run["name"]: run for run in runs}
    dense = named.get("dense")
    head = ["run", "trained", "top-1 % [95 % CI]", "to dense", "MACs/image", "share", "patches per site", "ORT b=1", "ORT b=8"]
    parts = [
        "# Results on Fashion-MNIST",
        "Generated by `recipes/fashion_mnist/report.py` from the JSON files in `results/`; every run that was stored is listed. Accuracy on all "
        "test images with Wilson intervals, MACs as mean over images, latency as CPU-time ratio to the dense graph on ONNX Runtime, one thread.",
        table(head, [row(run, dense) for run in runs]),
        "## What was to be shown",
        "\n".join(claims(named)),
        "## Questions of the papers",
        table(["question", "first / second", "points", "first better?"], questions(named)),
        *(
            [
                "## Ward merging against ToMe on its best falling schedule",
                "Both calibrated on the same images"
                + (
                    "; trained: one epoch with merging on, at half of the MACs. "
                    if "ward_merge-50" in named
                    else "; not trained yet. "
                )
                + ward_verdict(named),
                table(["runs", "top-1 at share", "points", ""], paired(named)),
            ]
            if paired(named)
            else []
        ),
        "## What the parts of Ward merging give",
        "Off the shelf, calibrated to half of the dense MACs (`ablation.py`); padded: MACs that static shapes compute, with capacities for the "
        "fullest test image; points: to the first row, paired, with its 95 % interval.",
        table(["variant", "top-1 %", "MACs, dynamic", "MACs, padded", "points"], ablation.rows(named, difference)),
        *(["## What `tune` finds at half of the dense MACs", tuned(search)] if search else []),
        "## Best at a share of the dense MACs",
        table(["share", "run", "top-1", "within its interval"], winners(runs)),
        *(["## Depths and exits", "\n\n".join(details(runs))] if details(runs) else []),
        *types,
        *([f"![{Path(plot).stem}]({plot})" for plot in plots]),
    ]
    return "\n\n".join(parts) + "\n"


def series(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs of one model at its own setting and at several budgets, by falling share; ablations are left to the tables."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if not re.search(r"-(plain_|q\d|rounds|sketch)", run["name"]):
            found.setdefault(re.sub(r"-\d\d$", "", run["name"]), []).append(run)
    return found


def draw(runs: list[Run], folder: Path) -> list[str]:
    """Plots; none where matplotlib is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    made = []

    def keep(figure: Any, name: str) -> None:
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
        pyplot.close(figure)
        made.append(f"{folder.name}/{name}.png")

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    methods = sorted({run["method"] for run in runs} - {"dense"})
    palette = pyplot.get_cmap("turbo")([(number + 0.5) / len(methods) for number in range(len(methods))]) if methods else []
    for name, group in series(runs).items():
        shares, values = [run["macs_share"] for run in group], [run["top1"] for run in group]
        trained = group[0]["trained"]
        colour = palette[methods.index(group[0]["method"])] if group[0]["method"] in methods else "black"
        axes.plot(shares, values, "o-" if trained else "x--", color=colour, label=name, markersize=4, linewidth=1)
    axes.set(xlabel="MACs / dense", ylabel="top-1 %", title="accuracy against MACs (circles: trained, crosses: off the shelf)")
    axes.set_ylim(bottom=max(80, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    keep(figure, "accuracy_macs")
    runs = [run for run in runs if "-" not in run["name"]]  # trained, at their own setting
    for run in (run for run in runs if any(site["deviation"] > 0 for site in run["sites"])):
        figure, all_axes = pyplot.subplots(
            1, len(run["sites"]), figsize=(2.2 * len(run["sites"]), 2.2), sharey=True, squeeze=False
        )
        for axes, site in zip(all_axes[0], run["sites"], strict=True):
            axes.bar(range(len(site["histogram"])), site["histogram"], width=1.0)
            axes.set_title(f"block {site['block']}", fontsize=8)
        figure.suptitle(f"{run['name']}: patches kept", fontsize=9)
        keep(figure, f"tokens_{run['name']}")
    for run in (run for run in runs if "avit" in run):
        depth = run["avit"]["depth_map"]
        side = int(len(depth) ** 0.5)
        figure, axes = pyplot.subplots(figsize=(3, 2.6))
        shown = axes.imshow([depth[i * side : (i + 1) * side] for i in range(side)])
        figure.colorbar(shown)
        axes.set_title(f"{run['name']}: mean depth of each patch", fontsize=8)
        keep(figure, f"depth_{run['name']}")
    for run in (run for run in runs if "dvt" in run):
        figure, axes = pyplot.subplots(figsize=(3.2, 2.4))
        axes.bar(["exit 1", "exit 2", "exit 3"], [100 * value for value in run["dvt"]["exit_shares"]])
        axes.set(ylabel="% of images", title=run["name"])
        keep(figure, f"exits_{run['name']}")
    _pictures(runs, keep, pyplot)
    return made


def _pictures(runs: list[Run], keep: Any, pyplot: Any) -> None:
    """Easy and hard images, as far as they lie among the shipped test images."""
    import numpy as np

    with np.load(HERE / "test_images.npz") as data:
        images = data["images"]
    for run in (run for run in runs if run.get("easy") and (any(s["deviation"] > 0 for s in run["sites"]) or "dvt" in run)):
        chosen = [(kind, [n for n in run[kind] if n < len(images)]) for kind in ("easy", "hard")]
        if not all(numbers for _, numbers in chosen):
            continue
        figure, all_axes = pyplot.subplots(2, 8, figsize=(8, 2.3))
        for axes in all_axes.flat:
            axes.axis("off")
        for line, (kind, numbers) in zip(all_axes, chosen, strict=True):
            line[0].set_title(kind, fontsize=8)
            for axes, number in zip(line, numbers, strict=False):
                axes.imshow(images[number], cmap="gray")
        figure.suptitle(run["name"], fontsize=9)
        keep(figure, f"images_{run['name']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    args = parser.parse_args()
    stored = load(args.results)
    if not stored:
        raise SystemExit(f"no results in {args.results}: run results.py first")
    found = HERE / "tune.json"
    search = json.loads(found.read_text()) if found.exists() else None
    others = forms_report.sections(HERE, table, {run["name"]: run for run in stored})
    types = [*others, *types_report.sections(HERE, table)]
    args.out.write_text(markdown(stored, draw(stored, args.out.parent / "plots"), types, search))
    print(args.out)
