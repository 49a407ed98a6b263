"""Every shipped recipe through export, TensorRT-RTX build and validate, as a user types them; one child process per command.

    python benchmarks/recipes.py                         # all, both shape modes where they differ; takes some 30 minutes on two cores
    python benchmarks/recipes.py --only topk ats         # rows of these methods are replaced in the stored JSON

Weights are random (seed 0): this shows that the commands work and agree, nothing about accuracy. Bundles are deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import yaml

from vitprune import methods

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).parent / "results" / "recipes.json"
MODEL = "deit_small_patch16_224"
CVT = "ats_cvt_13"
T2T = "dvt_t2t_vit_12"
# Keys that belong to trained weights, set so that random ones lose tokens too: a second row beside that of the recipe as it is.
PRUNING = {
    "asvit_deit_small": ["prune.thresholds=[0.0048,0.005,0.006]"],
    "avit_deit_small": ["prune.gate_center=5"],
}


def names() -> list[str]:
    """Shipped recipes that need no weights: DeiT-S ones, CvT-13 and the T2T-ViT cascade."""
    return [*sorted(path.stem for path in (ROOT / "recipes").glob("*_deit_small.yaml")), CVT, T2T]


def modes(recipe: str) -> list[str]:
    """Shape modes to run: one where all counts are constant, as both modes then write the same graph."""
    prune = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())["prune"]
    method = methods.get(prune["method"])
    constant = method.pipeline is not None or any(word in method.varies for word in ("fixed", "constant"))
    return ["constant"] if constant else ["dynamic", "padded"]


def run(*arguments: str) -> dict[str, Any]:
    """One vitprune command in a child process: its exit code, seconds and JSON document."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "vitprune", *arguments, "--json"], capture_output=True, text=True, timeout=3600, check=False
    )
    seconds = round(time.perf_counter() - began, 1)
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = {"message": (done.stderr or done.stdout)[-400:]}
    return {"exit": done.returncode, "seconds": seconds, "document": document}


def export(recipe: str, mode: str, keys: list[str], folder: Path) -> dict[str, Any]:
    """`vitprune export`; for CvT a dense ONNX by Hugging Face and `vitprune rewrite`."""
    more = [word for key in ([*keys, "graph.shapes=padded"] if mode == "padded" else keys) for word in ("--set", key)]
    if recipe != CVT:
        return run(
            "export",
            *([] if recipe == T2T else [MODEL]),
            "--no-pretrained",
            "--seed",
            "0",
            "-r",
            recipe,
            "-o",
            str(folder / "b"),
            *more,
        )
    return run("rewrite", str(dense_cvt(folder / "dense.onnx")), "-r", recipe, "-o", str(folder / "b"), *more)


def dense_cvt(path: Path) -> Path:
    """CvT-13 with random weights as a user would export it with torch.onnx."""
    import torch
    from transformers import CvtConfig, CvtForImageClassification

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = CvtForImageClassification(CvtConfig(num_labels=1000))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.model(image).logits

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Logits().eval(), (torch.zeros(2, 3, 224, 224),), str(path), dynamo=True, opset_version=18, input_names=["image"],
            output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},), external_data=False, verbose=False,
        )  # fmt: skip
    return path


def row(recipe: str, mode: str, keys: list[str]) -> dict[str, Any]:
    """Run the three commands on one recipe; a command after a failed one is not run."""
    result: dict[str, Any] = {"recipe": recipe, "shapes": mode, "settings": keys}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        steps = {
            "export": lambda: export(recipe, mode, keys, folder),
            "build": lambda: run("build-engine", str(folder / "b"), "--target", "rtx"),
            "validate": lambda: run("validate", str(folder / "b")),
        }
        documents = {}
        for step, command in steps.items():
            outcome = command()
            result[step] = {"exit": outcome["exit"], "seconds": outcome["seconds"]}
            documents[step] = outcome["document"]
            if outcome["exit"]:
                result[step]["message"] = outcome["document"]
                return result
    engine, verdict = documents["build"]["engine"], documents["validate"]
    seen = {gate["name"]: gate["seen"] for gate in verdict["gates"]}
    result |= {
        "engine_bytes": engine["engine_bytes"],
        "builder": engine["facts"]["runtime"],
        "reference": verdict["reference"],
        "evidence": verdict["evidence"],
        "logits_max_abs": seen.get("logits_max_abs"),
        "macs_ratio": round(verdict["macs"]["ratio"], 4) if verdict.get("macs") else None,
        "gates": {gate["name"]: gate["passed"] for gate in verdict["gates"]},
    }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="recipe or method names")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    wanted = [name for name in names() if not args.only or name in args.only or name.removesuffix("_deit_small") in args.only]
    old = json.loads(args.out.read_text())["rows"] if args.only and args.out.exists() else []
    rows = [entry for entry in old if entry["recipe"] not in wanted]
    for recipe in wanted:
        settings = [[], PRUNING[recipe]] if recipe in PRUNING else [[]]
        for mode, keys in ((mode, keys) for mode in modes(recipe) for keys in settings):
            rows.append(row(recipe, mode, keys))
            print(json.dumps(rows[-1]), flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            document = {
                "model": MODEL,
                "rows": sorted(rows, key=lambda entry: (entry["recipe"], entry["shapes"], entry.get("settings", []))),
            }
            args.out.write_text(json.dumps(document, indent=2) + "\n")
    return int(any(entry[step]["exit"] for entry in rows for step in ("export", "build", "validate") if step in entry))


if __name__ == "__main__":
    sys.exit(main())
