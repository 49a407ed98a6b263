"""One command for whoever has an NVIDIA GPU: kernels against their twin, times of a site, capture, packed attention, dense against pruned.

    pip install 'vitprune[torch]' onnxruntime-gpu        # or TensorRT, or TensorRT-RTX: what is there is used, what is not is said
    vitprune plugins build                               # for the parts on kernels; wants nvcc
    python benchmarks/gpu.py                             # then python benchmarks/report.py

Every part is run or says why not. Without a CUDA device nothing is measured and nothing is written into benchmarks/results; `--out` elsewhere
gets a document that says so. Exit code 1 where a kernel's bits are not the twin's or a part broke.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from vitprune.environment import clocks  # noqa: E402
from vitprune.errors import first_line  # noqa: E402

RESULTS = Path(__file__).parent / "results"
NO_DEVICE = "no CUDA device"
TOKENS, BATCHES = (197, 577, 1370, 2305, 4097), (1, 4, 16, 64)
SPREADS = ((1, 197), (8, 197), (32, 197), (8, 577))
Part = Callable[[argparse.Namespace], dict[str, Any]]


def device() -> dict[str, Any] | None:
    """Name, compute capability, memory, driver, versions and clocks of the first GPU; None where torch finds none."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    state = clocks.state(gpu=True)
    return {
        "name": found.name, "capability": f"{found.major}{found.minor}", "memory_mib": found.total_memory >> 20,
        "multiprocessors": found.multi_processor_count, "cuda": torch.version.cuda, "driver": _smi("driver_version"),
        "clocks": {"sm_mhz": _smi("clocks.sm"), "memory_mhz": _smi("clocks.mem"), "power_limit": _smi("power.limit")},
        "locked": state["locked"], "why": state["why"], "power_mode": state["power_mode"],
    }  # fmt: skip


def _smi(field: str) -> str:
    """A field of nvidia-smi, "" where it does not tell."""
    if shutil.which("nvidia-smi") is None:
        return ""
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""


def library(given: Path | None) -> Any:
    """The native library with CUDA kernels.

    Raises:
        LookupError: there is none, and why.
    """
    from vitprune import plugins

    built = plugins.built()
    path = given or (built.library if built is not None else None)
    if path is None:
        raise LookupError("the native library is not built (vitprune plugins build)")
    loaded = plugins.load(path)
    if "cuda" not in loaded.features:
        raise LookupError("the native library has no CUDA kernels (vitprune plugins build, with nvcc)")
    return loaded.raw


def kernels(options: argparse.Namespace) -> dict[str, Any]:
    """Kernels of PruneSite and of the merging sites against the host twin; with compute-sanitizer, where it is, the same again under it."""
    import gpu_kernels
    import gpu_merging

    raw = library(options.library)
    sizes = (1, 5, 33, 70) if options.quick else (1, 5, 33, 196, 577, 1369, 4096)
    pruned, merged = (part.against_twin(raw, raw, "cuda", sizes) for part in (gpu_kernels, gpu_merging))
    found = {"cases": pruned["cases"] + merged["cases"], "unequal": pruned["unequal"] + merged["unequal"]}
    return {**found, "sanitizer": "" if options.sanitized else sanitizer(options)}


def sanitizer(options: argparse.Namespace) -> str:
    """What compute-sanitizer says at the end of a run of the part on kernels."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "not run: compute-sanitizer is not on the path"
    own = [sys.executable, __file__, "--parts", "kernels", "--quick", "--sanitized"]
    own += ["--library", str(options.library)] if options.library else []
    done = subprocess.run([tool, "--error-exitcode", "9", *own], capture_output=True, text=True, check=False, timeout=1800)
    said = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line]
    return f"exit {done.returncode}: {said[-1].strip('= ') if said else first_line(Exception(done.stderr or done.stdout))[:200]}"


def site_times(options: argparse.Namespace) -> dict[str, Any]:
    """Microseconds of a site of DeiT-S for 197 to 4,097 tokens, batch 1 to 64."""
    import gpu_kernels

    tokens, batches = (TOKENS[:1], BATCHES[:2]) if options.quick else (TOKENS, BATCHES)
    return {"rows": gpu_kernels.site_times(library(options.library), "cuda", tokens, batches, options.repeats)}


def merge_times(options: argparse.Namespace) -> dict[str, Any]:
    """Microseconds of the merging sites of DeiT-S for 197 to 4,097 tokens, batch 1 to 64."""
    import gpu_merging

    tokens, batches = (TOKENS[:1], BATCHES[:2]) if options.quick else (TOKENS, BATCHES)
    return {"rows": gpu_merging.merge_times(library(options.library), "cuda", tokens, batches, options.repeats)}


def capture(options: argparse.Namespace) -> dict[str, Any]:
    """Padded sites in a CUDA graph, replayed with other inputs."""
    import gpu_kernels
    import gpu_merging

    raw = library(options.library)
    rows = [{"kind": "prune", "batch": batch, **gpu_kernels.captured(raw, raw, batch, 197)} for batch in (1, 8)]
    for kind in gpu_merging.KINDS:
        rows += [{"kind": kind, "batch": batch, **gpu_merging.captured(raw, raw, kind, batch, 197)} for batch in (1, 8)]
    return {"rows": rows}


def packed(options: argparse.Namespace) -> dict[str, Any]:
    """Packed attention against padded attention and against torch's at equal lengths."""
    import torch
    from gpu_kernels import packed_attention, ragged

    raw = library(options.library)
    kinds = (torch.float32, torch.float16)
    made = [packed_attention(raw, "cuda", ragged(*spread), options.repeats, kind) for spread in SPREADS for kind in kinds]
    return {"rows": made}


