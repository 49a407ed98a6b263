"""Time of the shipped Fashion-MNIST recipes over their dense model on ONNX Runtime, with functions written out and with native operators.

    vitprune plugins build && python benchmarks/shipped.py

As `performance.md` §0 of the design and `speed.py` measure: one thread, CPU time, interleaved in random order, per-round ratios, medians. The
images are real ones, so token counts are those of trained weights. The dense model has the same fused attention, GELU and linear maps.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
from speed import library, machine  # noqa: E402

from vitprune import methods  # noqa: E402
from vitprune.backends.onnxruntime import make_session  # noqa: E402
from vitprune.data import images  # noqa: E402
from vitprune.exporting.dense import dense_onnx  # noqa: E402
from vitprune.graph import surgery  # noqa: E402
from vitprune.graph.lowering.onnxruntime import specialise  # noqa: E402
from vitprune.recipe import Recipe  # noqa: E402
from vitprune.support.resources import recipes_folder  # noqa: E402
from vitprune.vit.loading import load  # noqa: E402

OUT = Path(__file__).parent / "results" / "shipped.json"
FOLDER = "fashion_mnist"


def names() -> list[str]:
    """Shipped recipes of one model; a cascade has no dense model of its own."""
    found = sorted(path.stem for path in (recipes_folder() / FOLDER).glob("*.yaml"))
    return [name for name in found if methods.get(Recipe.load(f"{FOLDER}/{name}").prune.method).pipeline is None]


def sessions(name: str, library: Path | None) -> dict[str, Any]:
    """Sessions "dense", "plain" and, where the graph has such operators, "native"."""
    recipe = Recipe.load(f"{FOLDER}/{name}")
    model = load(recipe.model)
    dense = dense_onnx(model.module, tuple(model.preprocessing["input_size"]), recipe)
    pruned, _, _ = surgery.rewrite(dense, recipe)
    made = {}
    for label, graph in (("dense", surgery.canonical(dense, recipe)), ("plain", pruned)):
        made[label] = make_session(specialise(graph, keep_outputs=False)[0].SerializeToString(), threads=1, spin=False)
    special, facts = specialise(pruned, keep_outputs=False, native=True)
    if facts["native"] and library is not None:
        made["native"] = make_session(special.SerializeToString(), threads=1, spin=False, library=library)
    return made


def measure(made: dict[str, Any], shown: np.ndarray, batch: int, rounds: int) -> dict[str, float]:
    """Median over rounds of time / time of the dense model, by session; every round takes other images."""
    ratios: dict[str, list[float]] = {label: [] for label in made if label != "dense"}
    for number in range(rounds + 2):
        start = number * batch % (len(shown) - batch + 1)
        x, spent = shown[start : start + batch], {}
        for label in random.sample(list(made), len(made)):
            feeds = {made[label].get_inputs()[0].name: x}
            made[label].run(None, feeds)
            began = time.process_time_ns()
            for _ in range(4):
                made[label].run(None, feeds)
            spent[label] = time.process_time_ns() - began
        if number >= 2:
            for label, values in ratios.items():
                values.append(spent[label] / spent["dense"])
    return {label: round(statistics.median(values), 4) for label, values in ratios.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--only", nargs="*", help="recipe names")
    arguments = parser.parse_args()
    random.seed(0)
    if library() is None:
        print("no native operators: vitprune plugins build, with onnxruntime_c_api.h at hand")
    rows = []
    for name in arguments.only or names():
        made = sessions(name, library())
        shown = pixels(name)
        for batch in (1, 8):
            row = {"recipe": name, "batch": batch, "rounds": arguments.rounds, **measure(made, shown, batch, arguments.rounds)}
            print(row, flush=True)
            rows.append(row)
    OUT.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    return 0


def pixels(name: str) -> np.ndarray:
    """The first 512 shipped test images as the model takes them, float32 [n,C,H,W]."""
    source = recipes_folder() / FOLDER / "test_images.npz"
    return images.load(source, load(Recipe.load(f"{FOLDER}/{name}").model).preprocessing, 512, classes=10).pixels


if __name__ == "__main__":
    sys.exit(main())
