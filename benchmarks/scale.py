"""Large images and large models: seconds and peak memory of export, rewrite and run, each in a process of its own.

    python benchmarks/scale.py --part runs      # DeiT-S at 384, 592 and 1,024 px, batch 1 to 32
    python benchmarks/scale.py --part large     # ViT-L and half a ViT-g (2.3 GB) through rewrite; writes files of that size
    python benchmarks/report.py

CPU time of one thread (process_time) and the largest resident set of the process (VmHWM). Rows are added to the stored JSON as they are
measured, and those that are there are not measured again; --again measures all. Depth is cut where the whole model at batch 32 would not fit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "scale.json"
DEIT = "deit_small_patch16_224"
SIZES = {384: 12, 592: 12, 1024: 4}  # px -> blocks
# At 4,097 tokens a batch of 32 has attention logits of 12.9 GB where keys are hidden (no flash kernel takes a mask on the CPU): left out.
BATCHES = {384: (1, 8, 32), 592: (1, 8, 32), 1024: (1, 8)}
REPEATS = 3
METHODS: dict[str, dict[str, Any]] = {
    "dense": {"method": "topk", "stages": [1], "keep_rate": 0.7},
    "topk": {"method": "topk", "stages": "thirds", "keep_rate": 0.7},
    "ats": {"method": "ats", "stages": "thirds"},
    "tome": {"method": "tome", "r": "tenth"},
}
# Name, px, blocks (None = all). To write the whole ViT-g, torch's exporter takes 14 GB; 20 of its 40 blocks are beyond 2 GB, too.
LARGE: dict[str, tuple[str, int, int | None]] = {
    "ViT-L": ("vit_large_patch16_224", 112, None),
    "ViT-g, 20 blocks": ("vit_giant_patch14_dinov2", 112, 20),
    "ViT-g": ("vit_giant_patch14_dinov2", 112, None),
    "100 blocks of width 192": ("deit_tiny_patch16_224", 112, 100),
}


def prune(method: str, depth: int, patches: int) -> dict[str, Any]:
    """Keys of a method at this depth and number of patches."""
    made = dict(METHODS[method])
    if made.get("stages") == "thirds":
        made["stages"] = sorted({max(1, depth // 4), depth // 2, 3 * depth // 4})
    if made.get("r") == "tenth":
        made["r"] = patches // 10 * 12 // (depth * 2)
    return made


def peak() -> int:
    """MiB of the largest resident set of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) >> 10


def made(name: str, size: int, depth: int | None) -> Any:
    """A timm model with random weights and uneven attention."""
    import timm
    import torch

    torch.manual_seed(0)
    module = timm.create_model(name, img_size=size, **({} if depth is None else {"depth": depth})).eval()
    for block in module.blocks:
        block.attn.qkv.weight.data[: 2 * block.attn.attn_dim] *= 4
    return module


