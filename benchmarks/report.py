"""Write RESULTS.md from the stored JSON files in benchmarks/results; nothing is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
NATIVE_GOALS = {
    **dict.fromkeys(("topk", "ats", "asvit", "evit", "pomt"), 1.01), **dict.fromkeys(("avit", "dynamicvit"), 1.02),
    **dict.fromkeys(("tome", "tome_threshold", "ats_merge", "ward_merge"), 1.03),
}  # fmt: skip
PROTOCOL = (
    "one thread, CPU time, all variants interleaved in random order, per-round ratios, medians, random weights with the query and key weights "
    "times four. The slice oracle is the same model with the same token counts after every block, cut by a plain Slice: no score, no selection, "
    "no gather, no merging, no masks"
)


def speed_table(document: dict[str, Any]) -> list[str]:
    """Markdown rows of one speed run."""
    lines = [
        "| model | image | batch | tokens kept per site | dense / pruned time | pruned / slice oracle (quartiles) | peak memory, pruned / dense |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        low, high = row["pruned_over_oracle_iqr"]
        kept = ", ".join(map(str, row["kept"]))
        lines.append(
            f"| {row['model']} | {row['image_size']} | {row['batch']} | {kept} of {row['tokens'] - 1} | {row['dense_over_pruned']:.2f} | "
            f"{row['pruned_over_oracle']:.3f} ({low:.3f}–{high:.3f}) | {row['rss_ratio']:.2f} |"
        )
    return lines


def speed(path: Path) -> list[str]:
    """Section of one recipe at several sizes."""
    document = json.loads(path.read_text())
    machine = document["machine"]
    return [
        f"## Speed on ONNX Runtime's CPU, recipe `{document['recipe']}` ({path.name})", "",
        f"ONNX Runtime {machine['onnxruntime']}, {document['rows'][0]['rounds']} rounds; {PROTOCOL}.", "",
        *speed_table(document), "",
    ]  # fmt: skip


def all_methods(path: Path) -> list[str]:
    """Section of all methods against their slice oracles."""
    document = json.loads(path.read_text())
    lines = [
        f"## All methods against their slice oracles ({path.name})", "",
        f"{document['model']}, ONNX Runtime {document['machine']['onnxruntime']}; {PROTOCOL}. Recipes are the shipped ones except where "
        "keys are named; those keys belong to trained weights. A pass makes its sessions anew; the medians of all passes are "
        "shown, because on a shared machine they differ by more than their quartiles say. Native: with operators of the native library.", "",
        "| method | tokens | batch | patch slots behind each site | dense / pruned time | pruned / oracle (quartiles) | medians of passes | goal | met | native / oracle | rounds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in document["rows"]:
        low, high = row["pruned_over_oracle_iqr"]
        passes = ", ".join(f"{ratio:.3f}" for ratio in row.get("passes") or row.get("earlier", [])) or "–"
        native = _native(row)
        name = row["method"] + (f" ({', '.join(row['settings'])})" if row["settings"] else "")
        lines.append(
            f"| {name} | {row['tokens']} | {row['batch']} | {', '.join(map(str, row['kept']))} | {row['dense_over_pruned']:.2f} | "
            f"{row['pruned_over_oracle']:.3f} ({low:.3f}–{high:.3f}) | {passes} | {row['goal']:.2f} | {'yes' if row['met'] else 'no'} | "
            f"{native} | {row['rounds']} |"
        )
    return [*lines, ""]


def _native(row: dict[str, Any]) -> str:
    """Native / oracle, its goal and whether it is met."""
    if "native_over_oracle" not in row:
        return "–"
    goal, seen = NATIVE_GOALS[row["method"]], row["native_over_oracle"]
    return f"{seen:.3f} ({'within' if seen <= goal else 'above'} {goal:.2f})"


def dvt(path: Path) -> list[str]:
    """Section of what reuse costs in a DVT cascade."""
    document = json.loads(path.read_text())
    lines = [
        f"## DVT: what reuse adds ({path.name})", "",
        "No token leaves in DVT, so it has no slice oracle. Members of the cascade on DeiT-S against the same dense model on the same grid without "
        "reuse, and the members up to an exit against the plain 14×14 model; one thread, CPU time, interleaved, per-round ratios, medians, random weights.", "",
        "| batch | member 1, 2, 3 / plain model of its grid | members up to exit 1, 2, 3 / plain 14×14 model | rounds |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for row in document["rows"]:
        alone = ", ".join(f"{row[f'member{k}_over_plain']:.2f}" for k in (1, 2, 3))
        sums = ", ".join(f"{row[f'cascade_to_exit{k}_over_plain3']:.2f}" for k in (1, 2, 3))
        lines.append(f"| {row['batch']} | {alone} | {sums} | {row['rounds']} |")
    return [*lines, ""]


def recipes(path: Path) -> list[str]:
    """Section of the shipped recipes from export to validation."""
    document = json.loads(path.read_text())
    lines = [
        f"## Shipped recipes through export, TensorRT-RTX build and validate ({path.name})", "",
        "Random weights (seed 0), synthetic images, batch 1:4:8; exit codes of the three commands, seconds on a loaded two-core machine. The engines were "
        "built, not run: the logits compared are those of the graph on ONNX Runtime. `constant`: both shape modes write the same graph. MACs: pruned over "
        "dense on these images (1.00: with untrained weights nothing falls below the recipe's thresholds, so a second row names keys at which tokens are lost; DVT: sum of the members that ran over the last one's backbone).",
        "",
        "| recipe | shapes | exit codes | seconds | largest logit error | MACs | engine | compared with | evidence |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in document["rows"]:
        steps = [row[step] for step in ("export", "build", "validate") if step in row]
        name = row["recipe"] + (f" ({', '.join(row['settings'])})" if row.get("settings") else "")
        codes, seconds = ", ".join(str(s["exit"]) for s in steps), ", ".join(f"{s['seconds']:.0f}" for s in steps)
        if "evidence" not in row:
            lines.append(f"| {name} | {row['shapes']} | {codes} | {seconds} | – | – | – | – | failed |")
            continue
        macs = "–" if row["macs_ratio"] is None else f"{row['macs_ratio']:.2f}"
        lines.append(
            f"| {name} | {row['shapes']} | {codes} | {seconds} | {row['logits_max_abs']:.1e} | {macs} | "
            f"{row['engine_bytes'] / 2**20:.0f} MiB | {row['reference']} | {row['evidence']} |"
        )
    return [*lines, ""]


def toolchain(path: Path) -> list[str]:
    """Section of the commands' own time."""
    document = json.loads(path.read_text())
    cpu = {name: f" ({value:.1f})" for name, value in document.get("median_cpu_seconds", {}).items()}  # not in older documents
    times = ", ".join(f"`{name}` {value:.1f} s{cpu.get(name, '')}" for name, value in document["median_seconds"].items())
    meanwhile = f" and up to {document['load_most']:.1f} meanwhile" if "load_most" in document else ""
    meaning = "on the wall (CPU seconds)" if cpu else "on the wall"
    return [
        f"## Seconds of the commands ({path.name})", "",
        f"{document['model']}, recipe {document['recipe']}, {document['machine']['cores']} cores, load {document['load_before']:.1f} before{meanwhile}; "
        f"a process each, imports included, medians of {document['runs']} runs {meaning}: {times}. Goals, on the wall of a quiet machine: export 10 s, surgery 2 s, build 5 s. {document.get('note', '')}".rstrip(), "",
    ]  # fmt: skip


