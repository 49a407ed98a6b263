"""Measures a latency table on this machine's CPU: models of two blocks, made for a number of tokens, dense and with one site."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from vitprune.backends import onnxruntime as runtime
from vitprune.device.profiling import DEPTH, Sizes, Tokens, parts
from vitprune.device.timing import Variant, measure
from vitprune.errors import RecipeError
from vitprune.exporting.dense import dense_onnx
from vitprune.graph import surgery
from vitprune.graph.anatomy.find import find
from vitprune.graph.intake import take_in
from vitprune.graph.lowering.onnxruntime import specialise
from vitprune.graph.passes.base import Surgery
from vitprune.graph.types import redirect
from vitprune.methods.base import Geometry
from vitprune.recipe import Recipe
from vitprune.tuning.candidates import of_methods
from vitprune.tuning.evaluating import run
from vitprune.tuning.latency import TARGET
from vitprune.tuning.table import Batch, Curve, LatencyTable, Model
from vitprune.vit.dense import geometry


def token_counts(sizes: Geometry, wanted: int) -> list[int]:
    """Numbers of tokens to measure: evenly spread up to the model's own, and about multiples of 64, where kernels' tiles end."""
    even = np.linspace(sizes.prefix + 2, sizes.tokens, wanted)
    knees = [edge + step for edge in range(64, sizes.tokens, 64) for step in (0, 1)]
    return sorted({int(round(value)) for value in even} | {n for n in knees if n > sizes.prefix + 2})


def profile(
    base: Recipe, module: Any, methods: Sequence[str], batches: Sequence[int], counts: Sequence[int], rounds: int, report: Callable[[int, int, str], None]
) -> LatencyTable:  # fmt: skip
    """Measure.

    Args:
        base, module: the model whose blocks are meant. methods: whose sites. batches, counts: images at once, tokens with prefix.
        rounds: of each measurement. report: called with places done, places in all, a text.

    Raises:
        RecipeError: VP186 a model that cannot be made for other token counts.
    """
    sizes = geometry(module)
    columns: dict[int, dict[str, list[float]]] = {batch: {} for batch in batches}
    for place, tokens in enumerate(counts):
        report(place, len(counts), f"{tokens} tokens")
        small, shape = model_for(base, module, tokens - sizes.prefix)
        for batch in batches:
            found = _measured(base, small, shape, methods, batch, rounds)
            for name, value in found.items():
                columns[batch].setdefault(name, []).append(value)
    report(len(counts), len(counts), "done")
    tokens_of = list(counts)
    return LatencyTable(
        device={
            "target": TARGET, "runtime": f"onnxruntime {runtime.version()}", "processor": platform.processor() or platform.machine(),
            "threads": 1, "clock": "CPU time", "rounds": rounds, "load": round(os.getloadavg()[0], 2),
        },
        model=Model(width=sizes.width, heads=sizes.heads, mlp_hidden=sizes.mlp_hidden, prefix=sizes.prefix),
        batches={
            batch: Batch(
                rest=_curve(tokens_of, column["rest"]), block=_curve(tokens_of, column["block"]),
                sites={name: _curve(tokens_of, column[name]) for name in methods if name in column},
            )
            for batch, column in columns.items()
        },
    )  # fmt: skip


def _curve(tokens: list[int], values: list[float]) -> Curve:
    return Curve(tokens=tokens, milliseconds=[round(max(0.0, value), 6) for value in values])


def model_for(base: Recipe, module: Any, patches: int) -> tuple[Any, tuple[int, int, int]]:
    """A model of the same blocks, two of them, whose image is one row of patches."""
    import timm
    import torch

    height, width = module.patch_embed.patch_size
    args = {key: value for key, value in base.model.args.items() if key not in ("img_size", "depth")}
    torch.manual_seed(0)
    try:
        small: Any = timm.create_model(
            base.model.name or "", pretrained=False, **args, img_size=(height, width * patches), depth=DEPTH
        ).eval()
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise RecipeError(
            186, f"'{base.model.name}' cannot be made for {patches} patches", cause=str(error).splitlines()[0],
            next_step="profile a plain timm Vision Transformer",
        ) from error  # fmt: skip
    for block in small.blocks:  # uneven attention, as trained models have it
        block.attn.qkv.weight.data[: 2 * small.embed_dim] *= 4
    return small, (module.patch_embed.proj.in_channels, height, width * patches)


def _measured(
    base: Recipe, small: Any, shape: tuple[int, int, int], methods: Sequence[str], batch: int, rounds: int
) -> dict[str, float]:
    """Milliseconds of "rest", "block" and every method's site at the model's token count."""
    pixels = images(batch, shape)
    graphs, recipes = graphs_of(base, small, shape, methods, batch)
    variants = [Variant(name, batch, _call(graph, pixels)) for name, graph in graphs.items()]
    times = {one.name: one.median_ms for one in measure(variants, rounds=rounds, clock=time.process_time)}
    sizes = geometry(small)
    blocks = {name: tokens_of(small, sizes, name, recipe, pixels) for name, recipe in recipes.items()}
    return parts(model_of(sizes), sizes.tokens, times, blocks)


def images(batch: int, shape: tuple[int, int, int]) -> Any:
    """What is run, float32 [batch,C,H,W]."""
    return np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)


def graphs_of(
    base: Recipe, small: Any, shape: tuple[int, int, int], methods: Sequence[str], batch: int
) -> tuple[dict[str, onnx.ModelProto], dict[str, Recipe]]:
    """Graphs by name, "rest" without the blocks, "dense" and one per method with a site in block 0; and the methods' recipes."""
    sizes = geometry(small)
    plain = base.with_("graph.batch", f"1:{batch}:{max(batch, 2)}")
    recipes = {}
    for name in methods:
        (candidate,) = of_methods(plain, small, [name], sizes)
        recipes[name] = candidate.with_keys({"stages": [0]})
    dense = dense_onnx(small, shape, plain)
    graphs = {"rest": without_blocks(dense, plain), "dense": surgery.canonical(dense, plain)}
    return graphs | {name: surgery.rewrite(dense, recipe)[0] for name, recipe in recipes.items()}, recipes


def tokens_of(small: Any, sizes: Geometry, name: str, recipe: Recipe, pixels: Any) -> list[Tokens]:
    """Token counts of the blocks of a model with one site, the fullest image's."""
    from vitprune import methods

    kept = run(small, recipe, pixels).counts.max(axis=0)
    method = methods.get(name)
    blocks = method.block_tokens(method.sites(recipe.prune, sizes), sizes, [float(value) for value in kept])
    return [Tokens(one.entering, one.queries, one.mlp) for one in blocks]


def model_of(sizes: Geometry) -> Sizes:
    """Sizes of the blocks."""
    return Sizes(width=sizes.width, heads=sizes.heads, mlp_hidden=sizes.mlp_hidden, prefix=sizes.prefix)


def without_blocks(dense: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
    """Embedding and head of a dense graph alone."""
    taken = take_in(dense, recipe)
    from vitprune import methods

    work = Surgery(surgery.working_copy(taken.model), find(taken.model), taken.recipe, methods.get(recipe.prune.method), [])
    first, last = work.tensors[work.anatomy.blocks[0].x], work.tensors[work.anatomy.blocks[-1].output]
    redirect(list(last.outputs), last, first)
    return surgery.finish(work)


def _call(graph: onnx.ModelProto, images: Any) -> Callable[[], object]:
    session = runtime.make_session(specialise(graph, keep_outputs=False)[0].SerializeToString(), threads=1, spin=False)
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})
