"""Packed execution against padded batches on ONNX Runtime: token counts with a stated spread, and those of the shipped recipes.

    vitprune plugins build && python benchmarks/packed.py        # some 25 minutes on one core
    python benchmarks/packed.py --parts real                     # the shipped recipes alone; stored rows of other parts stay

Stated spread: DeiT-S with ATS's nine sites, random weights. The scores are computed as ever, but which tokens stay is given: image b keeps
f(b) times a mean path of 197 to 77 tokens, log f normal with standard deviation sigma, the same f at all sites. Both graphs get the same
decisions and the same plain nodes, so that the difference is packing alone; shipped recipes are timed as `build-engine` makes them, padded with one
operator a site, packed with plain nodes there. One thread, CPU time, interleaved in random order, per-round ratios, medians; every
round draws new counts.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnx_graphsurgeon as gs  # noqa: E402
from speed import library, machine, store  # noqa: E402

from vitprune.backends.onnxruntime import make_session  # noqa: E402
from vitprune.graph import outlines  # noqa: E402
from vitprune.graph.lowering.onnxruntime import specialise  # noqa: E402

OUT = Path(__file__).parent / "results" / "packed.json"
MODEL, TOKENS, SITES, BLOCKS, WIDTH = "deit_small_patch16_224", 197, range(3, 12), 12, 384
GOALS = {8: 1.15, 32: 1.25}


def steered(model: onnx.ModelProto) -> onnx.ModelProto:
    """A pruned model whose selections are inputs index_i int64 [B,K] and keep_i bool [B,K]; its scores become outputs, so they are computed.

    What is said of its sites as one operator goes: their selections are made outside.
    """
    graph = gs.import_onnx(model)
    graph.outputs = graph.outputs[:1]
    for number, node in enumerate(one for one in list(graph.nodes) if one.op == "TokenSample"):
        index, keep, *_ = node.outputs
        graph.outputs.append(node.inputs[0])
        node.inputs[0].shape, node.inputs[0].dtype = ["batch", f"entering_{number}"], np.float32
        for tensor, name in ((index, "index"), (keep, "keep")):
            tensor.inputs.clear()
            tensor.name, tensor.shape = f"{name}_{number}", ["batch", f"staying_{number}"]
            graph.inputs.append(tensor)
        node.outputs.clear()
    steered_model = gs.export_onnx(graph.cleanup(remove_unused_graph_inputs=False).toposort())
    told = {entry.key: entry.value for entry in model.metadata_props if entry.key != outlines.KEY}
    names = {node.output[k]: f"{name}_{i}" for i, node in enumerate(_samples(model)) for k, name in enumerate(("index", "keep"))}
    for old, new in names.items():
        told = {key: value.replace(json.dumps(old), json.dumps(new)) for key, value in told.items()}
    onnx.helper.set_model_props(steered_model, told)
    return steered_model


def _samples(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "TokenSample"]


def counts(batch: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Patches kept, int64 [sites, batch]: a mean path from 160 to 76, times a factor of every image."""
    path = np.geomspace(161, 77, len(SITES)) - 1
    wanted = np.rint(path[:, None] * np.exp(sigma * rng.standard_normal(batch) - sigma**2 / 2)).astype(np.int64)
    return np.minimum.accumulate(np.clip(wanted, 1, TOKENS - 1), axis=0)


def decisions(kept: np.ndarray, rng: np.random.Generator, patches: int = TOKENS - 1) -> dict[str, np.ndarray]:
    """Inputs of a steered model for patches kept [sites, batch]: at every site a random choice among those that are there, in order."""
    fed, there = {}, np.full(kept.shape[1], patches)
    for site, row in enumerate(kept):
        index, keep = np.zeros((len(row), row.max()), np.int64), np.arange(row.max())[None] < row[:, None]
        for image, count in enumerate(row):
            index[image, :count] = np.sort(rng.choice(there[image], count, replace=False))
        fed[f"index_{site}"], fed[f"keep_{site}"], there = index, keep, row
    return fed


def macs(kept: np.ndarray) -> tuple[float, float]:
    """MACs of the blocks, packed and padded, for patches kept [sites, batch] (queries leave before attention, keys after it)."""

    def block(entering: np.ndarray, staying: np.ndarray) -> np.ndarray:
        return entering * 2 * WIDTH**2 + staying * 10 * WIDTH**2 + 2 * WIDTH * entering * staying

    tokens = np.concatenate([np.full((min(SITES) + 1, kept.shape[1]), TOKENS), kept + 1]).astype(float)
    longest = np.broadcast_to(tokens.max(axis=1, keepdims=True), tokens.shape)
    return tuple(sum(block(one[b], one[b + 1]).sum() for b in range(BLOCKS)) for one in (tokens, longest))  # type: ignore[return-value]


