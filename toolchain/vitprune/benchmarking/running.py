"""From the arguments of `vitprune benchmark` to its document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitprune.benchmarking import subjects, suite
from vitprune.bundle import open_bundle
from vitprune.bundle_parts.output import require_new_file, unwritable
from vitprune.data import images as image_data
from vitprune.errors import RecipeError
from vitprune.support import json_text
from vitprune.support.files import write_atomic

CLOCKS = ("cpu", "wall")


def run(
    paths: Sequence[str], *, target: str | None, backend: str, batches: Sequence[int], rounds: int, threads: int, clock: str | None,
    data: Path | None, dense: bool, oracle: bool, memory: bool, most: int | None, require_locked: bool, foreign_code: bool, output: Path | None, force: bool,
    report: Callable[[int, int, str], None],
) -> dict[str, Any]:  # fmt: skip
    """Open the bundles, measure them, write the document where asked.

    Raises:
        RecipeError: VP106, VP107 the output, VP199 the clock; LoadError: VP600 no bundle; as `suite.benchmark`.
    """
    if clock not in (None, *CLOCKS):
        raise RecipeError(199, f"--clock '{clock}'", cause="it is cpu or wall", next_step="vitprune benchmark --help")
    if output is not None:
        require_new_file(output, force)
    opened = {name: open_bundle(path, foreign_code) for name, path in _named(paths).items()}
    where = subjects.runtime(target, backend, threads)
    plain = where.backend == subjects.ONNXRUNTIME and threads == 1  # one thread of this process does all the work
    plan = suite.Plan(
        where,
        tuple(sorted(set(batches))),
        rounds,
        clock or ("cpu" if plain else "wall"),
        dense,
        0,
        require_locked,
        most,
        oracle,
        memory,
    )
    pixels = {
        name: bundle.samples()["images"]
        if data is None
        else image_data.for_bundle(bundle, data, suite.CALLS * max(plan.batches)).pixels
        for name, bundle in opened.items()
    }
    document = suite.benchmark(opened, plan, pixels, report)
    for name, bundle in opened.items():
        own = {**document, "results": [entry for entry in document["results"] if entry["bundle"] == name]}
        try:
            bundle.write_report("benchmark.json", json_text.written(own))
        except RecipeError as error:  # a bundle that cannot be written can be timed all the same
            document["warnings"].append(f"the result is not kept in '{name}': {error.message}: {error.cause}")
    if output is not None:
        try:
            write_atomic(output, json_text.written(document).encode())
        except OSError as error:
            raise unwritable(output, error) from error
    return document


def _named(paths: Sequence[str]) -> dict[str, Path]:
    """Bundles by the names of their folders; by their paths where two have the same."""
    names = [Path(path).resolve().name for path in paths]
    keys = [path if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise RecipeError(199, f"'{twice[0]}' is named twice", cause="one bundle is timed once", next_step="name it once")
    return {key: Path(path) for key, path in zip(keys, paths, strict=True)}
