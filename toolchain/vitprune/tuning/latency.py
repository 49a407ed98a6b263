"""Latency on this machine's CPU: pruned against dense in turn, on the same images, by ONNX Runtime's specialised graphs.

Both are the graphs that `build-engine --target onnxruntime-cpu --plugin none` writes: with the native library the engine is faster.
One thread, CPU time: a busy machine then changes little.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune.backends.onnxruntime import as_read, make_session
from vitprune.calibration.bench import Bench
from vitprune.device.timing import Timing, Variant, measure
from vitprune.errors import RecipeError
from vitprune.exporting.dense import dense_onnx
from vitprune.graph import surgery
from vitprune.graph.lowering.onnxruntime import specialise
from vitprune.recipe import Recipe
from vitprune.tuning.budget import macs_share
from vitprune.tuning.table import Curve

TARGET = "onnxruntime-cpu"
CALLS = 8  # batches of different images in one measurement: counts differ between them
ROUNDS, FRESH_ROUNDS = 7, 25


@dataclass
class CpuLatency:
    """Share of the dense latency, measured.

    images: float32 [n,C,H,W] that are run. batch: of one call.
    """

    images: NDArray[np.float32]
    batch: int = 1
    slack: float = 0.07
    direct: bool = False
    curve: Curve | None = None
    _dense: dict[int, tuple[onnx.ModelProto, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = max(1, min(CALLS, len(self.images) // self.batch))
        self._calls = [np.ascontiguousarray(part) for part in np.split(self.images[: count * self.batch], count)]

    def scouted(self, bench: Bench, prune: dict[str, Any], counts: NDArray[np.int64]) -> float:
        """See `Spending`: the share of the MACs, from which the trial finds its way to the latency."""
        return macs_share(bench, prune, counts)

    def exact(self, bench: Bench, prune: dict[str, Any], counts: NDArray[np.int64]) -> float:
        """See `Spending`: measured."""
        return self.ratio(bench.module, bench.with_prune(prune))

    def ratio(self, module: Any, recipe: Recipe, rounds: int = ROUNDS) -> float:
        """Median over the rounds of pruned over dense time."""
        return self.timings(module, recipe, rounds)[1].ratio

    def timings(self, module: Any, recipe: Recipe, rounds: int) -> list[Timing]:
        """Dense, then pruned, in one interleaved run."""
        model, dense = self._of(module, recipe)
        pruned, _, _ = surgery.rewrite(model, recipe)
        sessions = {"dense": dense, "pruned": _session(pruned)}
        variants = [Variant(name, self.batch * len(self._calls), self._runner(one)) for name, one in sessions.items()]
        return measure(variants, rounds=rounds, warmup=1, clock=time.process_time)

    def _runner(self, session: Any) -> Any:
        name = session.get_inputs()[0].name
        calls = [as_read(session, part) for part in self._calls]
        return lambda: [session.run(None, {name: part}) for part in calls]

    def _of(self, module: Any, recipe: Recipe) -> tuple[onnx.ModelProto, Any]:
        """The dense graph of a module, exported once, and its session."""
        if id(module) not in self._dense:
            model = dense_onnx(module, self.images.shape[1:], recipe)
            self._dense[id(module)] = (model, _session(surgery.canonical(model, recipe)))
        return self._dense[id(module)]


def require_here(target: str | None) -> None:
    """Refuse targets whose latency this machine cannot measure.

    Raises:
        RecipeError: VP180.
    """
    if target not in (None, TARGET):
        from vitprune import targets

        targets.load(target)  # an unknown name is named first
        raise RecipeError(
            180, f"the latency of target '{target}' cannot be measured here", cause=f"this machine times {TARGET} only",
            next_step="--budget-macs, or leave out --target",
        )  # fmt: skip


def require_batch(recipe: Recipe, batch: int) -> None:
    """Refuse a batch that the recipe's graphs do not take.

    Raises:
        RecipeError: VP181.
    """
    low, _, high = recipe.graph.profile
    if not low <= batch <= high:
        raise RecipeError(
            181, f"--batch {batch} is not in the recipe's profile {recipe.graph.batch}",
            cause="the graphs are made for other batches", next_step=f"--set 'graph.batch=\"1:{batch}:{batch}\"'",
        )  # fmt: skip


def _session(model: onnx.ModelProto) -> Any:
    return make_session(specialise(model, keep_outputs=False)[0].SerializeToString(), threads=1, spin=False)
