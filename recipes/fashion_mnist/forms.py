"""Other forms of the shipped model, off the shelf at 0.65 x MACs: rotary positions, the mean of the patches instead of a CLS token.

    python recipes/fashion_mnist/train_forms.py rotary --out /tmp/rotary             # the weights first
    python recipes/fashion_mnist/forms.py rotary --weights /tmp/rotary/rotary.safetensors
    python recipes/fashion_mnist/report.py                                            # RESULTS.md

Each method is calibrated as `sweep.py` does, on the same training images; accuracy on all 10,000 test images. Stored in forms.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from results import DATA, evaluate_dense, evaluate_tokens, test_images
from train_forms import FORMS

from vitprune.recipe import Recipe
from vitprune.vit import loading

HERE = Path(__file__).parent
STORED = HERE / "forms.json"
METHODS = ("ats", "topk", "tome", "ward_merge")
SCORING = ("ats", "topk")
SHARE = 0.65


def recipe_of(form: str, method: str, weights: Path) -> dict[str, Any]:
    """The method's training recipe with the form as its model; scored by mean attention where there is no CLS token."""
    name, args = FORMS[form]
    document: dict[str, Any] = yaml.safe_load((HERE / "training" / f"{method}.yaml").read_text())
    document["model"] |= {"name": name, "args": args, "weights": str(weights.resolve())}
    if form == "average" and method in SCORING:
        document["prune"]["score"] = "mean_attention"
    document.pop("train", None)
    return document


def calibrated(document: dict[str, Any], data: Path, samples: int) -> Recipe:
    """The recipe at the share of the dense MACs."""
    with tempfile.TemporaryDirectory() as place:
        given, made = Path(place) / "given.yaml", Path(place) / "made.yaml"
        given.write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", "vitprune", "calibrate", str(given), "--data", str(data), "--samples", str(samples)]
        subprocess.run([*command, "--budget-macs", str(SHARE), "-o", str(made), "--quiet"], check=True)
        return Recipe.load(str(made))


def short(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("images", "correct", "top1", "ci95", "macs", "macs_share")} | {
        "patches": [round(site["mean"], 2) for site in found["sites"]]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("form", choices=list(FORMS))
    parser.add_argument("--weights", type=Path, required=True, help="of train_forms.py")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--samples", type=int, default=512, help="training images to calibrate on")
    parser.add_argument("--out", type=Path, default=STORED)
    args = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(args.out.read_text()) if args.out.exists() else {}
    recipes = {method: calibrated(recipe_of(args.form, method, args.weights), args.data, args.samples) for method in args.methods}
    made = loading.load(next(iter(recipes.values())).model, pretrained=False)
    images, labels = test_images(args.data, args.images, made.preprocessing)
    found = {"dense": short(evaluate_dense(made.module, images, labels))}
    for method, recipe in recipes.items():
        found[method] = short(evaluate_tokens(made.module, recipe, images, labels)) | {
            "prune": recipe.prune.portable().model_dump(mode="json")
        }
        print(f"{args.form} {method}: {found[method]['top1']:.2f} % at {found[method]['macs_share']:.3f}", flush=True)
    stored[args.form] = found
    args.out.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
