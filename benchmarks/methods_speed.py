"""Every method's pruned graph against its slice oracle on ONNX Runtime (performance.md §0); DVT: what reuse adds to its members.

python benchmarks/methods_speed.py                   # DeiT-S, 197 tokens, batch 1 and 8; some 20 minutes on one core
python benchmarks/methods_speed.py --only tome       # rows of these methods are replaced in the stored JSON
python benchmarks/methods_speed.py --only ward_merge tome --batches 1 --size 384 --rounds 9 --passes 3   # 577 tokens

Where `vitprune plugins build` has left the native library, the graph with its operators is measured, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from speed import interleaved, library, machine, store, uneven  # noqa: E402

from vitprune.backends.onnxruntime import make_session  # noqa: E402
from vitprune.benchmarking.oracle import slice_oracle  # noqa: E402
from vitprune.data import images  # noqa: E402
from vitprune.exporting import export as exporting  # noqa: E402
from vitprune.graph import surgery  # noqa: E402
from vitprune.graph.lowering.onnxruntime import specialise  # noqa: E402
from vitprune.recipe import Recipe  # noqa: E402
from vitprune.vit.loading import load  # noqa: E402

OUT = Path(__file__).parent / "results" / "methods.json"
MODEL = "deit_small_patch16_224"
# The shipped recipes, with keys that belong to trained weights set so that random ones lose tokens too.
SETTINGS: dict[str, list[str]] = {
    "topk": [], "evit": [], "dynamicvit": [], "pomt": [], "tome": [], "tome_threshold": ["prune.tau=0.85"], "ats": [], "ats_merge": [],
    "asvit": [], "avit": ["prune.gate_center=5"], "ward_merge": [],
}  # fmt: skip
GOALS = {"topk": 1.03, "tome": 1.06, "tome_threshold": 1.06, "ats_merge": 1.06, "ward_merge": 1.06}
GOAL = 1.04
SIDE = 224


@cache
def dense(batch: int, side: int) -> tuple[Any, np.ndarray]:
    """Dense ONNX of a model with uneven attention, and images."""
    recipe = Recipe.load("topk_deit_small", [f'graph.batch="{batch}"'])
    model = load(recipe.model.model_copy(update={"name": MODEL, "image_size": side}), pretrained=False, seed=0)
    uneven(model.module)
    return exporting.dense_onnx(model.module, model.image_shape, recipe), images.synthetic(batch, model.preprocessing).pixels


def graphs(method: str, batch: int, side: int = SIDE) -> tuple[dict[str, bytes], np.ndarray, dict[str, Any]]:
    """Specialised dense, pruned and oracle graphs, the input and facts about them."""
    recipe = Recipe.load(f"{method}_deit_small", [f'graph.batch="{batch}"', *SETTINGS[method]])
    model, x = dense(batch, side)
    pruned, anatomy, _ = surgery.rewrite(model, recipe)
    session = make_session(pruned.SerializeToString())
    wanted = [output.name for output in session.get_outputs() if output.name.startswith("kept_")]
    kept = [int(rows.shape[1]) for rows in session.run(wanted, {"image": x})]
    made = {"dense": surgery.canonical(model, recipe), "pruned": pruned, "oracle": slice_oracle(model, recipe, kept)}
    ready, facts = {}, {}
    for label, graph in made.items():
        special, facts[label] = specialise(graph, keep_outputs=False)
        ready[label] = special.SerializeToString()
    if library() is not None:
        special, facts["native"] = specialise(pruned, keep_outputs=False, native=True)
        if facts["native"]["native"]:
            ready["native"] = special.SerializeToString()
    return ready, x, {"kept": kept, "tokens": anatomy.prefix + anatomy.patches, "fused": facts}


def measure(method: str, batch: int, side: int, rounds: int, passes: int) -> dict[str, Any]:
    """One row: medians of per-round ratios of CPU time. Every pass makes its sessions anew: memory layout shifts a ratio, too."""
    ready, x, facts = graphs(method, batch, side)
    by_pass, gain, native = [], [], []
    times: dict[str, list[float]] = {label: [] for label in ready}
    for _ in range(passes):
        sessions = {
            label: make_session(graph, threads=1, spin=False, library=library() if label == "native" else None)
            for label, graph in ready.items()
        }
        taken = interleaved({label: sessions[label] for label in ready if label != "dense"}, x, rounds)
        native += [n / o for n, o in zip(taken.get("native", []), taken["oracle"], strict=False)]
        by_pass.append([p / o for p, o in zip(taken["pruned"], taken["oracle"], strict=True)])
        against = interleaved({label: sessions[label] for label in ("dense", "pruned")}, x, max(3, rounds // 5))
        gain += [d / p for d, p in zip(against["dense"], against["pruned"], strict=True)]
        for label, values in (taken | {"dense": against["dense"]}).items():
            times[label] += values
    ratio = [value for one in by_pass for value in one]
    quartiles = statistics.quantiles(ratio, n=4)
    goal = GOALS.get(method, GOAL) if side == SIDE else GOAL
    middle = round(statistics.median(ratio), 4)
    return {
        "method": method, "batch": batch, "rounds": rounds, "settings": SETTINGS[method], **facts,
        "median_ms": {label: round(1e3 * statistics.median(values), 2) for label, values in times.items()},
        "pruned_over_oracle": middle, "pruned_over_oracle_iqr": [round(quartiles[0], 4), round(quartiles[2], 4)],
        **({"native_over_oracle": round(statistics.median(native), 4)} if native else {}),
        "passes": [round(statistics.median(one), 4) for one in by_pass],
        "goal": goal, "met": middle <= goal, "dense_over_pruned": round(statistics.median(gain), 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=sorted(SETTINGS))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--size", type=int, default=SIDE, help="side of the image in pixels, a multiple of 16")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    document = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    rows = {(row["method"], row["batch"], row["tokens"]): row for row in document["rows"]}
    for method in args.only:
        for batch in args.batches:
            row = measure(method, batch, args.size, args.rounds, args.passes)
            rows[method, batch, row["tokens"]] = row
            print(json.dumps(row), flush=True)
    document |= {"model": MODEL, "threads": 1, "machine": machine(), "rows": [rows[key] for key in sorted(rows)]}
    store(args.out, document)


if __name__ == "__main__":
    main()
