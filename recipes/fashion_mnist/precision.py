"""Half types, int8 and fp8 against fp32 on the test images of Fashion-MNIST: accuracy, agreement and decisions, as JSON.

    python recipes/fashion_mnist/precision.py --data /usr/share/datasets/fashion-mnist   # all types, all methods listed below
    python recipes/fashion_mnist/report.py                                               # RESULTS.md from the stored JSON

The exported graphs are run, on ONNX Runtime's CPU: FP32 arithmetic, every value rounded where the graph says; int8 and fp8 are emulated so
too, with ranges from training images (with an npz, from its own first images). Nothing about speed follows. What is stored is not run again
(--again does), so that a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import precision_cascade
from results import DATA, accuracy_of, test_images

from vitprune.backends import Result
from vitprune.backends.onnxruntime import make_session, result_names
from vitprune.data.images import Images
from vitprune.data.images import load as load_images
from vitprune.exporting import ranges
from vitprune.exporting.dense import dense_onnx
from vitprune.exporting.parity import reference_arrays
from vitprune.exporting.precision import settle
from vitprune.graph import surgery
from vitprune.graph.lowering.rounding import emulated
from vitprune.methods.dvt import members
from vitprune.recipe import Recipe
from vitprune.validation import intervals
from vitprune.validation.compare import compare
from vitprune.validation.precision import decides_unseen, gates_in_force
from vitprune.vit import loading
from vitprune.vit.pruned import PrunedViT

HERE = Path(__file__).parent
STORED = HERE / "precision.json"
BATCH = 50
MODES = ("fp16", "bf16", "int8", "fp8")
CALIBRATION = 128
DROPPING = {"stages": [2, 4, 6], "keep_rate": 0.7}
# Recipes by method: shipped ones, or the shipped dense weights under another method, off the shelf.
METHODS: dict[str, str | dict[str, Any]] = {
    "ats": "ats.yaml",
    "topk": {"method": "topk", **DROPPING},
    "evit": {"method": "evit", **DROPPING},
    "tome": {"method": "tome", "r": 4},
    "tome_threshold": "tome_threshold.yaml",
    "ward_merge": "ward_merge.yaml",
    "asvit": "asvit.yaml",
    "avit": "avit.yaml",
    "dynamicvit": "dynamicvit.yaml",
    "pomt": {"method": "pomt", "stages": [2], "remove": 15},
    "ats_merge": {**Recipe.load(HERE / "ats.yaml").to_dict()["prune"], "method": "ats_merge", "dropped": "merge"},
    "dvt": "dvt.yaml",
}
Results = tuple[np.ndarray, list[np.ndarray]]


def recipe_of(method: str) -> Recipe:
    """The recipe of a method in METHODS."""
    chosen = METHODS[method]
    if isinstance(chosen, str):
        return Recipe.load(HERE / chosen)
    return Recipe.load({**Recipe.load(HERE / "ats.yaml").to_dict(), "prune": chosen})


def run(session: Any, pixels: np.ndarray, patches: int) -> Results:
    """Logits [n,classes] and, per site, which patches are listed, bool [n,P]."""
    name, wanted = session.get_inputs()[0].name, result_names(session)
    logits, listed = [], []
    for start in range(0, len(pixels), BATCH):
        answer, *kept = session.run(wanted, {name: pixels[start : start + BATCH]})
        logits.append(answer)
        listed.append([listed_patches(rows, patches) for rows in kept])
    return np.concatenate(logits), [np.concatenate(parts) for parts in zip(*listed, strict=True)]


def listed_patches(lists: np.ndarray, patches: int) -> np.ndarray:
    """Bool [n,P], true for the patches that lists int64 [n,K] name (-1: none)."""
    found = np.zeros((len(lists), patches + 1), bool)
    np.put_along_axis(found, np.where(lists < 0, patches, lists), True, axis=1)
    return found[:, :patches]


def compared(full: Results, half: Results, labels: np.ndarray, blocks: Sequence[int]) -> dict[str, Any]:
    """A run in a half type against the one in fp32, on the same images.

    Decisions are counted at the first site where an image's differ: behind it the two compute with other tokens.
    """
    agreeing, sites = np.ones(len(labels), bool), []
    for block, ours, theirs in zip(blocks, half[1], full[1], strict=True):
        flips = (ours ^ theirs) & agreeing[:, None]
        sites.append(
            {"block": block, "images": int(flips.any(axis=1).sum()), "patches": int(flips.sum()), "of": int(agreeing.sum())}
        )
        agreeing &= ~flips.any(axis=1)
    difference = np.abs(half[0] - full[0]).max(axis=1)
    return {
        **against_fp32(full[0], half[0], labels), "sites": sites,
        "logits_max_abs": float(difference[agreeing].max()) if agreeing.any() else None, "images_alike": int(agreeing.sum()),
    }  # fmt: skip


def against_fp32(full: np.ndarray, half: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy, and the paired figures, of logits [n,classes] in a type against those in fp32."""
    one, other = full.argmax(1), half.argmax(1)
    drop, same = intervals.drop(one, other, labels), int((one == other).sum())
    return {
        **accuracy_of(int((other == labels).sum()), len(labels)),
        "agreement": [100 * same / len(labels), *(100 * end for end in intervals.wilson(same, len(labels)))],
        "drop": [drop.points, drop.low, drop.high], "drop_p": drop.p,
    }  # fmt: skip