def _of_file(row: dict[str, Any]) -> str:
    """Peak over file, of files beside which Python and PyTorch are small."""
    return f"{row['peak_of_file']:.2f}" if row["file_mib"] > 1000 else "–"


def scale(path: Path) -> list[str]:
    """Section of large images and large models."""
    document = json.loads(path.read_text())
    lines = [
        f"## Large images and large models ({path.name})", "",
        "DeiT-S with random weights and uneven attention on ONNX Runtime's CPU, one thread, CPU seconds of one call (the best of a few) and the largest "
        "resident set of the process, each in a process of its own. Surgery: seconds of the rewrite itself. At 1,024 px the model has 4 blocks and "
        "batch 32 is left out: where keys are hidden, attention logits of 4,097 tokens take 12.9 GB there.", "",
        "| px | tokens | blocks | batch | method | export s | surgery s | run s | s an image | of dense | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    dense = {
        (row["job"]["size"], row["job"]["batch"]): row["run_s"] for row in document["runs"] if row["job"]["method"] == "dense"
    }
    for row in document["runs"]:
        job = row["job"]
        size, batch = job["size"], job["batch"]
        lines.append(
            f"| {size} | {(size // 16) ** 2 + 1} | {job['depth']} | {batch} | {job['method']} | {row['export_s']:.1f} | {row['rewrite_s']:.2f} | "
            f"{row['run_s']:.2f} | {row['run_s'] / batch:.3f} | {row['run_s'] / dense[size, batch]:.2f} | {row['mib']} |"
        )
    if document["large"]:
        lines += [
            "", "Large models through `vitprune rewrite` (top-k at three sites, 112 px, two samples, all checks): weights beyond 2 GB lie in files, in "
            "memory and in the bundle. Surgery of large blocks is mostly the writing of their query, key and value weights, which are made anew: 0.3 GB of ViT-L's, 0.6 GB "
            "of ViT-g's. Goals: surgery 2 s for 100 blocks, peak 2.2 x the file (of which 0.5 GiB are Python and PyTorch).", "",
            "| model | blocks | file MiB | surgery s | for 100 blocks | rewrite CPU s | peak MiB | of the file |",
            "|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        lines += [
            f"| {row['job']['label']} ({row['job']['model']}) | {row['blocks']} | {row['file_mib']} | {row['surgery_s']:.2f} | "
            f"{row['surgery_s_per_100_blocks']:.2f} | {row['rewrite_s']:.0f} | {row['rewrite_mib']} | {_of_file(row)} |"
            for row in document["large"]
        ]
    return [*lines, ""]