def interleaved(made: dict[str, Any], feeds: list[dict[str, np.ndarray]], repeats: int = 1) -> list[float]:
    """Padded over packed CPU time of every feed."""
    ratios = []
    taken = {label: {one.name for one in session.get_inputs()} for label, session in made.items()}
    for fed in feeds:
        spent = {}
        for label in random.sample(list(made), len(made)):
            own = {name: value for name, value in fed.items() if name in taken[label]}
            began = time.process_time_ns()
            for _ in range(repeats):
                made[label].run(None, own)
            spent[label] = time.process_time_ns() - began
        ratios.append(spent["padded"] / spent["packed"])
    return ratios


def sessions(model: onnx.ModelProto, library: Path, keep_outputs: bool) -> dict[str, Any]:
    """Padded and packed, both with native operators."""
    made = {}
    for label in ("padded", "packed"):
        special, _ = specialise(model, keep_outputs=keep_outputs, native=True, packed=label == "packed")
        made[label] = make_session(special.SerializeToString(), threads=1, spin=False, library=library)
    return made


def stated(batches: list[int], sigmas: list[float], rounds: int, library: Path) -> list[dict[str, Any]]:
    """Rows of the stated spread."""
    from vitprune.exporting import export as exporting
    from vitprune.graph import surgery
    from vitprune.recipe import Recipe
    from vitprune.vit.loading import load

    recipe = Recipe.load("ats_deit_small", [f'graph.batch="1:8:{max(batches)}"'])
    loaded = load(recipe.model, pretrained=False, seed=0)
    model, _, _ = surgery.rewrite(exporting.dense_onnx(loaded.module, loaded.image_shape, recipe), recipe)
    made, rows = sessions(steered(model), library, keep_outputs=True), []
    for batch in batches:
        for sigma in sigmas:
            rng = np.random.default_rng(1)
            drawn = [counts(batch, sigma, rng) for _ in range(rounds + 1)]
            feeds = [{"image": rng.standard_normal((batch, 3, 224, 224), np.float32), **decisions(one, rng)} for one in drawn]
            ratios = interleaved(made, feeds)[1:]
            theory = statistics.median(padded / packed for packed, padded in map(macs, drawn[1:]))
            goal = GOALS.get(batch) if sigma == 0.2 else None
            rows.append(_row({"batch": batch, "sigma": sigma, "macs": round(theory, 4), "goal": goal}, ratios))
    return rows


def real(batches: list[int], rounds: int, library: Path) -> list[dict[str, Any]]:
    """Rows of the shipped recipes whose counts differ between images, on test images."""
    from shipped import names, pixels

    from vitprune.exporting.dense import dense_onnx
    from vitprune.graph import ragged, surgery
    from vitprune.recipe import Recipe
    from vitprune.vit.loading import load

    rows = []
    for name in names():
        recipe = Recipe.load(f"fashion_mnist/{name}", [f'graph.batch="1:8:{max(batches)}"'])
        loaded = load(recipe.model)
        model, _, _ = surgery.rewrite(dense_onnx(loaded.module, loaded.image_shape, recipe), recipe)
        if not ragged.stored(model)[1]:
            continue
        made, shown = sessions(model, library, keep_outputs=False), pixels(name)
        lists = make_session(specialise(model, keep_outputs=True, native=True)[0].SerializeToString(), library=library)
        wanted = [output.name for output in lists.get_outputs() if output.name.startswith("kept_")]  # there are groups, too
        kept = [(one >= 0).sum(axis=1) for one in lists.run(wanted, {lists.get_inputs()[0].name: shown})]
        spread = max(float(np.std(np.log(np.maximum(one, 1)))) for one in kept)
        for batch in batches:
            starts = [number * batch % (len(shown) - batch + 1) for number in range(rounds + 1)]
            feeds = [{made["padded"].get_inputs()[0].name: shown[start : start + batch]} for start in starts]
            ratios = interleaved(made, feeds, repeats=max(1, 32 // batch))[1:]
            means = [round(float(one.mean()), 1) for one in kept]
            rows.append(_row({"recipe": name, "batch": batch, "sigma": round(spread, 3), "kept": means}, ratios))
    return rows


def _row(facts: dict[str, Any], ratios: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(ratios, n=4)
    row = {**facts, "padded_over_packed": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)], "rounds": len(ratios)}
    print(json.dumps(row), flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=["stated", "real"], choices=["stated", "real"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8, 32])
    parser.add_argument("--sigmas", nargs="*", type=float, default=[0.0, 0.1, 0.2, 0.3])
    parser.add_argument("--library", type=Path, help="native library; default: what vitprune plugins build has left")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    random.seed(0)
    native = arguments.library or library()
    if native is None:
        print("packed execution needs the native library: vitprune plugins build, with onnxruntime_c_api.h at hand")
        return 2
    document = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if "stated" in arguments.parts:
        document["stated"] = stated(arguments.batches, arguments.sigmas, arguments.rounds, native)
    if "real" in arguments.parts:
        document["real"] = real(arguments.batches, arguments.rounds, native)
    document |= {"model": MODEL, "machine": machine()}
    store(arguments.out, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
