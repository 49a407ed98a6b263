"""Evaluate one recipe on the 10,000 test images of Fashion-MNIST and store what was measured as JSON.

    python recipes/fashion_mnist/results.py --dense                                   # the dense model
    python recipes/fashion_mnist/results.py RUN/recipe.yaml --name asvit-65-trained   # a trained run
    python recipes/fashion_mnist/report.py                                            # RESULTS.md from the stored JSON

Decisions, accuracy and MACs come from the PyTorch reference, latency from the exported graphs on ONNX Runtime: one thread, CPU time,
dense and pruned in turn on the same images, median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitprune import methods
from vitprune.backends.onnxruntime import make_session
from vitprune.data.images import normalise
from vitprune.data.sources import open_split
from vitprune.exporting import export as exporting
from vitprune.graph import surgery
from vitprune.graph.lowering.onnxruntime import specialise
from vitprune.methods.cost import dense_blocks, model_macs
from vitprune.recipe import Recipe
from vitprune.vit import loading
from vitprune.vit.dense import geometry
from vitprune.vit.pruned import PrunedViT

HERE = Path(__file__).parent
DATA = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist
BATCH = 100


def wilson(correct: int, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share, in percent (Wilson 1927)."""
    z, share = 1.959964, correct / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return 100 * (centre - half), 100 * (centre + half)


