"""Speed and memory of pruned graphs on ONNX Runtime, as ratios inside one interleaved run (performance.md §0).

    python benchmarks/speed.py --out benchmarks/results/speed.json      # measure
    python benchmarks/report.py                                         # tables from the stored JSON

One thread and CPU time (process_time), spinning off, random order inside each round, per-round ratios, medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

sys.path.insert(0, str(Path(__file__).parent))

from vitprune import plugins  # noqa: E402
from vitprune.backends.onnxruntime import make_session  # noqa: E402
from vitprune.benchmarking.oracle import slice_oracle  # noqa: E402
from vitprune.data import images  # noqa: E402
from vitprune.exporting import export as exporting  # noqa: E402
from vitprune.graph import surgery  # noqa: E402
from vitprune.graph.lowering.onnxruntime import specialise  # noqa: E402
from vitprune.recipe import Recipe  # noqa: E402
from vitprune.support.files import write_atomic  # noqa: E402
from vitprune.vit.loading import load  # noqa: E402


def variants(name: str, image_size: int, recipe: Recipe, batch: int) -> tuple[dict[str, bytes], np.ndarray, dict]:
    """Specialised dense, pruned and oracle graphs, one input and facts about it."""
    section = recipe.model.model_copy(update={"name": name, "image_size": image_size})
    model = load(section, pretrained=False, seed=0)
    uneven(model.module)
    x = images.synthetic(batch, model.preprocessing).pixels
    dense = exporting.dense_onnx(model.module, model.image_shape, recipe)
    pruned, anatomy, _ = surgery.rewrite(dense, recipe)
    _, *kept = make_session(pruned.SerializeToString()).run(None, {"image": x})
    counts = [int(rows.shape[1]) for rows in kept]
    graphs = {"dense": surgery.canonical(dense, recipe), "pruned": pruned, "oracle": slice_oracle(dense, recipe, counts)}
    ready = {label: specialise(graph, keep_outputs=False)[0].SerializeToString() for label, graph in graphs.items()}
    return ready, x, {"tokens": anatomy.prefix + anatomy.patches, "kept": counts}


def uneven(module: Any) -> None:
    """Query and key weights of a timm model times four: attention, and with it what is kept, is then as uneven as a trained model's."""
    for block in module.blocks:
        block.attn.qkv.weight.data[: 2 * module.embed_dim] *= 4


def interleaved(sessions: dict, x: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """`taking_turns` of sessions with one input."""
    return taking_turns({label: partial(session.run, None, {"image": x}) for label, session in sessions.items()}, rounds)


def taking_turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every run in every round, order shuffled inside each round, after one round that is not counted."""
    rng, times = random.Random(0), {label: [] for label in runs}
    for number in range(rounds + 1):
        for label in rng.sample(list(runs), len(runs)):
            began = time.process_time()
            runs[label]()
            if number:
                times[label].append(time.process_time() - began)
    return times


def library() -> Path | None:
    """The native library with operators for ONNX Runtime, where `vitprune plugins build` has left it."""
    built = plugins.built()
    return built.library if built is not None and built.onnxruntime_api else None


def store(path: Path, document: dict[str, Any]) -> None:
    """Write a document, into a folder that is made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(document, indent=2) + "\n").encode())


def peak_rss(graph: bytes, x: np.ndarray) -> int:
    """Peak resident memory in MiB of a child process that runs the graph three times."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "m.onnx").write_bytes(graph)
        np.save(Path(folder, "x.npy"), x)
        code = (
            "import sys,numpy as np;from pathlib import Path;from vitprune.backends.onnxruntime import make_session;"
            "f=Path(sys.argv[1]);s=make_session(f/'m.onnx',1,False);x=np.load(f/'x.npy');[s.run(None,{'image':x}) for _ in range(3)];"
            "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
        )
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1]) // 1024


def peaks_of(graphs: dict[str, bytes], x: np.ndarray, runs: int = 5) -> dict[str, list[int]]:
    """Peaks of dense and pruned in turn: one process's peak swings by some 5 % with the allocator's luck."""
    peaks: dict[str, list[int]] = {"dense": [], "pruned": []}
    for _ in range(runs):
        for label, seen in peaks.items():
            seen.append(peak_rss(graphs[label], x))
    return peaks


def measure(name: str, image_size: int, recipe: Recipe, batch: int, rounds: int) -> dict:
    """One row of the table."""
    graphs, x, facts = variants(name, image_size, recipe, batch)
    sessions = {label: make_session(graph, threads=1, spin=False) for label, graph in graphs.items()}
    times = interleaved(sessions, x, rounds)
    ratio = [p / o for p, o in zip(times["pruned"], times["oracle"], strict=True)]
    gain = [d / p for d, p in zip(times["dense"], times["pruned"], strict=True)]
    quartiles = statistics.quantiles(ratio, n=4)
    memory = {label: statistics.median(peaks) for label, peaks in peaks_of(graphs, x).items()}
    return {
        "model": name, "image_size": image_size, "batch": batch, "rounds": rounds, **facts,
        "median_ms": {label: round(1e3 * statistics.median(values), 2) for label, values in times.items()},
        "pruned_over_oracle": round(statistics.median(ratio), 4), "pruned_over_oracle_iqr": [round(quartiles[0], 4), round(quartiles[2], 4)],
        "dense_over_pruned": round(statistics.median(gain), 3), "peak_rss_mib": memory, "rss_ratio": round(memory["pruned"] / memory["dense"], 3),
    }  # fmt: skip


def machine() -> dict[str, str]:
    """What ran it."""
    return {"cpu": platform.processor() or platform.machine(), "onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    parser.add_argument("--recipe", default="ats_deit_small")
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--cases", nargs="*", default=["224:1", "384:1", "224:8"], help="image size:batch")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    args = parser.parse_args()
    rows = []
    for case in args.cases:
        size, batch = (int(part) for part in case.split(":"))
        recipe = Recipe.load(args.recipe, [f'graph.batch="{batch}"', *args.overrides])
        rows.append(measure(args.model, size, recipe, batch, args.rounds))
        print(json.dumps(rows[-1]), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"recipe": args.recipe, "threads": 1, "machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
