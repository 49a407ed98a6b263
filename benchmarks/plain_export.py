"""Our graphs against torch's own export of the same method in PyTorch, both on ONNX Runtime.

    python benchmarks/plain_export.py                    # some 15 minutes on one core; then python benchmarks/report.py

Exported is our reference with its pruning as it is; where torch cannot do that, the error is a row. Then the method as one writes it in PyTorch
(plain_models.py: top-k, EViT, ToMe), whose logits are the reference's. torch.onnx.export is tried with its newer exporter and then with the older one, for fixed sizes, which is what it does best. Both graphs get the
same images before anything is timed, and other images afterwards: an export that took the decisions on the first ones as constants is a row
that says so, as is one that fails. One thread, CPU time, interleaved in random order, per-round ratios, medians; random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from official import graphs, ratios  # noqa: E402
from plain_models import ToMe, TopK  # noqa: E402
from speed import library, machine, store, taking_turns, uneven  # noqa: E402

import vitprune  # noqa: E402
from vitprune.backends.onnxruntime import make_session  # noqa: E402
from vitprune.data import images  # noqa: E402
from vitprune.errors import first_line  # noqa: E402
from vitprune.exporting.dense import dense_onnx  # noqa: E402
from vitprune.graph import surgery  # noqa: E402
from vitprune.recipe import Recipe  # noqa: E402
from vitprune.vit.loading import load  # noqa: E402

OUT = Path(__file__).parent / "results" / "plain_export.json"
MODEL = "deit_small_patch16_224"
REFERENCES = (
    "topk",
    "evit",
    "ats",
    "tome",
    "dynamicvit",
)  # our reference, for the first case alone: what fails, fails for all sizes
PLAIN: dict[str, Callable[[Any], torch.nn.Module]] = {  # the settings of the shipped recipes
    "topk": lambda model: TopK(model, (3, 6, 9), 0.7),
    "evit": lambda model: TopK(model, (3, 6, 9), 0.7, fuse=True),
    "tome": lambda model: ToMe(model, 13),
}
CASES = ("224:1", "224:8", "384:1", "592:1")
WITHIN = 1e-3  # of the largest logit


def goal(size: int, batch: int) -> float:
    """What a row has to reach: 1.05 at 197 tokens, 1.10 at 577 or in a batch, 1.15 at 1,370."""
    return 1.15 if size >= 592 else 1.10 if size >= 384 or batch > 1 else 1.05


class Logits(torch.nn.Module):
    """The reference as torch's exporters take it: logits alone; what it remembers of a run does not stay, which they refuse."""

    def __init__(self, oracle: Any) -> None:
        super().__init__()
        self.oracle = oracle

    def forward(self, x: torch.Tensor) -> Any:
        """[B,classes] of [B,3,H,W]."""
        logits = self.oracle(x)
        self.oracle.kept, self.oracle.margin, self.oracle.overflow, self.oracle.extra = [], [], [], {}
        return logits


def exported(module: torch.nn.Module, x: torch.Tensor) -> tuple[bytes | None, str, dict[str, str]]:
    """torch's export of a module for images x.

    Returns:
        The model (None: neither exporter can), the exporter that made it, and the error of every one that failed.
    """
    errors = {}
    for exporter, newer in (("newer", True), ("older", False)):
        written = io.BytesIO()
        try:
            noise = io.StringIO()  # graphs of many pages
            with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
                warnings.simplefilter("ignore")
                made = torch.onnx.export(
                    module, (x,), None if newer else written, dynamo=newer, input_names=["image"], verbose=False
                )
            return (made.model_proto.SerializeToString() if newer else written.getvalue()), exporter, errors
        except Exception as error:  # whatever it is, it is the row's text
            errors[exporter] = cause_of(error)
    return None, "", errors