def export(job: dict[str, Any]) -> dict[str, Any]:
    """The dense graph of a model, with what its export takes."""
    from vitprune.exporting.dense import dense_onnx
    from vitprune.recipe import Recipe
    from vitprune.support import onnx_weights

    module = made(job["model"], job["size"], job.get("depth"))
    began = time.process_time()
    recipe = Recipe.load({"prune": METHODS["dense"], "graph": {"batch": "1:8:32"}})
    dense = dense_onnx(module, (3, job["size"], job["size"]), recipe)
    took = time.process_time() - began
    onnx_weights.save(dense, Path(job["file"]))
    return {"export_s": took, "export_mib": peak(), "nodes": len(dense.graph.node)}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """A graph rewritten, specialised for ONNX Runtime's CPU and run on one thread."""
    import numpy as np

    from vitprune.backends.onnxruntime import make_session
    from vitprune.graph import surgery
    from vitprune.graph.lowering.onnxruntime import specialise
    from vitprune.graph.reading import Source
    from vitprune.recipe import Recipe
    from vitprune.support import onnx_weights

    patches = (job["size"] // 16) ** 2
    recipe = Recipe.load({"prune": prune(job["method"], job["depth"], patches), "graph": {"batch": "1:8:32"}})
    source = Source(onnx_weights.load(Path(job["file"])))
    began = time.process_time()
    graph = surgery.canonical(source, recipe) if job["method"] == "dense" else surgery.rewrite(source, recipe)[0]
    rewrite = time.process_time() - began
    session = make_session(specialise(graph, keep_outputs=False)[0].SerializeToString(), threads=1, spin=False)
    del source, graph
    x = np.random.default_rng(0).standard_normal((job["batch"], 3, job["size"], job["size"])).astype(np.float32)
    x *= np.linspace(0.5, 3, job["batch"], dtype=np.float32).reshape(-1, 1, 1, 1)
    before, times = peak(), []
    for _ in range(REPEATS if job["batch"] * patches < 8000 else 1):
        began = time.process_time()
        session.run(None, {"image": x})
        times.append(time.process_time() - began)
    return {"rewrite_s": rewrite, "run_s": min(times), "mib": peak(), "mib_before": before}


def externally(job: dict[str, Any]) -> dict[str, Any]:
    """A dense graph with its weights in a file beside it, written by torch itself."""
    import torch

    module = made(job["model"], job["size"], job["depth"])
    size = job["size"]
    warnings.simplefilter("ignore")
    program = torch.onnx.export(
        module, (torch.zeros(2, 3, size, size),), dynamo=True, opset_version=18, input_names=["image"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},), verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(job["file"], external_data=True)
    return {
        "blocks": len(module.blocks),
        "file_mib": sum(path.stat().st_size for path in Path(job["file"]).parent.iterdir()) >> 20,
    }


def surgery_alone(job: dict[str, Any]) -> dict[str, Any]:
    """The surgery without what is checked before and behind it."""
    from vitprune.exporting.dense import read_onnx
    from vitprune.graph import surgery
    from vitprune.graph.reading import Source
    from vitprune.recipe import Recipe
    from vitprune.support.onnx_weights import ASIDE, Spill, any_elsewhere

    dense = read_onnx(Path(job["file"]), ASIDE)
    with tempfile.TemporaryDirectory(dir=Path(job["file"]).parent.parent) as aside:
        source = Source(dense, Spill(Path(aside, "weights")) if any_elsewhere(dense) else None)
        recipe = Recipe.load(large_recipe())
        began = time.process_time()
        _, anatomy, _ = surgery.rewrite(source, recipe)
        took = time.process_time() - began
    return {"surgery_s": took, "surgery_s_per_100_blocks": 100 * took / len(anatomy.blocks), "surgery_mib": peak()}


def whole(job: dict[str, Any]) -> dict[str, Any]:
    """`vitprune.rewrite` with all of its checks."""
    import vitprune

    began = time.process_time()
    bundle = vitprune.rewrite(job["file"], vitprune.Recipe.load(large_recipe()), job["bundle"], force=True)
    took = time.process_time() - began
    files = {name: (bundle.path / name).stat().st_size >> 20 for name in bundle.manifest.files if name.startswith("model")}
    return {"rewrite_s": took, "rewrite_mib": peak(), "bundle_mib": files}


def large_recipe() -> dict[str, Any]:
    return {
        "model": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "prune": {"method": "topk", "stages": [6, 12, 18], "keep_rate": 0.7},
        "validate": {"samples": 2},
    }


STEPS = {step.__name__: step for step in (export, run, externally, surgery_alone, whole)}


def child(step: str, job: dict[str, Any]) -> dict[str, Any]:
    """A step in a process of its own."""
    command = [sys.executable, __file__, "--child", step]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{step} {job}: {done.stderr.strip().splitlines()[-3:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}


class Rows:
    """Stored rows, by what identifies them."""

    def __init__(self, path: Path, again: bool) -> None:
        self.path = path
        self.document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": [], "large": []}
        self.kept = {json.dumps(row["job"]) for part in ("runs", "large") for row in self.document[part]} if not again else set()

    def there(self, job: dict[str, Any]) -> bool:
        return json.dumps(job) in self.kept

    def add(self, part: str, job: dict[str, Any], found: dict[str, Any]) -> None:
        rows = [row for row in self.document[part] if row["job"] != job]
        self.document[part] = [*rows, {"job": job, **found}]
        self.document["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        self.path.write_text(json.dumps(self.document, indent=1) + "\n")
        print(json.dumps({**job, **found}), flush=True)


def runs(rows: Rows, work: Path, sizes: list[int]) -> None:
    for size in sizes:
        depth, file = SIZES[size], work / f"{size}.onnx"
        jobs = [
            {"model": DEIT, "size": size, "depth": depth, "method": method, "batch": batch}
            for batch in BATCHES[size]
            for method in METHODS
        ]
        jobs = [job for job in jobs if not rows.there(job)]
        if not jobs:
            continue
        exported = child("export", {"model": DEIT, "size": size, "depth": depth, "file": str(file)})
        for job in jobs:
            rows.add("runs", job, exported | child("run", job | {"file": str(file)}))


def large(rows: Rows, work: Path, names: list[str]) -> None:
    for label in names:
        model, size, depth = LARGE[label]
        job = {"label": label, "model": model, "size": size}
        if rows.there(job):
            continue
        folder = work / label.replace(" ", "")
        folder.mkdir()
        given = {"model": model, "size": size, "depth": depth, "file": str(folder / "dense.onnx"), "bundle": f"{folder}-bundle"}
        found = child("externally", given)
        found |= child("surgery_alone", given)
        found |= child("whole", given)
        rows.add("large", job, found | {"peak_of_file": round(found["rewrite_mib"] / found["file_mib"], 2)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("runs", "large"), action="append")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--models", nargs="+", default=list(LARGE)[:2], choices=list(LARGE))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--child", choices=list(STEPS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(STEPS[args.child](json.loads(sys.stdin.read()))))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = Rows(args.out, args.again)
    with tempfile.TemporaryDirectory() as work:
        if "runs" in (args.part or ["runs", "large"]):
            runs(rows, Path(work), args.sizes)
        if "large" in (args.part or ["runs", "large"]):
            large(rows, Path(work), args.models)


if __name__ == "__main__":
    main()