def end_to_end(options: argparse.Namespace) -> dict[str, Any]:
    """DeiT-S dense against pruned, fp32 and fp16, CUDA graphs off and on, with the memory both take, on all runtimes that are here."""
    import gpu_engines

    rows, absent = [], {}
    cases, batches = (list(gpu_engines.CASES)[:1], (1,)) if options.quick else (list(gpu_engines.CASES), (1, 8, 32))
    for runtime in ("torch", "onnxruntime", "tensorrt", "tensorrt_rtx"):
        if why := gpu_engines.missing(runtime):
            absent[runtime] = f"not run: {why}"
            continue
        for case in cases:
            for batch in batches:
                for mode in ("fp32", "fp16"):
                    if runtime == "torch":
                        made = gpu_engines.eager(case, batch, mode, "cuda", options.repeats)
                    else:
                        made = gpu_engines.against_dense(runtime, case, batch, mode, "cuda", options.repeats)
                    rows += made
                    print("\n".join(map(json.dumps, made)), file=sys.stderr, flush=True)
    return {"rows": rows, "absent": absent}


PARTS: dict[str, Part] = {
    "kernels": kernels, "site_times": site_times, "merge_times": merge_times, "capture": capture, "packed": packed, "end_to_end": end_to_end,
}  # fmt: skip


def measured(names: list[str], there: dict[str, Any] | None, options: argparse.Namespace) -> dict[str, Any]:
    """Document of the parts that were asked for; "not_run" or "failed" where there are no figures."""
    parts: dict[str, dict[str, Any]] = {}
    for name in names:
        if there is None:
            parts[name] = {"not_run": NO_DEVICE}
        else:
            try:
                parts[name] = PARTS[name](options)
            except LookupError as error:
                parts[name] = {"not_run": str(error)}
            except Exception as error:  # the other parts are worth having
                parts[name] = {"failed": f"{type(error).__name__}: {first_line(error)[:300]}"}
        print(f"{name}: {summary(parts[name])}", flush=True)
    return {"device": there, "host": platform.processor() or platform.machine(), "parts": parts}


def summary(part: dict[str, Any]) -> str:
    """One line on a part."""
    if "not_run" in part:
        return f"not run: {part['not_run']}"
    if "failed" in part:
        return f"failed: {part['failed']}"
    if "unequal" in part:
        return (
            f"{part['cases']} sites, {len(part['unequal'])} outputs differ from the twin's; sanitizer: {part['sanitizer'] or '-'}"
        )
    return f"{len(part['rows'])} rows"


PACKED_WITHIN = {"float32": 1e-4, "float16": 1e-2}  # of packed attention from torch's, on values of size 1


def sound(document: dict[str, Any]) -> bool:
    """Whether nothing broke, every kernel gave the twin's bits, compute-sanitizer found nothing and packed attention is torch's."""
    parts = document["parts"].values()
    broken = any("failed" in part or part.get("unequal") for part in parts)
    broken |= any(part.get("sanitizer", "").startswith("exit") and not part["sanitizer"].startswith("exit 0:") for part in parts)
    rows = [row for part in parts for row in part.get("rows", [])]
    apart = any(not row["error"] <= PACKED_WITHIN[row["dtype"]] for row in rows if "error" in row)
    return not broken and not apart and all(row.get("replays_equal", True) for row in rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="few sizes, to see that it works")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--library", type=Path, help="native library; default: what vitprune plugins build has left")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--sanitized", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    there = device()
    document = measured(options.parts, there, options)
    if there is None and options.out.resolve().is_relative_to(RESULTS.resolve()):
        print(f"{NO_DEVICE}: nothing was measured, and nothing is written into {RESULTS.name}/")
        return 0
    if not options.sanitized:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        print(f"written: {options.out}")
    return 0 if sound(document) else 1


if __name__ == "__main__":
    sys.exit(main())
