"""Memory of bundles in every type on ONNX Runtime's CPU: what a session and 50 images add to a process at its peak, as JSON.

    python recipes/fashion_mnist/types_memory.py            # all methods but the cascade, some twenty minutes
    python recipes/fashion_mnist/report.py                  # RESULTS.md from the stored JSON

Each figure is the median of three processes. All types but fp32 are emulated there (docs/precision.md): weights stand in memory as float32,
so that this shows what emulation takes, not what a device would save. What is stored is not run again (--again does).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from precision import HERE, MODES, recipe_of

import vitprune
from vitprune.benchmarking import subjects
from vitprune.benchmarking.memory import peak

METHODS = ("topk", "ats", "tome", "ward_merge", "evit", "tome_threshold", "asvit", "avit", "dynamicvit", "pomt", "ats_merge")
IMAGES, REPEATS = 50, 3


def measured(method: str, mode: str, data: Path) -> dict[str, Any]:
    """MiB at the peak, each process's and their median, and the bytes of the bundle's graph."""
    recipe = recipe_of(method).with_("precision.mode", mode)
    with tempfile.TemporaryDirectory() as folder:
        bundle = vitprune.export(None, recipe, Path(folder) / "b", data=data)
        pixels = np.resize(bundle.samples()["images"], (IMAGES, *bundle.manifest.preprocessing["input_size"])).astype(np.float32)
        runs = [peak(bundle, subjects.runtime(None, "onnxruntime", 1), None, pixels) for _ in range(REPEATS)]
        known = [run / 2**20 for run in runs if run is not None]
        if len(known) < REPEATS:
            raise SystemExit("memory of a process cannot be told here")
        return {"mib": statistics.median(known), "each": known, "file_bytes": bundle.model_path.stat().st_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE / "test_images.npz", help="images to calibrate int8 and fp8 on")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--again", action="store_true", help="run what is stored already, too")
    parser.add_argument("--output", type=Path, default=HERE / "types_memory.json")
    args = parser.parse_args()
    stored = json.loads(args.output.read_text()) if args.output.exists() else {}
    for method in args.methods:
        for mode in ("fp32", *MODES):
            if mode in stored.get(method, {}) and not args.again:
                continue
            try:
                stored.setdefault(method, {})[mode] = measured(method, mode, args.data)
            except vitprune.VitpruneError as refused:  # a gate of export: the row stays empty
                print(method, mode, refused, flush=True)
                continue
            args.output.write_text(json.dumps(stored, indent=1) + "\n")
            print(method, mode, stored[method][mode], flush=True)


if __name__ == "__main__":
    main()
