"""A model card (Markdown behind YAML front matter, as model hubs read it) that says what the bundle's files and reports say, and no more."""

from __future__ import annotations

from typing import Any

import yaml

from vitprune import methods
from vitprune.bundle import Bundle
from vitprune.errors import LoadError
from vitprune.exporting.inspecting import inspect
from vitprune.reports.sections import figure
from vitprune.support import files, json_text

STATES = {"passed": "passed", "failed": "**FAILED**", "undecided": "**undecided**"}
WEIGHTS = {
    "random": "random: the model is untrained and its answers mean nothing",
    "pretrained": "timm's",
    "file": "of a checkpoint",
    "folder": "of the folder",
}


def card(bundle: Bundle) -> str:
    """The card of a bundle.

    Raises:
        LoadError: VP657 a report in the bundle that is not what vitprune writes.
    """
    export, validation = _report(bundle, "export.json"), _report(bundle, "validate.json")
    try:
        parts = [
            _front(bundle),
            _about(bundle),
            _cost(bundle),
            _export(export),
            _validation(validation),
            _use(bundle),
            _origin(bundle),
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _strange(bundle, f"{type(error).__name__}: {error}") from error
    return "\n".join(parts)


def _strange(bundle: Bundle, cause: str) -> LoadError:
    return LoadError(
        657, f"a report in '{bundle.path.name}' is not what vitprune writes", cause=cause,
        next_step="vitprune validate BUNDLE writes it anew; a damaged export.json needs another export",
    )  # fmt: skip


def _report(bundle: Bundle, name: str) -> dict[str, Any] | None:
    path = bundle.path / "reports" / name
    if not path.is_file():
        return None
    try:
        found = json_text.parse(files.read_text(path))
    except (OSError, ValueError) as error:
        raise _strange(bundle, f"reports/{name}: {error}") from error
    if not isinstance(found, dict):
        raise _strange(bundle, f"reports/{name} holds no mapping")
    if name == "validate.json" and found.get("bundle") != bundle.manifest.name:
        raise _strange(bundle, f"reports/{name} is of '{found.get('bundle')}', the bundle is '{bundle.manifest.name}'")
    return found


def _front(bundle: Bundle) -> str:
    task = "image-feature-extraction" if bundle.recipe.output.features else "image-classification"
    method = bundle.recipe.prune.method
    facts: dict[str, Any] = {
        "library_name": "onnx",
        "pipeline_tag": task,
        "tags": ["onnx", "vision-transformer", "token-pruning", method],
    }
    folder = str(bundle.manifest.model["source"].get("folder", ""))
    if folder.startswith("hf:"):
        facts["base_model"] = folder.removeprefix("hf:")
    return "---\n" + yaml.safe_dump(facts, sort_keys=False) + "---\n"


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows)]) + "\n"


