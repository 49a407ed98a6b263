"""Seconds of the commands themselves, on DeiT-S with random weights: export with an empty cache and again from it, rewrite of its dense
graph, the surgery in it alone, TensorRT-RTX build, validate.

    python benchmarks/toolchain.py --out benchmarks/results/toolchain.json

Each command is a process of its own, so imports are included. Medians of a few runs, of seconds on the wall and of CPU seconds (its own
and its children's, user and system); the load of the machine is stored beside them. Where others compute, the wall says how many they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "deit_small_patch16_224"


SURGERY = """
import sys, time
from pathlib import Path
from vitprune.exporting.dense import KIND
from vitprune.graph import surgery
from vitprune.recipe import Recipe
from vitprune.support import cache
import onnx
(entry,) = (cache.folder() / KIND).iterdir()
model = onnx.load_model_from_string(cache.read(KIND, entry.name))
onnx.save(model, sys.argv[2])
began = time.process_time()
surgery.rewrite(model, Recipe.load(sys.argv[1]), has_cls=True)
print(time.process_time() - began)
"""


def cpu() -> float:
    """CPU seconds of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(*arguments: str) -> tuple[float, float]:
    """Wall and CPU seconds of one vitprune command; fails when the command does."""
    began, before = time.perf_counter(), cpu()
    subprocess.run([sys.executable, "-m", "vitprune", *arguments, "--quiet"], check=True)
    return time.perf_counter() - began, cpu() - before


def one_run(recipe: str) -> dict[str, tuple[float, float]]:
    """Wall and CPU seconds by command."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VITPRUNE_CACHE"] = str(Path(folder, "cache"))
        out, dense = str(Path(folder, "out")), str(Path(folder, "dense.onnx"))
        export = ("export", MODEL, "--no-pretrained", "--seed", "0", "-r", recipe, "-o", out)
        times = {"export": seconds(*export), "export, cached": seconds(*export, "--force")}
        done = subprocess.run([sys.executable, "-c", SURGERY, recipe, dense], check=True, capture_output=True, text=True)
        return times | {
            "rewrite": seconds("rewrite", dense, "-r", recipe, "-o", str(Path(folder, "rewritten"))),
            "surgery alone (CPU)": (float(done.stdout.split()[-1]),) * 2,
            "build-engine --target rtx": seconds("build-engine", out, "--target", "rtx"),
            "validate": seconds("validate", out),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "toolchain.json")
    parser.add_argument("--recipe", default="ats_deit_small")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    loads = [os.getloadavg()[0]]
    runs = []
    for _ in range(args.runs):
        runs.append(one_run(args.recipe))
        loads.append(os.getloadavg()[0])
        print(json.dumps(runs[-1]), flush=True)
    wall, used = ({name: round(statistics.median(run[name][which] for run in runs), 2) for name in runs[0]} for which in range(2))
    document = {
        "model": MODEL, "recipe": args.recipe, "runs": args.runs, "load_before": round(loads[0], 2), "load_most": round(max(loads), 2),
        "median_seconds": wall, "median_cpu_seconds": used,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
