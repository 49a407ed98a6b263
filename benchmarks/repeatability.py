"""How repeatable `vitprune benchmark` is here: runs in a row of the shipped model, and what --compare says of reruns and of a slowdown.

    python benchmarks/repeatability.py [--pairs 20] [--rounds 50] [--most-rounds 400]

Every run makes its sessions anew, in passes, until its ratio is known to 1 % or the most rounds are reached. The slowdown is real work: in the second run of a pair the pruned
model is called, and 5 % of the time it takes is spent again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from vitprune.benchmarking import comparing, subjects, suite
from vitprune.bundle import open_bundle
from vitprune.pipelines import export
from vitprune.recipe import Recipe
from vitprune.support.resources import recipes_folder

OUT = Path(__file__).parent / "results" / "repeatability.json"
RECIPE = "fashion_mnist/ats"


def measured(folder: Path, rounds: int, most: int, seed: int, slowdown: float = 0.0) -> dict[str, Any]:
    """One run; slowdown: share of its own CPU time that every call of the pruned model spends besides."""
    bundle = open_bundle(folder)
    plan = suite.Plan(subjects.runtime(None, "onnxruntime", 1), (1,), rounds, "cpu", seed=seed, most=most)
    original = subjects.pruned

    def slowed(bundle: Any, where: Any) -> Any:
        session = original(bundle, where)
        run = session.run

        def call(images: Any) -> Any:
            began = time.process_time()
            result = run(images)
            until = time.process_time() + slowdown * (time.process_time() - began)
            while time.process_time() < until:
                pass
            return result

        session.run = call
        return session

    subjects.pruned = slowed if slowdown else original
    try:
        return suite.benchmark({"bundle": bundle}, plan, {"bundle": bundle.samples()["images"]})
    finally:
        subjects.pruned = original


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=20)
    options.add_argument("--rounds", type=int, default=50)
    options.add_argument("--most-rounds", type=int, default=400)
    options.add_argument("--output", type=Path, default=OUT)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bundle"
        export(None, Recipe.load(RECIPE), folder, data=recipes_folder() / "fashion_mnist" / "test_images.npz")
        rows = []
        for number in range(asked.pairs):
            first, again, slower = (
                measured(folder, asked.rounds, asked.most_rounds, 10 * number + k, 0.05 * (k == 2)) for k in range(3)
            )
            rerun, planted = comparing.compare(first, again), comparing.compare(first, slower)
            rows.append(
                {
                    "rerun": rerun["changes"][0],
                    "slower": planted["changes"][0],
                    "rounds": [one["rounds"] for one in (first, again, slower)],
                    "dense_ms": [one["results"][0]["dense"]["median_ms"] for one in (first, again, slower)],
                }
            )
            print(
                f"{number + 1}/{asked.pairs} rerun {rows[-1]['rerun']['verdict']}, 5 % slower {rows[-1]['slower']['verdict']}; rounds {rows[-1]['rounds']}",
                flush=True,
            )
    changes = [abs(row["rerun"]["change"] - 1) for row in rows]
    found = {
        "pairs": asked.pairs, "rounds": asked.rounds, "most_rounds": asked.most_rounds, "load": os.getloadavg(), "processor": first["machine"]["processor"],
        "rerun_regressions": sum(row["rerun"]["verdict"] == "regression" for row in rows),
        "rerun_undecided": sum(row["rerun"]["verdict"] == "undecided" for row in rows),
        "rerun_within_2_percent": sum(change < 0.02 for change in changes),
        "slower_seen": sum(row["slower"]["verdict"] == "regression" for row in rows),
        "rerun_change_median": statistics.median(changes), "rerun_change_max": max(changes), "rows": rows,
    }  # fmt: skip
    asked.output.write_text(json.dumps(found, indent=1) + "\n")
    print({key: value for key, value in found.items() if key != "rows"})


if __name__ == "__main__":
    main()
