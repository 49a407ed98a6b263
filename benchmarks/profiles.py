"""Where the time of a graph goes that falls short of its goal: milliseconds by operator, beside those of what it is compared with.

    python benchmarks/profiles.py                        # some 3 minutes on one core; then python benchmarks/report.py
    python benchmarks/profiles.py --cases oracle:ward_merge:384:1
    python benchmarks/profiles.py --source DIR --cases official:evit:224:1      # DIR as for official.py

ONNX Runtime's own profile of both graphs of methods_speed.py (native against the slice oracle) and plain_export.py (torch's export against
native), one thread, calls in turn, means over calls. Of official code in eager PyTorch it is torch's profile; the two runtimes' operators
have other names, so that those rows are in three groups. Profiling costs microseconds a node, so totals are above those of the benchmarks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import methods_speed  # noqa: E402
import numpy as np  # noqa: E402
import official  # noqa: E402
import onnxruntime as ort  # noqa: E402
import plain_export  # noqa: E402
import torch  # noqa: E402
from speed import library, machine, store  # noqa: E402

from vitprune.exporting import export as exporting  # noqa: E402
from vitprune.graph import surgery  # noqa: E402
from vitprune.graph.lowering.onnxruntime import specialise  # noqa: E402
from vitprune.recipe import Recipe  # noqa: E402

OUT = Path(__file__).parent / "results" / "profiles.json"
CASES = (
    "oracle:dynamicvit:224:1", "oracle:dynamicvit:224:8", "oracle:ward_merge:384:1", "export:topk:224:1", "export:evit:224:1", "export:tome:224:1", "export:topk:592:1", "export:tome:592:1",
)  # fmt: skip
Pair = tuple[dict[str, bytes], np.ndarray]


def against_oracle(method: str, size: int, batch: int) -> Pair:
    """The slice oracle and the graph with native operators."""
    made, x, _ = methods_speed.graphs(method, batch, size)
    return {"slice oracle": made["oracle"], "native": made["native"]}, x


def against_export(method: str, size: int, batch: int) -> Pair:
    """torch's export of the method as one writes it, and the graph with native operators."""
    loaded, dense = plain_export.dense(size, batch)
    x = plain_export.images.synthetic(batch, loaded.preprocessing).pixels
    model, _, errors = plain_export.exported(plain_export.PLAIN[method](loaded.module).eval(), torch.from_numpy(x))
    if model is None:
        raise SystemExit(f"torch does not export {method}: {errors}")
    recipe = Recipe.load(f"{method}_deit_small", [f'graph.batch="{batch}"'])
    native, _ = specialise(surgery.rewrite(dense, recipe)[0], keep_outputs=False, native=True)
    return {"torch's export": model, "native": native.SerializeToString()}, x


GROUPS = {
    "products and attention": ("Gemm", "MatMul", "FusedMatMul", "Conv", "MultiHeadAttention", "KeyBiasAttention", "aten::addmm", "aten::mm", "aten::bmm",
        "aten::mkldnn_convolution", "aten::_softmax", "aten::_scaled_dot_product_flash_attention_for_cpu"),
    "norms and GELU": ("LayerNormalization", "SkipLayerNormalization", "Gelu", "aten::native_layer_norm", "aten::gelu"),
}  # fmt: skip


def of_official(method: str, batch: int, source: Path, calls: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one call in groups: official code in eager PyTorch, and the graph with native operators."""
    one = official.OFFICIAL[method]
    recipe = Recipe.load(one.recipe, [f'graph.batch="{batch}"', *one.settings])
    loaded = official.dense_model(recipe)
    dense = exporting.dense_onnx(loaded.module, loaded.image_shape, recipe)
    native, _ = specialise(surgery.rewrite(dense, recipe)[0], keep_outputs=True, native=True)
    x = plain_export.images.synthetic(batch, loaded.preprocessing).pixels
    ours = by_operator({"native": native.SerializeToString()}, x, calls)["native"]
    run, _ = one.make(source / one.folder, loaded.module)
    with torch.inference_mode():
        run(torch.from_numpy(x))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            for _ in range(calls):
                run(torch.from_numpy(x))
    theirs = {event.key: event.self_cpu_time_total / 1e3 / calls for event in seen.key_averages()}
    return {"official code": _grouped(theirs), "native": _grouped(ours)}


def _grouped(by_kind: dict[str, float]) -> dict[str, float]:
    sums = {name: sum(by_kind.get(kind, 0.0) for kind in kinds) for name, kinds in GROUPS.items()}
    sums["the rest"] = sum(by_kind.values()) - sum(sums.values())
    return {name: round(value, 3) for name, value in sums.items()}


KINDS = {"oracle": against_oracle, "export": against_export}


def by_operator(graphs: dict[str, bytes], x: np.ndarray, calls: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one call by operator, for each of several graphs; the first call of each is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = {label: _session(graph, Path(folder, str(number))) for number, (label, graph) in enumerate(graphs.items())}
        for _ in range(calls + 1):
            for session in sessions.values():
                session.run(None, {session.get_inputs()[0].name: x})
        events = {label: json.loads(Path(session.end_profiling()).read_text()) for label, session in sessions.items()}
    return {label: _sums(found, calls) for label, found in events.items()}


def _session(graph: bytes, prefix: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling, options.profile_file_prefix = 1, True, str(prefix)
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library()))
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _sums(events: list[dict[str, Any]], calls: int) -> dict[str, float]:
    """By operator; a node runs once a call, so that each one's first event is the call that is not counted."""
    seen: set[str] = set()
    sums: dict[str, float] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name, kind = event["name"], event["args"]["op_name"]
        if name in seen:
            sums[kind] = sums.get(kind, 0.0) + event["dur"] / 1e3 / calls
        seen.add(name)
    return {kind: round(value, 3) for kind, value in sorted(sums.items(), key=lambda item: -item[1])}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES), help="kind:method:image size:batch")
    parser.add_argument("--source", type=Path, help="folder with the official repositories, for cases official:...")
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if library() is None:
        print("there is no native library: vitprune plugins build, with ONNX Runtime's headers", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    rows = {row["case"]: row for row in json.loads(args.out.read_text())["rows"]} if args.out.exists() else {}
    for case in args.cases:
        kind, method, size, batch = case.split(":")
        if kind == "official":
            found = of_official(method, int(batch), args.source, args.calls)
        else:
            found = by_operator(*KINDS[kind](method, int(size), int(batch)), args.calls)
        rows[case] = {"case": case, "calls": args.calls, "ms": found}
        print(json.dumps(rows[case]), flush=True)
    ordered = [rows[case] for case in (*CASES, *sorted(set(rows) - set(CASES))) if case in rows]
    store(args.out, {"model": methods_speed.MODEL, "machine": machine(), "rows": ordered})
    return 0


if __name__ == "__main__":
    sys.exit(main())