def against_reference(oracle: Any, recipe: Recipe, pixels: np.ndarray, result: Results, blocks: Sequence[int]) -> dict[str, Any]:
    """A graph's run against the PyTorch reference in the same type, on the first images.

    Returns:
        JSON-ready: legal and illegal flips, the largest in units of the margin, decisions, those that could have failed, the margin, and
        of images whose decisions agree how far logits lie apart, each image's largest difference over the largest logit of all.
    """
    inputs = Images(pixels, None, "test images")
    arrays = reference_arrays(oracle, inputs, np.zeros((len(pixels), 1)), None)
    kept = [np.where(listed[: len(pixels)], np.arange(listed.shape[1]), -1) for listed in result[1]]
    gates = gates_in_force(recipe, arrays["logits"], oracle.geometry)
    alike = np.ones(len(pixels), bool)
    for block, listed in zip(blocks, result[1], strict=True):
        alike &= (listed[: len(pixels)] == listed_patches(arrays[f"kept_{block}"], listed.shape[1])).all(axis=1)
    found = compare(Result(result[0][: len(pixels)], kept), arrays, list(blocks), gates, decides_unseen(recipe))
    return {
        "images": len(pixels),
        **{name: sum(getattr(site, f"{name}_flips") for site in found.sites) for name in ("legal", "illegal")},
        **{name: sum(getattr(site, name) for site in found.sites) for name in ("decisions", "could_fail")},
        "margin": gates.flip_margin, "largest": max(site.worst_margin for site in found.sites) / gates.flip_margin,
        "logits": logits_apart(result[0][: len(pixels)], arrays["logits"], alike) | {"limit": gates.logits_max_abs},
    }  # fmt: skip


def logits_apart(ours: np.ndarray, theirs: np.ndarray, alike: np.ndarray) -> dict[str, float]:
    """Median, 99th percentile and largest of the images' largest differences, over the largest logit, which is given too.

    Args:
        ours, theirs: [n,classes]. alike: bool [n], the images that count.
    """
    largest = float(np.abs(theirs).max())
    apart = np.abs(ours - theirs).max(axis=1)[alike] / largest
    ranked = {"median": np.median(apart), "p99": np.quantile(apart, 0.99), "max": apart.max()} if len(apart) else {}
    return {"largest": largest, **{name: float(value) for name, value in ranked.items()}}


