"""Every method in every type through export, TensorRT-RTX build and validate: exit codes, what the network computes in, and sizes.

    python benchmarks/precision_engines.py                                # small models; some 20 minutes on two cores
    python benchmarks/precision_engines.py --model deit-s --only topk ats # DeiT-S; rows are added to the same JSON

Random weights (seed 0) and random images: this shows that the commands work and what the builder is given, nothing about accuracy. No engine
is run. Rows that are stored are not run again (--again does). A size "packed" is that of the file in zlib's fastest form: what is left of it
when text that repeats is stored once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from vitprune import cli
from vitprune.benchmarking import subjects
from vitprune.benchmarking.memory import peak
from vitprune.bundle import open_bundle

OUT = Path(__file__).parent / "results" / "precision_engines.json"
SMALL: dict[str, Any] = {
    "name": "deit_tiny_patch16_224", "args": {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4, "num_classes": 10},
    "mean": [0.5], "std": [0.5], "interpolation": "bilinear", "crop_pct": 1.0,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "topk": {"stages": [1, 2], "keep_rate": 0.7},
    "ats": {"stages": [1, 2], "num_samples": 40},
    "ats_merge": {"stages": [1, 2], "num_samples": 40, "dropped": "merge"},
    "evit": {"stages": [1, 2], "keep_rate": 0.7},
    "pomt": {"stages": [1], "remove": 20},
    "tome": {"r": 6},
    "tome_threshold": {"stages": [1, 2]},
    "ward_merge": {"stages": [1, 2]},
    "asvit": {"stages": [3], "thresholds": [0.015]},
    "avit": {"compact_at": [2, 3], "gate_scale": 4.0, "gate_center": 1.0},
    "dynamicvit": {"stages": [1, 2], "keep_rate": 0.7, "predictor": "random"},
    "dvt": {"grids": [4, 6, 8], "thresholds": [0.7, 0.4]},
}
QUANTISED = ("topk", "ats", "tome", "ward_merge", "dvt")
MODES = ("fp32", "fp16", "bf16", "int8", "fp8")
RUN = 256


def recipe_of(model: str, method: str, mode: str) -> dict[str, Any]:
    """The recipe of one row; of DeiT-S the shipped one."""
    types = {"mode": mode, **({"images": 32} if mode in ("int8", "fp8") else {})}
    if model == "deit-s":
        return {"extends": f"{method}_deit_small", "precision": types}
    prune = {"method": method, **METHODS[method]}
    return {"model": SMALL, "prune": prune, "precision": types, "validate": {"samples": 8}}


def images(folder: Path, side: int) -> Path:
    """Random coloured images with detail of two sizes, as bytes."""
    rng, file = np.random.default_rng(0), folder / "images.npz"
    coarse = rng.uniform(0, 255, (40, 8, 8, 3)).repeat(side // 8, axis=1).repeat(side // 8, axis=2)
    np.savez(file, images=np.clip(coarse + rng.normal(0, 40, coarse.shape), 0, 255).astype(np.uint8))
    return file


def row(model: str, method: str, mode: str) -> dict[str, Any]:
    """Run the three commands; a command after a failed one is not run."""
    found: dict[str, Any] = {"model": model, "method": method, "mode": mode, "exits": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "recipe.yaml").write_text(json.dumps(recipe_of(model, method, mode)))  # JSON is YAML
        data = ["--data", str(images(folder, 224 if model == "deit-s" else 64))] if mode in ("int8", "fp8") else []
        bundle = folder / "b"
        commands = (
            ["export", "-r", str(folder / "recipe.yaml"), "-o", str(bundle), "--no-pretrained", "--seed", "0", *data],
            ["build-engine", str(bundle), "--target", "rtx", "--precision", mode],
            ["validate", str(bundle)],
        )
        for command in commands:
            found["exits"].append(cli.run([*command, "--quiet"]))
            if found["exits"][-1]:
                return found
        single = {"cpu_mib": memory(bundle)} if model == "deit-s" and method != "dvt" else {}
        return found | facts(bundle) | single


def memory(bundle: Path) -> float | None:
    """MiB that a session of ONNX Runtime's CPU and eight images add to a process, at the peak, loading included."""
    opened = open_bundle(bundle)
    pixels = np.resize(opened.samples()["images"], (8, *opened.manifest.preprocessing["input_size"])).astype(np.float32)
    found = peak(opened, subjects.runtime(None, "onnxruntime", 1), None, pixels)
    return None if found is None else round(found / 2**20, 1)


def text_bytes(content: bytes) -> int:
    """How many bytes of a file stand in runs of at least `RUN` printable ones: source text of kernels, and descriptions in JSON."""
    values = np.frombuffer(content, np.uint8)
    printable = ((values >= 32) & (values < 127)) | ((values >= 9) & (values <= 13))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], printable, [False]]).astype(np.int8)))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= RUN].sum())


def facts(bundle: Path) -> dict[str, Any]:
    """Sizes and types of a bundle and its RTX engine."""
    notes = json.loads((bundle / "reports" / "export.json").read_text())
    engine = json.loads((bundle / "engines" / "rtx" / "engine.json").read_text())
    graphs = [path for path in bundle.glob("*.onnx")]
    engines = [path for path in (bundle / "engines" / "rtx").glob("*.engine")]
    tensors = [tensor for path in graphs for tensor in onnx.load(path).graph.initializer]
    return {
        "builder": engine["facts"]["runtime"], "model_bytes": sum(path.stat().st_size for path in graphs),
        "weight_bytes": sum(len(tensor.raw_data) for tensor in tensors), "engine_bytes": engine["engine_bytes"],
        "engine_packed": sum(len(zlib.compress(path.read_bytes(), 1)) for path in engines),
        "engine_text": sum(text_bytes(path.read_bytes()) for path in engines),
        "network": engine["facts"].get("layers_by_precision"), "quantising": engine["facts"].get("quantising_layers"),
        "graph": notes.get("precision", {}).get("layers"), "logits_max_abs": notes["check"]["logits_max_abs"],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("small", "deit-s"), default="small")
    parser.add_argument("--only", nargs="*", choices=sorted(METHODS), help="methods")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--again", action="store_true", help="run what is stored already, too")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    stored = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    failed = 0
    for method in args.only or METHODS:
        for mode in args.modes:
            key = (args.model, method, mode)
            known = any((one["model"], one["method"], one["mode"]) == key for one in stored)
            if (known and not args.again) or (mode in ("int8", "fp8") and method not in QUANTISED):
                continue
            found = row(*key)
            stored = [one for one in stored if (one["model"], one["method"], one["mode"]) != key] + [found]
            order = {name: number for number, name in enumerate(METHODS)}
            stored.sort(key=lambda one: (one["model"] != "small", order[one["method"]], MODES.index(one["mode"])))
            args.out.write_text(json.dumps({"rows": stored}, indent=1) + "\n")
            print(*key, found["exits"], found.get("engine_bytes"), found.get("network"), found.get("quantising"), flush=True)
            failed += any(found["exits"])
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
