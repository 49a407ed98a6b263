"""What feature and relation reuse adds to the members of a DVT cascade on ONNX Runtime.

No token leaves in DVT, so there is no slice oracle. Each member is timed against the same dense model on the same grid without reuse
and without reuse outputs (performance.md §0: one thread, CPU time, interleaved, per-round ratios); cascades by their sums.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from speed import machine  # noqa: E402

from vitprune.backends.onnxruntime import make_session  # noqa: E402
from vitprune.data import images  # noqa: E402
from vitprune.exporting.dense import dense_onnx  # noqa: E402
from vitprune.graph import surgery  # noqa: E402
from vitprune.graph.lowering.onnxruntime import specialise  # noqa: E402
from vitprune.methods.dvt import members  # noqa: E402
from vitprune.methods.dvt.graphs import member_graphs  # noqa: E402
from vitprune.recipe import Recipe  # noqa: E402

OUT = Path(__file__).parent / "results" / "dvt.json"
MODEL = "deit_small_patch16_224"


def sessions(batch: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Sessions "exit1".."exit3" and "plain1".."plain3" with what each is fed."""
    recipe = Recipe.load("dvt_deit_small", [f'graph.batch="{batch}"'])
    loaded = members.load(MODEL, recipe, pretrained=False, seed=0, weights=None)
    cascade = loaded.module
    x = images.synthetic(batch, loaded.preprocessing).pixels
    shape, grids = cascade.shape, recipe.prune.grids  # type: ignore[attr-defined]
    made: dict[str, Any] = {}
    feeds: dict[str, dict[str, Any]] = {}
    handed: dict[str, Any] = {}
    for number, graph in enumerate(member_graphs(cascade, recipe), start=1):
        dense = members.dense_member(shape, grids[number - 1], members.weights_of(cascade, number - 1))
        plain = surgery.canonical(dense_onnx(dense, (shape.channels, shape.image, shape.image), recipe), recipe)
        for label, model in ((f"exit{number}", graph), (f"plain{number}", plain)):
            made[label] = make_session(specialise(model, keep_outputs=True)[0].SerializeToString(), threads=1, spin=False)
            feeds[label] = {"image": x, **(handed if label.startswith("exit") else {})}
        names = [output.name for output in made[f"exit{number}"].get_outputs()]
        found = dict(zip(names, made[f"exit{number}"].run(names, feeds[f"exit{number}"]), strict=True))
        handed = {name: value for name, value in found.items() if name != "logits"}
    return made, feeds


def measure(batch: int, rounds: int) -> dict[str, Any]:
    """Medians of per-round ratios, member over plain, and of the sums of the first k members."""
    import random
    import time

    made, feeds = sessions(batch)
    rng, times = random.Random(0), {label: [] for label in made}
    for label in made:
        made[label].run(None, feeds[label])
    for _ in range(rounds):
        for label in rng.sample(list(made), len(made)):
            began = time.process_time()
            made[label].run(None, feeds[label])
            times[label].append(time.process_time() - began)
    row: dict[str, Any] = {
        "batch": batch,
        "rounds": rounds,
        "median_ms": {k: round(1e3 * statistics.median(v), 2) for k, v in times.items()},
    }
    for last in (1, 2, 3):
        ratio = [e / p for e, p in zip(times[f"exit{last}"], times[f"plain{last}"], strict=True)]
        row[f"member{last}_over_plain"] = round(statistics.median(ratio), 3)
        sums = [sum(times[f"exit{k}"][i] for k in range(1, last + 1)) / times["plain3"][i] for i in range(rounds)]
        row[f"cascade_to_exit{last}_over_plain3"] = round(statistics.median(sums), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    rows = [measure(batch, args.rounds) for batch in args.batches]
    print(json.dumps(rows))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"model": MODEL, "threads": 1, "machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