def images_of(data: Path, count: int, preprocessing: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Normalised pixels and labels, from a folder of IDX files or an npz such as the shipped one with 1,000 test images."""
    if data.is_dir():
        return test_images(data, count, preprocessing)
    loaded = load_images(data, preprocessing, count, classes=10)
    assert loaded.labels is not None
    return loaded.pixels, loaded.labels


def calibration_images(data: Path, count: int, preprocessing: dict[str, Any]) -> np.ndarray:
    """Training images of a folder, or the first images of an npz."""
    return load_images(data, preprocessing, count, classes=10, splits=("train", "val")).pixels


def evaluate(
    method: str, data: Path, count: int, referenced: int, modes: Sequence[str] = MODES, done: dict[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Modes of one method, one after the other; the first `referenced` images are also compared with the PyTorch reference.

    Yields:
        What is known after each mode: that of `done`, fp32, and the modes so far.
    """
    recipe = recipe_of(method)
    found: dict[str, Any] = {"method": method, "modes": dict((done or {}).get("modes", {}))}
    if method == "dvt":
        shape = members.load(None, recipe, pretrained=False, seed=0, weights=None).preprocessing
        pixels, labels = images_of(data, count, shape)
        runs = precision_cascade.evaluate(
            recipe, pixels, lambda most: calibration_images(data, min(most, CALIBRATION), shape), referenced, modes,
            lambda full, half: against_fp32(full, half, labels),
        )  # fmt: skip
        for mode, one in runs:
            found["modes"][mode] = one
            yield found
        return
    model = loading.load(recipe.model)
    pixels, labels = images_of(data, count, model.preprocessing)
    full: Results | None = None
    for mode in ("fp32", *modes):
        given = ranges.with_opset(recipe.with_("precision.mode", mode))
        dense = dense_onnx(model.module, model.image_shape, given)
        here, beyond = settle(dense, given, True, pixels[:64])
        here = ranges.settle(
            dense, here, True, lambda most: calibration_images(data, min(most, CALIBRATION), model.preprocessing)
        )
        graph, anatomy, notes = surgery.rewrite(dense, here, True)
        result = run(make_session(emulated(graph).SerializeToString(), threads=1, spin=False), pixels, anatomy.patches)
        blocks = [int(value.name.removeprefix("kept_")) for value in graph.graph.output if value.name.startswith("kept_")]
        full = full or result
        found["modes"][mode] = {
            **compared(full, result, labels, blocks), "bytes": graph.ByteSize(), "overflow": beyond,
            "layers": notes.get("precision", {}).get("layers"),
        }  # fmt: skip
        if mode != "fp32" and referenced:
            oracle = PrunedViT(model.module, here).eval()
            found["modes"][mode]["reference"] = against_reference(oracle, here, pixels[:referenced], result, blocks)
        yield found


def missing_modes(stored: dict[str, Any], method: str, count: int, modes: Sequence[str]) -> list[str]:
    """The modes that are not stored for as many images."""
    known = stored.get(method, {}).get("modes", {})
    return [mode for mode in modes if known.get(mode, {}).get("images") != count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with Fashion-MNIST's IDX files, or an npz")
    parser.add_argument("--count", type=int, default=10000, help="test images")
    parser.add_argument("--reference", type=int, default=1000, help="images that are also compared with the PyTorch reference")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    parser.add_argument("--again", action="store_true", help="run what is stored already, too")
    parser.add_argument("--output", type=Path, default=STORED)
    args = parser.parse_args()
    stored = json.loads(args.output.read_text()) if args.output.exists() else {}
    for method in args.methods:
        modes = args.modes if args.again else missing_modes(stored, method, args.count, args.modes)
        for found in evaluate(method, args.data, args.count, args.reference, modes, stored.get(method)) if modes else ():
            stored[method] = found
            args.output.write_text(json.dumps(stored, indent=1) + "\n")
            print(method, {mode: (round(one["top1"], 2), one["drop"]) for mode, one in found["modes"].items()}, flush=True)


if __name__ == "__main__":
    main()