def shipped(path: Path) -> list[str]:
    """Section of the trained recipes on the small model that ships."""
    document = json.loads(path.read_text())
    lines = [
        f"## Shipped Fashion-MNIST recipes over their dense model ({path.name})", "",
        f"49 patches, test images, ONNX Runtime {document['machine']['onnxruntime']}, one thread, CPU time, interleaved in random order, per-round "
        "ratios, medians; the dense model has the same fused attention, GELU and linear maps. Above 1 is slower than dense: on a model as small as "
        "this, plain nodes that score and select may cost more than the tokens they save. Native: with the operators of the native library.", "",
        "| recipe | batch | pruned / dense | native / dense | rounds |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in document["rows"]:
        native = f"{row['native']:.2f}" if "native" in row else "–"
        lines.append(f"| {row['recipe']} | {row['batch']} | {row['plain']:.2f} | {native} | {row['rounds']} |")
    return [*lines, ""]


def packed(path: Path) -> list[str]:
    """Section of packed execution against padded batches."""
    document = json.loads(path.read_text())
    lines = [
        f"## Packed execution against padded batches ({path.name})", "",
        f"ONNX Runtime {document['machine']['onnxruntime']}, one thread, CPU time, interleaved in random order, per-round ratios, medians; above 1 "
        "packing wins. The native library is at work in both.", "",
    ]  # fmt: skip
    if "stated" in document:
        lines += [
            f"{document['model']}, random weights, ATS's nine sites with decisions given from outside: image b keeps f(b) times a mean path of 197 to 77 tokens, "
            "log f normal with standard deviation sigma. At sigma 0 there are no pads, and packing can only lose. Sites are plain nodes in both.", "",
            "| batch | sigma | padded / packed time (quartiles) | padded / packed MACs | goal | met | rounds |",
            "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
    for row in document.get("stated", []):
        goal = (
            "– | –"
            if row["goal"] is None
            else f"{row['goal']:.2f} | {'yes' if row['padded_over_packed'] >= row['goal'] else 'no'}"
        )
        low, high = row["quartiles"]
        lines.append(
            f"| {row['batch']} | {row['sigma']} | {row['padded_over_packed']:.3f} ({low:.3f}–{high:.3f}) | {row['macs']:.3f} | {goal} | {row['rounds']} |"
        )
    if "real" in document:
        lines += [
            "", "Shipped Fashion-MNIST recipes whose counts differ between images, on test images (49 patches); sigma: the largest standard deviation "
            "over sites of the logarithm of an image's kept patches. Engines as `build-engine` makes them: dropping sites are one operator in the padded one, plain nodes in the packed one.", "",
            "| recipe | mean patches kept per site | sigma | batch | padded / packed time (quartiles) | rounds |",
            "|---|---|---|---|---|---|",
        ]  # fmt: skip
    for row in document.get("real", []):
        low, high = row["quartiles"]
        lines.append(
            f"| {row['recipe']} | {', '.join(map(str, row['kept']))} | {row['sigma']:.2f} | {row['batch']} | "
            f"{row['padded_over_packed']:.3f} ({low:.3f}–{high:.3f}) | {row['rounds']} |"
        )
    return [*lines, ""]


def precision_engines(path: Path) -> list[str]:
    """Section of what types make of graphs and engines."""
    rows = json.loads(path.read_text())["rows"]
    lines = [
        f"## Types through export, TensorRT-RTX build and validate ({path.name})", "",
        "By `precision_engines.py`: random weights (seed 0); exit codes of the three commands; the engines were built, not run. Network: products and "
        "convolutions of the parsed, strongly typed network by type; a product counts as int8 or fp8 when both factors come from a dequantising layer. "
        "Q, DQ: its quantising and dequantising layers. What is not weights in an engine is mostly source text of kernels that the device compiles, "
        "the same in every type, of which compute capabilities, optimisation level, tactics and verbosity change nothing; packed (zlib, level 1) it is "
        "stored once. CPU memory: what a session of ONNX Runtime and eight images add to a process at the peak; all types but fp32 are emulated there "
        "in fp32, so that no memory or time is saved and no speed is given.", "",
        "| model | method | type | exit codes | network | Q, DQ | weights | engine | of fp32 | packed, of fp32 | CPU memory | logits, graph against reference |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    full = {(row["model"], row["method"]): row for row in rows if row["mode"] == "fp32"}
    for row in rows:
        head = f"| {row['model']} | {row['method']} | {row['mode']} | {', '.join(map(str, row['exits']))} |"
        if "engine_bytes" not in row:
            lines.append(f"{head} – | – | – | – | – | – | – | – |")
            continue
        base = full.get((row["model"], row["method"]), {})
        shares = [f"{row[key] / base[key]:.3f}" if base.get(key) else "–" for key in ("engine_bytes", "engine_packed")]
        network = ", ".join(f"{count} {kind}" for kind, count in (row["network"] or {}).items())
        pairs = row.get("quantising") or {}
        quantising = f"{pairs['quantize']}, {pairs['dequantize']}" if pairs else "–"
        memory = f"{row['cpu_mib']:.0f} MiB" if row.get("cpu_mib") else "–"
        lines.append(
            f"{head} {network} | {quantising} | {row['weight_bytes'] / 1e6:.2f} MB | {row['engine_bytes'] / 1e6:.1f} MB | {shares[0]} | "
            f"{shares[1]} | {memory} | {row['logits_max_abs']:.1e} |"
        )
    return [*lines, "", *engine_parts(rows), ""]


GOAL = 0.55


def engine_parts(rows: list[dict[str, Any]]) -> list[str]:
    """What the engines of DeiT-S are made of, and whether those of half types meet their goal."""
    known = {(row["method"], row["mode"]): row for row in rows if row["model"] == "deit-s" and row.get("engine_text")}
    lines = []
    for (method, mode), row in known.items():
        base = known.get((method, "fp32"))
        if base is None or mode == "fp32":
            continue
        share, weights = row["engine_bytes"] / base["engine_bytes"], row["weight_bytes"] / base["weight_bytes"]
        text, rest = row["engine_text"], row["engine_bytes"] - row["weight_bytes"] - row["engine_text"]
        met = "" if mode not in ("fp16", "bf16") else ", goal 0.55 met" if share <= GOAL else ", goal 0.55 NOT met"
        lines.append(
            f"- {method} {mode}: {share:.3f} of fp32{met}. Of its {row['engine_bytes'] / 1e6:.1f} MB, weights are {row['weight_bytes'] / 1e6:.1f} "
            f"({weights:.3f} of fp32's), text (kernels' sources and descriptions) {text / 1e6:.1f}, the rest {rest / 1e6:.1f}; of fp32's "
            f"{base['engine_bytes'] / 1e6:.1f} MB text is {base['engine_text'] / 1e6:.1f}."
        )
    head = "Engines of DeiT-S, by parts (text: runs of 256 printable bytes or more). Text does not shrink with the type:"
    return [head, "", *lines] if lines else []


def repeatability(path: Path) -> list[str]:
    """Section of runs of `vitprune benchmark` in a row, and of a planted slowdown."""
    found = json.loads(path.read_text())
    pairs, times = found["pairs"], [value for row in found["rows"] for value in row["dense_ms"]]
    return [
        f"## How repeatable `vitprune benchmark` is ({path.name})", "",
        f"{pairs} pairs of runs of the shipped model, and a third one each whose pruned model spends 5 % more; one thread, CPU time, batch 1. "
        f"Pruned / dense of two runs in a row differs by {100 * found['rerun_change_median']:.2f} % (median), {100 * found['rerun_change_max']:.2f} % (largest), "
        f"by less than 2 % in {found['rerun_within_2_percent']} of {pairs}. `--compare` calls {found['rerun_regressions']} of {pairs} reruns a regression "
        f"({found['rerun_undecided']} undecided), and {found['slower_seen']} of {pairs} planted slowdowns. The dense model took {min(times):.2f} to {max(times):.2f} ms.", "",
    ]  # fmt: skip


def _ratios(found: dict[str, Any]) -> str:
    """Cells of plain and native: median and quartiles, a dash where there is none."""
    cells = []
    for label in ("plain", "native"):
        if label not in found:
            cells.append("–")
            continue
        low, high = found[label]["quartiles"]
        cells.append(f"{found[label]['median']:.2f} ({low:.2f}–{high:.2f})")
    return " | ".join(cells)


def official(path: Path) -> list[str]:
    """Section of the official code in eager PyTorch."""
    document = json.loads(path.read_text())
    versions = document["machine"]
    lines = [
        f"## Against the official code ({path.name})", "",
        f"Official repositories in eager PyTorch {versions['torch']} against our graphs on ONNX Runtime {versions['onnxruntime']}: {document['model']}, the same "
        "random weights and images, logits and token counts agreeing before anything was timed; one thread, CPU time, interleaved, per-round ratios, medians. "
        "Above 1 ours is faster. A part of it is the runtime, not the pruning. A-ViT's code masks tokens and removes none. Native: with operators of the native library.", "",
        "| method | commit | batch | tokens kept | official / plain (quartiles) | official / native (quartiles) | goal | met | rounds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in document["rows"]:
        name = row["method"] + (f" ({', '.join(row['settings'])})" if row.get("settings") else "")
        head = f"| {name} | {row.get('commit', '')[:7] or '–'} | {row['batch']} |"
        if "not_run" in row:
            lines.append(f"{head} – | not run: {row['not_run']} | – | {row['goal']:.2f} | – | – |")
            continue
        tokens = ", ".join(f"{count:g}" for count in row["tokens"])
        lines.append(
            f"{head} {tokens} | {_ratios(row['official_over'])} | {row['goal']:.2f} | {'yes' if row['met'] else 'no'} | {row['rounds']} |"
        )
    return [*lines, ""]


def plain_export(path: Path) -> list[str]:
    """Section of torch's own export of our reference."""
    document = json.loads(path.read_text())
    versions = document["machine"]
    lines = [
        f"## Against torch's own export ({path.name})", "",
        f"`torch.onnx.export` (PyTorch {versions['torch']}) for fixed sizes against our graph. Exported is our PyTorch reference with its pruning as it is, or, as `plain`, the method as "
        "one writes it in PyTorch (benchmarks/plain_models.py), whose logits are the reference's. Both on ONNX Runtime "
        f"{versions['onnxruntime']}, {document['model']}, random weights, one thread, CPU time, interleaved, per-round ratios, medians. Above 1 ours is faster. Other images: "
        "whether torch's export gives the reference's logits on images that it was not exported with.", "",
        "| exported | method | image | batch | exporter | export / plain (quartiles) | export / native (quartiles) | goal | met | other images | rounds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in document["rows"]:
        head = f"| {row['exported']} | {row['method']} | {row['image_size']} | {row['batch']} |"
        if "not_run" in row:
            errors = "; ".join(f"{name}: {text}" for name, text in row["errors"].items()).replace("|", "/")
            lines.append(f"{head} {row['exporter'] or '–'} | {row['not_run']}. {errors} | – | {row['goal']:.2f} | – | – | – |")
            continue
        lines.append(
            f"{head} {row['exporter']} | {_ratios(row['export_over'])} | {row['goal']:.2f} | {'yes' if row['met'] else 'no'} | "
            f"{row['other_images'] or 'agree'} | {row['rounds']} |"
        )
    return [*lines, ""]


SHOWN = 6  # operators of a profile, those of the largest differences


def profiles(path: Path) -> list[str]:
    """Section of what graphs that fall short of their goals spend their time in."""
    document = json.loads(path.read_text())
    lines = [
        f"## Where the time of what falls short goes ({path.name})", "",
        f"ONNX Runtime's profile of {document['model']}, ms of a call by operator: the graph with native operators less what it is compared with, "
        f"the {SHOWN} largest differences. Operators that only one of the two has are whole: FusedMatMul, SketchProducts and WardMerge are Ward merging's sites, "
        "TokenPredictor is DynamicViT's; KeyBiasAttention is attention behind a site. torch's exports spend in MatMul, Softmax and Transpose what "
        "MultiHeadAttention does here. Official code is eager PyTorch, in groups that "
        "both runtimes have: its products are the larger part, and no pruning makes those of one runtime faster than the other's.", "",
        "| compared with | method | image | batch | ms | ours, less | by operator |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in document["rows"]:
        _, method, size, batch = row["case"].split(":")
        (other, theirs), (_, ours) = row["ms"].items()
        apart = {kind: ours.get(kind, 0.0) - theirs.get(kind, 0.0) for kind in {*ours, *theirs}}
        largest = sorted(apart.items(), key=lambda item: -abs(item[1]))[:SHOWN]
        parts = ", ".join(f"{kind} {value:+.2f}" for kind, value in largest)
        total = sum(theirs.values())
        lines.append(f"| {other} | {method} | {size} | {batch} | {total:.1f} | {sum(ours.values()) - total:+.2f} | {parts} |")
    return [*lines, ""]


def _times(what: str, rows: list[dict[str, Any]]) -> list[str]:
    """Microseconds by tokens and batch."""
    batches = sorted({row["batch"] for row in rows})
    lines = [f"| tokens, us of {what} at batch | {' | '.join(map(str, batches))} |", "|---|" + "---|" * len(batches)]
    for tokens in sorted({row["tokens"] for row in rows}):
        cells = {row["batch"]: row["us"] for row in rows if row["tokens"] == tokens}
        lines.append(f"| {tokens} | {' | '.join(str(cells.get(batch, '–')) for batch in batches)} |")
    return [*lines, ""]


def gpu(path: Path) -> list[str]:
    """Section of `gpu.py`; says that nothing was run while there is no file."""
    lines = ["## On a GPU (gpu.json)", ""]
    if not path.exists():
        return [
            *lines,
            "**Not run**: no machine with a CUDA device has run `python benchmarks/gpu.py` yet. It holds kernels against their twin, times a site for 197 to 4,097 tokens, "
            "captures padded graphs, and measures packed attention and dense against pruned models with TensorRT, TensorRT-RTX, ONNX Runtime and PyTorch, as far as they are there.", "",
        ]  # fmt: skip
    document = json.loads(path.read_text())
    there, parts = document["device"], document["parts"]
    held = {True: "held", False: "not held", None: "not known to be held"}[there["locked"]]
    lines += [
        f"{there['name']} (SM {there['capability']}, {there['memory_mib']} MiB), driver {there['driver']}, CUDA {there['cuda']}; SM clock {there['clocks']['sm_mhz']}, "
        f"power limit {there['clocks']['power_limit']}; clocks are {held} ({there['why']}). Medians between CUDA events; random weights.", "",
    ]  # fmt: skip
    for name, part in parts.items():
        if "not_run" in part or "failed" in part:
            lines += [f"{name}: {'not run: ' + part['not_run'] if 'not_run' in part else 'failed: ' + part['failed']}.", ""]
    shown = {name: part for name, part in parts.items() if "not_run" not in part and "failed" not in part}
    if "kernels" in shown:
        found = shown["kernels"]
        lines += [
            f"Kernels: {found['cases']} sites, {len(found['unequal'])} outputs that are not the twin's bits; compute-sanitizer: {found['sanitizer']}.",
            "",
        ]
    if "capture" in shown:
        rows = ", ".join(
            f"{row['kind']}, batch {row['batch']}: {'equal' if row['replays_equal'] else 'DIFFERENT'}"
            for row in shown["capture"]["rows"]
        )
        lines += [f"Padded sites in a CUDA graph, replayed with other inputs, against the twin: {rows}.", ""]
    if "site_times" in shown:
        lines += _times("a site", shown["site_times"]["rows"])
    if "merge_times" in shown:
        for kind in dict.fromkeys(row["kind"] for row in shown["merge_times"]["rows"]):
            lines += _times(f"a merging site ({kind})", [row for row in shown["merge_times"]["rows"] if row["kind"] == kind])
    if "packed" in shown:
        lines += [
            "| images | rows | type | packed us | padded us | equal lengths us | rate of equal lengths | largest difference |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in shown["packed"]["rows"]:
            us = row["us"]
            lines.append(
                f"| {len(row['counts'])} | {sum(row['counts'])} | {row['dtype']} | {us['packed']} | {us['padded']} | {us['equal']} | {row['of_equal']:.2f} | {row['error']:.1e} |"
            )
        lines.append("")
    if "end_to_end" in shown:
        found = shown["end_to_end"]
        lines += [
            "| runtime | case | batch | type | CUDA graph | dense ms | pruned ms | pruned / dense | memory, dense and pruned |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in found["rows"]:
            head = (
                f"| {row['runtime']} | {row['case']} | {row['batch']} | {row['mode']} | {'on' if row['cuda_graph'] else 'off'} |"
            )
            if "failed" in row:
                lines.append(f"{head} – | – | {row['failed'].replace('|', '/')} | – |")
                continue
            memory = f"{row['memory_mib']['dense']}, {row['memory_mib']['pruned']} MiB"
            lines.append(f"{head} {row['ms']['dense']} | {row['ms']['pruned']} | {row['ratio']:.2f} | {memory} |")
        lines += ["", *[f"{name}: {why}." for name, why in found["absent"].items()], ""]
    return lines


SECTIONS = {
    "speed*.json": speed,
    "methods.json": all_methods,
    "shipped.json": shipped,
    "packed.json": packed,
    "official.json": official,
    "plain_export.json": plain_export,
    "profiles.json": profiles,
    "dvt.json": dvt,
    "recipes.json": recipes,
    "precision_engines.json": precision_engines,
    "toolchain.json": toolchain,
    "scale.json": scale,
    "repeatability.json": repeatability,
}


def main() -> None:
    lines = [
        "# Results",
        "",
        "Generated by `python benchmarks/report.py` from `benchmarks/results/*.json`. Accuracy, MACs and latency of every method on real "
        "data: [recipes/fashion_mnist/RESULTS.md](recipes/fashion_mnist/RESULTS.md), generated from stored JSON in the same way.",
        "",
    ]
    for pattern, section in SECTIONS.items():
        found = sorted(RESULTS.glob(pattern))
        for path in found:
            lines += section(path)
        if not found:
            lines += [f"## {pattern}", "", f"**Not run**: `python benchmarks/{pattern.replace('.json', '.py')}`.", ""]
    lines += gpu(RESULTS / "gpu.json")
    (ROOT / "RESULTS.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
