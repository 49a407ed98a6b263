"""Which part of Ward merging gives what, at half of the dense MACs: runs of `sweep.py`, and the rows of the report about them.

python recipes/fashion_mnist/ablation.py         # sweeps what is not stored yet; some two minutes a row on one core
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Run = dict[str, Any]
SHARE = 50
BASE = "ward_merge-untrained"
# What the table says, name of the runs, keys that differ from the shipped defaults (all 96 channels: 128 sums would be more).
VARIANTS: list[tuple[str, str, list[str]]] = [
    ("as shipped: all channels, two rounds, q = 0.4, adaptive counts", BASE, []),
    ("sketch of 64 sums", "ward_merge-sketch64-untrained", ["prune.sketch=64"]),
    ("sketch of 32 sums", "ward_merge-sketch32-untrained", ["prune.sketch=32"]),
    ("sketch of 16 sums", "ward_merge-sketch16-untrained", ["prune.sketch=16"]),
    ("one round", "ward_merge-rounds1-untrained", ["prune.rounds=1"]),
    ("three rounds", "ward_merge-rounds3-untrained", ["prune.rounds=3"]),
    ("q = 0: no weighting by the CLS token", "ward_merge-q0-untrained", ["prune.importance_power=0"]),
    ("q = 1", "ward_merge-q1-untrained", ["prune.importance_power=1"]),
    ("fixed counts", "ward_merge-fixed-untrained", ["prune.counts=fixed"]),
]


def rows(runs: dict[str, Run], difference: Any) -> list[list[str]]:
    """Rows of the stored runs: what, top-1, share of the MACs computed dynamically and padded, points to the first row with interval.

    Args:
        runs: by name. difference: of two runs on the same images, (points, half of the 95 % interval).
    """
    base, found = runs.get(f"{BASE}-{SHARE}"), []
    for text, name, _ in VARIANTS:
        run = runs.get(f"{name}-{SHARE}")
        if run is None or base is None:
            found.append([text, "not run", "", "", ""])
            continue
        points, half = (0.0, 0.0) if run is base else difference(run, base)
        gained = "–" if run is base else f"{points:+.2f} [{points - half:+.2f}, {points + half:+.2f}]"
        found.append([text, f"{run['top1']:.2f}", f"{run['macs_share']:.3f}", f"{padded(run):.3f}", gained])
    return found


def padded(run: Run) -> float:
    """Share of the dense MACs that the padded form computes, with capacities for the fullest of the images."""
    from vitprune import methods
    from vitprune.methods.cost import dense_blocks, model_macs
    from vitprune.recipe import Recipe
    from vitprune.vit import loading
    from vitprune.vit.dense import geometry

    recipe = Recipe.load(str(HERE / "ward_merge.yaml"))
    shape = geometry(loading.load(recipe.model, pretrained=False).module)
    keys = {key: value for key, value in run["prune"].items() if value is not None}
    wanted = Recipe.load({"prune": keys}).prune
    method = methods.get(run["method"])
    most = [float(max(count for count, images in enumerate(site["histogram"]) if images)) for site in run["sites"]]
    dense = model_macs(shape, dense_blocks(shape))
    return float(model_macs(shape, method.block_tokens(method.sites(wanted, shape), shape, most)) / dense)


def main() -> None:
    for _, name, keys in VARIANTS:
        if (HERE / "results" / f"{name}-{SHARE}.json").is_file():
            continue
        words = [word for key in keys for word in ("--set", key)]
        recipe = HERE / "training" / "ward_merge.yaml"
        command = [HERE / "sweep.py", recipe, "--name", name, "--shares", SHARE / 100, "--rounds", 0, *words]
        subprocess.run([sys.executable, *map(str, command)], check=True)


if __name__ == "__main__":
    main()
