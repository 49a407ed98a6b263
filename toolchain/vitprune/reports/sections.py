"""What a report shows, whatever it is written in: sections of texts, tables and pictures, out of a command's JSON document or of bundles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vitprune.bundle import Bundle
from vitprune.bundle_parts.provenance import PROVENANCE
from vitprune.exporting.inspecting import inspect
from vitprune.reports import tokens as galleries
from vitprune.reports.parts import Report, Section
from vitprune.support import files, json_text

READ_BACK = ("runtime", "layers_by_precision", "quantising_layers", "precision_audit", "precision_emulated")
DONE = ("status", "exit_code", "schema_version", "command", "kind", "bundle", "backend", "reference", "data", "evidence")


def of_document(document: dict[str, Any]) -> Report:
    """The report of a document that a command wrote with --json, or that `benchmark -o` and `validate` wrote into files."""
    made = judged(document)
    used = {key for key, _ in MAKERS}
    rest = {key: value for key, value in document.items() if key not in used and key not in DONE}
    heads = [(key, str(document[key])) for key in ("bundle", "backend", "reference", "data", "evidence") if key in document]
    facts = Section("What was run", "", ("what", "value"), tuple(heads)) if heads else None
    tail = Section("Further facts", "", ("key", "value"), tuple(flat(rest))) if rest else None
    title = str(document.get("command") or document.get("kind") or "vitprune")
    parts = tuple(section for section in (facts, *made, tail) if section is not None)
    return Report(title, str(document.get("status", "")), parts)


def of_bundles(
    bundles: dict[str, Bundle], results: dict[str, dict[str, Any]], speeds: dict[str, dict[str, Any]] | None = None
) -> Report:
    """One bundle, or several side by side: what they are, cost, tokens, their last validation, pictures of kept tokens.

    Args:
        bundles: opened, by the names they are shown under. results: their last validations, where there are any. speeds: their last
            measurements.
    """
    speeds = speeds or {}
    found = {name: inspect(bundle) for name, bundle in bundles.items()}
    names = tuple(bundles)
    facts = {
        "method": [found[name]["method"] for name in names],
        "precision": [found[name]["precision"] for name in names],
        "shapes": [found[name]["shapes"] for name in names],
        "MACs per image": [
            f"{found[name]['macs']['pruned'] / 1e6:.1f} M ({found[name]['macs']['ratio']:.2f}x)" for name in names
        ],
        "model.onnx": [f"{found[name]['files'].get('model.onnx', 0) / 2**20:.2f} MiB" for name in names],
        "engines": ["; ".join(_engine(*one) for one in found[name]["engines"].items()) or "none" for name in names],
        "last validation": [str(results.get(name, {}).get("status", "none")) for name in names],
        "top-1 accuracy": [_top1(results.get(name, {})) for name in names],
        "written by vitprune": [bundles[name].manifest.tool_version for name in names],
        "model": [bundles[name].manifest.files.get("model.onnx", "")[:16] for name in names],
    }
    rows = tuple((key, *values) for key, values in facts.items())
    depth = max(len(one["blocks"]) for one in found.values())
    tokens = tuple(
        (str(block), *(_cell(found[name]["blocks"], block, "entering") for name in names)) for block in range(depth)
    )  # fmt: skip
    sections = [
        Section("Facts", "", ("", *names), rows),
        Section("Tokens entering each block", "means over the stored samples", ("block", *names), tokens),
    ]
    if len(names) == 1 and names[0] in results:
        sections = [*judged(results[names[0]]), *sections]
    if len(names) == 1 and names[0] in speeds:
        sections += [part for part in (_speed(speeds[names[0]]), _clocks(speeds[names[0]])) if part is not None]
    for name, bundle in bundles.items():
        sections += galleries.sections(name, bundle)
    sections.append(
        Section("Precision", "what computes in which type", ("model", "what", "value"), tuple(_precision(bundles, found)))
    )
    sections.append(
        Section(
            "Provenance",
            "what made the bundles, and sha256 of their files",
            ("bundle", "what", "value"),
            tuple(_provenance(bundles)),
        )
    )
    states = [str(results.get(name, {}).get("status", "")) for name in names]
    return Report(" against ".join(names), states[0] if len(names) == 1 else "", tuple(sections))


def judged(document: dict[str, Any]) -> list[Section]:
    """The sections that a document gives: error, parity, tokens, accuracy, worst images, speed, changes, clocks, MACs."""
    return [section for key, make in MAKERS if document.get(key) and (section := make(document)) is not None]


def _precision(bundles: dict[str, Bundle], found: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The recipe's type of every bundle, and what engines were read back to compute with."""
    rows: list[tuple[str, str, str]] = []
    for name, bundle in bundles.items():
        section = bundle.recipe.precision
        rows.append((name, "type of the graph", section.mode))
        if section.keep_fp32:
            rows.append((name, "kept in fp32", ", ".join(section.keep_fp32)))
        for target, engine in found[name]["engines"].items():
            facts = engine.get("facts", {})
            rows.append((f"{name}, engine {target}", "type asked for", str(engine.get("precision", engine["state"]))))
            rows += [
                (f"{name}, engine {target}", key.replace("_", " "), _flat_text(facts[key])) for key in READ_BACK if facts.get(key)
            ]
    return rows