def test_images(data: Path, count: int, preprocessing: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    source = open_split(data, "val", 10)
    assert source is not None
    assert source.pixels is not None
    assert source.labels is not None
    return normalise(source.pixels[:count].astype(np.float32) / 255, preprocessing), source.labels[:count]


def accuracy_of(correct: int, count: int) -> dict[str, Any]:
    return {"images": count, "correct": correct, "top1": 100 * correct / count, "ci95": wilson(correct, count)}


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return accuracy_of(int((predicted == labels).sum()), len(labels))


def right(logits: np.ndarray, labels: np.ndarray) -> str:
    """1 for every image classified rightly, else 0: what paired comparisons are made of."""
    return "".join(str(int(one)) for one in logits.argmax(1) == labels)


@torch.inference_mode()
def evaluate_dense(module: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    logits = np.concatenate([module(torch.from_numpy(images[i : i + BATCH])).numpy() for i in range(0, len(images), BATCH)])
    shape = geometry(module)
    macs = model_macs(shape, dense_blocks(shape))
    found = accuracy(logits.argmax(1), labels) | {"right": right(logits, labels)}
    return found | {"macs": macs, "macs_share": 1.0, "sites": []}


@torch.inference_mode()
def evaluate_tokens(module: Any, recipe: Recipe, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy, mean MACs, kept counts; depth of the patches for A-ViT."""
    oracle = PrunedViT(module, recipe).eval()
    logits, counts, depths, active = [], [], [], []
    for start in range(0, len(images), BATCH):
        logits.append(oracle(torch.from_numpy(images[start : start + BATCH])).numpy())
        counts.append(torch.stack([(kept >= 0).sum(1) for kept in oracle.kept], dim=1).numpy())
        if recipe.prune.method == "avit":
            depths.append(oracle.steps.depth[:, oracle.geometry.prefix :].numpy())
            active.append(oracle.steps.active[:, :, oracle.geometry.prefix :].float().mean(dim=(1, 2)).numpy())
    kept = np.concatenate(counts)
    shape = oracle.geometry
    dense = model_macs(shape, dense_blocks(shape))

    def cost(mean: np.ndarray) -> float:
        return model_macs(shape, oracle.method.block_tokens(oracle.sites, shape, [float(value) for value in mean]))

    each = np.array([cost(row) for row in np.unique(kept, axis=0)])[np.unique(kept, axis=0, return_inverse=True)[1].reshape(-1)]
    sites = [
        {
            "block": site.block, "mean": float(kept[:, n].mean()), "deviation": float(kept[:, n].std()),
            "histogram": np.bincount(kept[:, n], minlength=shape.patches + 1).tolist(),
        }
        for n, site in enumerate(oracle.sites)
    ]  # fmt: skip
    found = accuracy(np.concatenate(logits).argmax(1), labels) | {"right": right(np.concatenate(logits), labels)}
    found |= {"macs": float(each.mean()), "macs_share": float(each.mean() / dense), "macs_deviation": float(each.std() / dense)}
    found |= {
        "sites": sites,
        "easy": np.argsort(each, kind="stable")[:8].tolist(),
        "hard": np.argsort(-each, kind="stable")[:8].tolist(),
    }
    if depths:
        every = np.concatenate(depths)
        found["avit"] = {
            "depth_map": every.mean(axis=0).tolist(), "active_share_by_block": np.mean(active, axis=0).tolist(),
            "halted_share_by_block": (1 - np.mean(active, axis=0)).tolist(),
        }  # fmt: skip
    return found


def evaluate_cascade(cascade: Any, recipe: Recipe, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy of the cascade and of its exits alone, exit shares, mean MACs against one dense model."""
    from vitprune.methods.dvt.cost import exit_costs
    from vitprune.methods.dvt.exporting import geometry_of
    from vitprune.methods.dvt.host import all_exits, torch_members
    from vitprune.methods.dvt.validating import exits_of

    params: Any = recipe.prune
    shape = geometry_of(cascade.shape, params.grids[-1])
    members = torch_members(cascade)
    pieces = [all_exits(members, images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    logits = [np.concatenate([piece[n] for piece in pieces]) for n in range(len(members))]
    exits = exits_of(logits, params.thresholds)
    predicted = np.stack(logits).argmax(2)[exits - 1, np.arange(len(labels))]
    costs = exit_costs(params, shape, [cascade.shape.channels, cascade.shape.image, cascade.shape.image])
    dense = model_macs(shape, dense_blocks(shape))
    mean = float(np.asarray(costs)[exits - 1].mean())
    shares = [float((exits == n + 1).mean()) for n in range(len(members))]
    alone = [accuracy(value.argmax(1), labels) for value in logits]
    found = accuracy(predicted, labels) | {"macs": mean, "macs_share": mean / dense, "sites": []}
    # the last member is only reached through the others: its MACs as a cascade that never leaves early
    found["dvt"] = {
        "exit_shares": shares,
        "exit_macs_share": [c / dense for c in costs],
        "exits_alone": alone,
        "full_to_mean": costs[-1] / mean,
    }
    certain = np.argsort(-logits[0].max(1), kind="stable")
    return found | {"easy": certain[:8].tolist(), "hard": certain[::-1][:8].tolist()}


def runner(graph: Any) -> Any:
    """A graph, specialised as the engine is, as a function of images."""
    special, _ = specialise(graph, keep_outputs=False)
    session = make_session(special.SerializeToString(), threads=1, spin=False)
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    return lambda x: session.run([output], {name: x})


def cascade_runner(cascade: Any, recipe: Recipe) -> Any:
    from vitprune.methods.dvt.graphs import member_graphs
    from vitprune.methods.dvt.host import run_cascade

    def member(graph: Any) -> Any:
        session = make_session(graph.SerializeToString(), threads=1, spin=False)
        names = [value.name for value in session.get_outputs()]
        return lambda feeds: dict(zip(names, session.run(None, dict(feeds)), strict=True))

    members = [member(graph) for graph in member_graphs(cascade, recipe, lambda text: None)]
    params: Any = recipe.prune
    return lambda x: run_cascade(members, x, params.thresholds)


def latency(dense: Any, pruned: Any, images: np.ndarray, batch: int, rounds: int) -> dict[str, Any]:
    """Median ratio pruned / dense of CPU time on the same images, in turn; quartiles say how steady it is."""
    for run in (dense, pruned):
        run(images[:batch])
    ratios, times = [], []
    for number in range(rounds):
        start = (number * batch) % (len(images) - batch + 1)
        x, spent = images[start : start + batch], {}
        order = [("dense", dense), ("pruned", pruned)]
        for name, run in order if number % 2 else order[::-1]:
            began = time.process_time()
            run(x)
            spent[name] = time.process_time() - began
        times.append(spent["dense"])
        ratios.append(spent["pruned"] / max(spent["dense"], 1e-9))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"ratio": middle, "quartiles": [low, high], "dense_ms": 1e3 * statistics.median(times), "rounds": rounds}


def opened(recipe: Recipe, weights: str | None) -> Any:
    if methods.get(recipe.prune.method).pipeline is not None:
        from vitprune.methods.dvt import members

        return members.load(None, recipe, pretrained=False, seed=0, weights=weights)
    return loading.load(recipe.model, pretrained=False, weights=weights)


def measure(recipe: Recipe, dense_recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    made = opened(recipe, args.weights)
    images, labels = test_images(args.data, args.images, made.preprocessing)
    cascade = methods.get(recipe.prune.method).pipeline is not None
    found = (evaluate_cascade if cascade else evaluate_tokens)(made.module, recipe, images, labels)
    if args.rounds:
        plain = loading.load(dense_recipe.model, pretrained=False).module
        graph = exporting.dense_onnx(plain, made.image_shape, dense_recipe)
        dense = runner(surgery.canonical(graph, dense_recipe))
        if cascade:
            pruned = cascade_runner(made.module, recipe)
        else:
            own = exporting.dense_onnx(made.module, made.image_shape, recipe)
            pruned = runner(surgery.rewrite(own, recipe, has_cls=True)[0])
        found["latency"] = {f"batch_{n}": latency(dense, pruned, images, n, max(8, args.rounds // n)) for n in (1, 8)}
    return found | {"weights": made.source}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", help="recipe file or shipped name")
    parser.add_argument("--dense", action="store_true", help="the dense model of fashion_mnist/ats")
    parser.add_argument("--name", help="name of the run; default: the method")
    parser.add_argument("--weights", help="checkpoint; wins over the recipe's")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=400, help="images per latency series; 0 = no latency")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--set", action="append", dest="overrides", help="key.path=value of the recipe")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dense_recipe = Recipe.load(str(HERE / "ats.yaml"))
    if args.dense:
        made = loading.load(dense_recipe.model, pretrained=False)
        images, labels = test_images(args.data, args.images, made.preprocessing)
        found = {"name": "dense", "method": "dense", "trained": True} | evaluate_dense(made.module, images, labels)
        found["weights"] = made.source
    else:
        recipe = Recipe.load(args.recipe, args.overrides)
        beside = Path(args.recipe).parent / "train.json"
        trained = beside.is_file() or (args.weights or recipe.model.weights) != dense_recipe.model.weights
        name = args.name or recipe.prune.method
        found = {
            "name": name,
            "method": recipe.prune.method,
            "trained": trained,
            "prune": recipe.prune.portable().model_dump(mode="json"),
        }
        found |= measure(recipe, dense_recipe, args)
        if beside.is_file():
            facts = json.loads(beside.read_text())
            found["training"] = {key: facts[key] for key in ("epochs", "steps", "seconds", "processes", "device", "history")}
            found["training"]["keys"] = recipe.to_dict().get("train")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{found['name']}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{path}: top-1 {found['top1']:.2f} % [{found['ci95'][0]:.2f}, {found['ci95'][1]:.2f}], {found['macs_share']:.3f} x dense MACs"
    )


if __name__ == "__main__":
    main()
