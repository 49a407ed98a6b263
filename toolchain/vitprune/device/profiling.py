"""A latency table measured where nothing but numpy and a runtime is: what a block and a method's site cost by token count.

A package that was made with --profile-tokens carries small models of two blocks: profile.json says which, every graph lies without its
weights beside the weights that all of them share. Both are serialised ONNX models, and those of one behind the other are one model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.device.timing import Variant, measure

DEPTH = 2  # blocks of every small model
FOLDER, INDEX, WEIGHTS = "profile", "profile.json", "weights.pb"
Runner = Callable[[bytes, Sequence[int], int], Callable[[Any], object]]  # model, shape of an image, batch -> function of images


@dataclass(frozen=True)
class Sizes:
    """Sizes of a block: channels, heads, hidden channels of the MLP; and prefix tokens."""

    width: int
    heads: int
    mlp_hidden: int
    prefix: int


@dataclass(frozen=True)
class Tokens:
    """Mean token counts of a block: rows that enter attention as keys, as queries, and rows of the MLP."""

    entering: float
    queries: float
    mlp: float


def block_time(sizes: Sizes, tokens: Tokens, whole: Callable[[float], float]) -> float:
    """Time of a block with a site in it, from `whole`, that of a whole block by tokens: attention in proportion to its MACs, then the MLP."""

    def attention(n: float, k: float) -> float:
        return 2 * (n + k) * sizes.width**2 + 2 * n * k * sizes.width

    def share(n: float) -> float:
        return attention(n, n) / (attention(n, n) + 2 * n * sizes.width * sizes.mlp_hidden)

    n, k = tokens.entering, tokens.queries
    return share(n) * whole(n) * attention(n, k) / attention(n, n) + (1 - share(tokens.mlp)) * whole(tokens.mlp)


def parts(sizes: Sizes, tokens: int, times: Mapping[str, float], blocks: Mapping[str, Sequence[Tokens]]) -> dict[str, float]:
    """Milliseconds of "rest", "block" and every method's site at one token count.

    Args:
        sizes, tokens: of the small model, prefix included. times: of "rest", "dense" and every method's graph. blocks: token counts of
            the methods' blocks. Rows that a site has taken away are charged in proportion to those of a whole block.
    """
    block = max(0.0, (times["dense"] - times["rest"]) / DEPTH)  # below nothing by noise alone
    found = {"rest": times["rest"], "block": block}
    for name, counts in blocks.items():
        found[name] = times[name] - times["rest"] - sum(block_time(sizes, one, lambda n: block * n / tokens) for one in counts)
    return found


def profile_package(
    folder: Path, runner: Runner, device: dict[str, Any], rounds: int, say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:  # fmt: skip
    """The latency table of a package's graphs, in the form of `vitprune benchmark --profile-tokens`.

    Args:
        folder: the package's profile folder. runner: makes a model callable. device: written into the table. rounds: of each
            measurement. say: called with one line a token count. clock: seconds.
    """
    import numpy as np

    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    weights, sizes = (folder / WEIGHTS).read_bytes(), Sizes(**index["model"])
    batches: dict[str, Any] = {}
    for batch in index["batches"]:
        columns: dict[str, list[float]] = {}
        for place in index["places"]:
            pixels = np.random.default_rng(0).standard_normal((batch, *place["shape"])).astype(np.float32)
            variants = []
            for name, file in place["graphs"].items():
                call = runner((folder / file).read_bytes() + weights, place["shape"], batch)
                variants.append(Variant(name, batch, lambda call=call, pixels=pixels: call(pixels)))  # type: ignore[misc]
            times = {one.name: one.median_ms for one in measure(variants, rounds=rounds, clock=clock)}
            blocks = {name: [Tokens(*one) for one in counts[str(batch)]] for name, counts in place["blocks"].items()}
            for name, value in parts(sizes, place["tokens"], times, blocks).items():
                columns.setdefault(name, []).append(round(max(0.0, value), 6))
            say(f"{place['tokens']} tokens, batch {batch}: a block {columns['block'][-1]:.3f} ms")
        tokens = [place["tokens"] for place in index["places"]]
        curves = {name: {"tokens": tokens, "milliseconds": values} for name, values in columns.items()}
        rest, block = curves.pop("rest"), curves.pop("block")
        batches[str(batch)] = {"rest": rest, "block": block, "sites": curves}
    return {"schema_version": 1, "device": device | {"rounds": rounds}, "model": index["model"], "batches": batches}