def cause_of(error: BaseException) -> str:
    """The innermost of chained errors in one line: the outer ones say at which step of the export it was."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)[:160]}"


def disagreement(run: Callable[[np.ndarray], list[np.ndarray]], oracle: Any, x: np.ndarray) -> str:
    """Why a graph's logits are not the reference's on some images, or ""."""
    with torch.inference_mode():
        wanted = oracle(torch.from_numpy(x)).numpy()
    try:
        worst = float(np.abs(run(x)[0] - wanted).max())
    except Exception as error:
        return f"it fails: {first_line(error)[:120]}"
    return "" if worst <= WITHIN * float(np.abs(wanted).max()) else f"logits differ by {worst:.2g}"


@cache
def dense(size: int, batch: int) -> tuple[Any, Any]:
    """DeiT-S for a size, random weights with uneven attention, and its dense graph."""
    recipe = Recipe.load("topk_deit_small", [f'graph.batch="{batch}"'])
    loaded = load(recipe.model.model_copy(update={"name": MODEL, "image_size": size}), pretrained=False, seed=0)
    uneven(loaded.module)
    return loaded, dense_onnx(loaded.module, loaded.image_shape, recipe)


def measure(kind: str, method: str, size: int, batch: int, rounds: int, library: Path | None = None) -> dict[str, Any]:
    """One row; "not_run" says why there are no figures. kind: of what is exported, "reference" or "plain"."""
    loaded, graph = dense(size, batch)
    recipe = Recipe.load(f"{method}_deit_small", [f'graph.batch="{batch}"'])
    oracle = vitprune.reference(loaded.module, recipe)
    row: dict[str, Any] = {"exported": kind, "method": method, "image_size": size, "batch": batch, "goal": goal(size, batch)}
    both = images.synthetic(2 * batch, loaded.preprocessing).pixels
    x, other = both[:batch], both[batch:]
    module = Logits(oracle) if kind == "reference" else PLAIN[method](loaded.module).eval()
    model, exporter, errors = exported(module, torch.from_numpy(x))
    row |= {"exporter": exporter, "errors": errors}
    if model is None:
        return {**row, "not_run": "torch exports it with neither exporter"}
    session = make_session(model, threads=1, spin=False)
    plain = partial(_run, session)
    if why := disagreement(plain, oracle, x):
        return {**row, "not_run": f"torch's export: {why}"}
    pruned, anatomy, _ = surgery.rewrite(graph, recipe)
    sessions = graphs(pruned, library)
    for label, made in sessions.items():
        for seen in (x, other):
            if why := disagreement(made, oracle, seen):
                return {**row, "not_run": f"our {label} graph: {why}"}
    runs: dict[str, Callable[[], Any]] = {"torch's export": partial(plain, x)}
    runs |= {label: partial(made, x) for label, made in sessions.items()}
    times = taking_turns(runs, rounds)
    found = {label: ratios(times, "torch's export", label) for label in sessions}
    return {
        **row, "rounds": rounds, "tokens": anatomy.prefix + anatomy.patches, "other_images": disagreement(plain, oracle, other),
        "median_ms": {label: round(1e3 * statistics.median(values), 2) for label, values in times.items()},
        "export_over": found, "met": found.get("native", found["plain"])["median"] >= row["goal"],
    }  # fmt: skip


def _run(session: Any, x: np.ndarray) -> list[np.ndarray]:
    answers: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: x})
    return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--references", nargs="*", default=list(REFERENCES))
    parser.add_argument("--plain", nargs="*", default=list(PLAIN), choices=list(PLAIN))
    parser.add_argument("--cases", nargs="*", default=list(CASES), help="image size:batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--library", type=Path, default=library(), help="native library; default: what vitprune plugins build has left"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, cases = [], [tuple(map(int, case.split(":"))) for case in arguments.cases]
    asked = [("reference", method, *cases[0]) for method in arguments.references]
    asked += [("plain", method, *case) for case in cases for method in arguments.plain]
    for kind, method, size, batch in asked:
        rows.append(measure(kind, method, size, batch, arguments.rounds, arguments.library))
        print(json.dumps(rows[-1]), flush=True)
    store(arguments.out, {"model": MODEL, "threads": 1, "machine": {**machine(), "torch": torch.__version__}, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