def _cell(value: Any) -> str:
    """Text that ends no cell and opens no tag or link."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    for sign in "\\|<>[]`*_":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _about(bundle: Bundle) -> str:
    manifest, source = bundle.manifest, bundle.manifest.model["source"]
    method = methods.get(bundle.recipe.prune.method)
    blocks = ", ".join(str(site["block"]) for site in manifest.sites if not site["bypass"]) or "none"
    rows: list[tuple[Any, ...]] = [
        ("dense model", source.get("name") or source.get("file") or "an instance in memory"),
        ("weights", WEIGHTS.get(str(source.get("weights")), "as they were given")),
        ("method", f"{method.name}: {method.summary}"),
        ("method's source", method.paper),
        ("prunes at blocks", f"{blocks} (counted from 0)"),
        ("precision", bundle.recipe.precision.mode),
        ("shapes", bundle.recipe.graph.shapes),
    ]
    if source.get("sha256"):
        rows.insert(2, ("sha256 of the weights", source["sha256"]))
    return f"# {_cell(manifest.name)}\n\nA Vision Transformer whose graph drops or merges tokens while it runs.\n\n" + _table(
        ("", ""), rows
    )


def _cost(bundle: Bundle) -> str:
    found = inspect(bundle)
    macs, sites = found["macs"], found["sites"]
    rows = [
        ("MACs per image, dense", f"{macs['dense'] / 1e6:.1f} M"),
        ("MACs per image, pruned", f"{macs['pruned'] / 1e6:.1f} M ({macs['ratio']:.2f}x)"),
        *((f"patches kept at block {site['block']}", f"{site['kept_mean']:.1f}") for site in sites),
    ]
    note = "Counted by the cost model from the patches that the stored sample images keep; other images keep others. No latency is claimed here."
    return f"## Cost\n\n{note}\n\n" + _table(("", ""), rows)


def _export(notes: dict[str, Any] | None) -> str:
    if notes is None:
        return "## Evidence at export\n\nThe bundle holds no report of its export.\n"
    check = notes["check"]
    rows = [(key, value) for key, value in check.items() if isinstance(value, (int, float, str, bool))]
    warnings = "".join(f"\n- {_cell(text)}" for text in notes.get("warnings", []))
    told = f"Checked while it was written, on {_cell(notes['samples'])}.\n\n"
    return (
        "## Evidence at export\n\n" + told + _table(("what", "found"), rows) + (f"\nWarnings:\n{warnings}\n" if warnings else "")
    )


def _validation(document: dict[str, Any] | None) -> str:
    if document is None:
        return "## Validation\n\nNot validated since it was written: the bundle holds no report of `vitprune validate`.\n"
    state, gates = STATES[document["status"]], document["gates"]
    if (document["status"] == "passed") != all(gate["passed"] is True for gate in gates) or not gates:
        raise ValueError("its status is not that of its gates")
    told = f"The last `vitprune validate` {state}: {_cell(document['backend'])} against {_cell(document['reference'])}, on {_cell(document['data'])} ({_cell(document['evidence'])}).\n\n"
    rows = [
        (
            gate["name"],
            gate["limit"],
            figure(gate["seen"], ".6g"),
            ("holds" if gate["passed"] else "**does not hold**") + (f"; {_cell(gate['note'])}" if gate.get("note") else ""),
        )
        for gate in gates
    ]
    table = _table(("gate", "limit", "seen"), [row[:3] for row in rows])
    lines = table.splitlines()
    heads = ["| gate | limit | seen | |", "|---|---|---|---|"]
    body = [f"{line} {row[3]} |" for line, row in zip(lines[2:], rows, strict=True)]
    accuracy = document["comparison"].get("accuracy")
    if not accuracy:
        tail = "\nNo accuracy was measured in this validation.\n"
    else:
        tail = "\nTop-1 accuracy on these images:\n\n" + _table(
            ("model", "%"), [(key, f"{value:.2f}") for key, value in accuracy.items()]
        )
    return "## Validation\n\n" + told + "\n".join([*heads, *body]) + "\n" + tail


def _use(bundle: Bundle) -> str:
    told, io = bundle.manifest.preprocessing, bundle.manifest.io
    names = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "origin")
    rows = [(key, told[key]) for key in names if key in told]
    unknown = (
        ""
        if told.get("known", "mean" in told)
        else "\nNobody stated all of the preprocessing: answers on other images mean nothing until it is known.\n"
    )
    tensors = [
        (kind, entry["name"], entry.get("dtype", ""), entry["shape"]) for kind in ("inputs", "outputs") for entry in io[kind]
    ]
    code = "```python\nimport vitprune\n\nresult = vitprune.open_bundle('BUNDLE').run(images)  # float32, preprocessed as above\n```\n"
    return (
        "## Use\n\n"
        + _table(("preprocessing", ""), rows)
        + unknown
        + "\n"
        + _table(("", "name", "type", "shape"), tensors)
        + "\n"
        + code
    )


def _origin(bundle: Bundle) -> str:
    rows = [("vitprune", bundle.manifest.tool_version), ("recipe, sha256", bundle.manifest.recipe_sha256)]
    rows += [(name, digest) for name, digest in bundle.manifest.files.items() if name in bundle.model_files]
    return "## Provenance\n\n" + _table(("what", "version or sha256"), rows)