def _flat_text(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _provenance(bundles: dict[str, Bundle]) -> list[tuple[str, str, str]]:
    rows = []
    for name, bundle in bundles.items():
        rows.append((name, "vitprune", bundle.manifest.tool_version))
        if PROVENANCE in bundle.manifest.files:
            told = json_text.parse(files.read_text(bundle.path / PROVENANCE))
            git = told.get("git")
            rows.append((name, "command", " ".join(told.get("command", []))))
            rows.append(
                (
                    name,
                    "git commit",
                    "none" if not git else f"{git['commit']}{', files differed from it' if git['dirty'] else ''}",
                )
            )
            rows += [(name, package, version) for package, version in told.get("packages", {}).items()]
        rows += [(name, f"sha256 of {file}", digest) for file, digest in bundle.manifest.files.items()]
    return rows


def _engine(target: str, engine: dict[str, Any]) -> str:
    """An engine's size, and how many products and convolutions of it compute in which type, where its builder says so."""
    size, counts = engine.get("engine_bytes"), engine.get("facts", {}).get("layers_by_precision")
    parts = [f"{size / 2**20:.1f} MiB"] if isinstance(size, int) else []
    if isinstance(counts, dict):
        parts += [f"{count} products in {kind}" for kind, count in counts.items()]
    return f"{target} ({', '.join(parts)})" if parts else target


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Rows (dotted key, value) of a JSON value; long lists are cut, and say so."""
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in flat(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return [row for number, item in enumerate(value[:20]) for row in flat(item, f"{prefix}[{number}]")]
    if isinstance(value, list):
        more = f", … ({len(value)} in all)" if len(value) > 12 else ""
        return [(prefix, ", ".join(_text(item) for item in value[:12]) + more)]
    return [(prefix, _text(value))]


def figure(value: float | None, form: str) -> str:
    """A number as text; documents have null where it was not finite."""
    return "not finite" if value is None else format(value, form)


def _error(document: dict[str, Any]) -> Section:
    error = document["error"]
    rows = tuple((key, str(error.get(key, ""))) for key in ("code", "message", "cause", "next_step"))
    return Section("Error", "", ("what", "text"), rows)


def _gates(document: dict[str, Any]) -> Section:
    rows = []
    for gate in document["gates"]:
        interval = gate.get("interval")
        between = f"{interval[0]:.3g} to {interval[1]:.3g}" if interval else ""
        state = "holds" if gate["passed"] else "undecided" if gate.get("undecided") else "broken"
        state += f"; {gate['note']}" if gate.get("note") else ""
        rows.append((gate["name"], f"{gate['limit']:g}", figure(gate["seen"], ".3g"), between, state))
    return Section("Parity", "gates against the reference", ("gate", "limit", "seen", "95 % interval", "state"), tuple(rows))


def _tokens(document: dict[str, Any]) -> Section | None:
    sites = document["comparison"].get("sites") or []
    rows = tuple(
        (f"block {s['block']}", f"{s['kept_mean']:.1f}", f"{s['kept_min']} to {s['kept_max']}", str(s["images_differing"]),
         str(s["legal_flips"]), str(s["illegal_flips"]), str(s["overflowed"]))
        for s in sites
    )  # fmt: skip
    columns = ("site", "kept", "range", "images differing", "legal flips", "illegal flips", "overflowed")
    return Section("Tokens", f"{document['comparison']['images']} images", columns, rows) if rows else None


def _accuracy(document: dict[str, Any]) -> Section | None:
    accuracy, drop = document["comparison"].get("accuracy"), document["comparison"].get("drop")
    if not accuracy:
        return None
    note = ""
    if drop:
        note = f"dense alone right on {drop['lost']}, pruned alone on {drop['won']} of {drop['images']} images; McNemar's p {drop['p']:.2g}"
    return Section("Top-1 accuracy", note, tuple(accuracy), (tuple(f"{value:.2f} %" for value in accuracy.values()),))


def _numerics(document: dict[str, Any]) -> Section | None:
    evidence = document["comparison"].get("evidence") or {}
    rows = [
        (str(one["image"]), figure(one["logits_max_abs"], ".2g"), str(one["predicted"]), str(one["reference"]), _block(one["differs_from_block"]))
        for one in evidence.get("worst_images", [])
    ]  # fmt: skip
    locked, found = evidence.get("locked"), evidence.get("divergence")
    notes = []
    if locked and locked["logits_max_abs"] is not None:
        free = figure(locked["free_max_abs"], ".2g")
        notes.append(f"decisions locked: logits within {locked['logits_max_abs']:.2g}; as they fell: within {free}")
    if found:
        notes.append(found["text"])
    columns = ("image", "logits differ by", "predicted", "reference", "decides otherwise from block")
    return Section("Worst images", "; ".join(notes), columns, tuple(rows)) if rows else None


def _block(number: int | None) -> str:
    return "–" if number is None else str(number)


def _speed(document: dict[str, Any]) -> Section | None:
    rows = []
    for entry in document["results"]:
        for kind in ("dense", "pruned"):
            if (timing := entry[kind]) is not None:
                times = tuple(f"{timing[key]:.2f}" for key in ("median_ms", "p95_ms", "p99_ms"))
                ratio = f"{1 / entry['ratio']:.2f}x" if kind == "pruned" else ""
                rows.append(
                    (f"{entry['bundle']} {kind}", str(entry["batch"]), *times, f"{timing['images_per_second']:.1f}", ratio)
                )
    columns = ("model", "batch", "median ms", "p95 ms", "p99 ms", "images/s", "speed-up")
    return Section("Speed", document.get("statement", ""), columns, tuple(rows))


def _changes(document: dict[str, Any]) -> Section:
    rows = tuple(
        (one["bundle"], str(one["batch"]), f"{one['before']:.3f}", f"{one['after']:.3f}", f"{100 * (one['change'] - 1):+.1f} %", one["verdict"])
        for one in document["changes"]
    )  # fmt: skip
    return Section(
        "Against the earlier run", "ratios to the dense model", ("bundle", "batch", "before", "after", "change", "verdict"), rows
    )


def _clocks(document: dict[str, Any]) -> Section:
    rows = tuple((moment, str(state["locked"]), state["why"]) for moment, state in document["clocks"].items())
    return Section("Clocks", "", ("when", "held", "why"), rows)


def _macs(document: dict[str, Any]) -> Section:
    macs = document["macs"]
    row = (f"{macs['dense'] / 1e6:.1f} M", f"{macs['pruned'] / 1e6:.1f} M", f"{macs['ratio']:.2f}x")
    return Section("MACs per image", "", ("dense", "pruned", "ratio"), (row,))


def _top1(result: dict[str, Any]) -> str:
    accuracy = (result.get("comparison") or {}).get("accuracy") or {}
    return (
        f"{accuracy['pruned']:.2f} % (dense {accuracy.get('dense', float('nan')):.2f} %)"
        if "pruned" in accuracy
        else "not measured"
    )


def _cell(blocks: Sequence[dict[str, Any]], number: int, key: str) -> str:
    return f"{blocks[number][key]:.1f}" if number < len(blocks) else ""


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# Key of a document -> the section it gives, in the order of a report.
MAKERS: list[tuple[str, Callable[[dict[str, Any]], Section | None]]] = [
    ("error", _error), ("gates", _gates), ("comparison", _accuracy), ("comparison", _tokens), ("comparison", _numerics), ("results", _speed),
    ("changes", _changes), ("clocks", _clocks), ("macs", _macs),
]  # fmt: skip
