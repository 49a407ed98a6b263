"""Validation of a cascade: every exit against its reference, and every decision between exits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune import backends
from vitprune.bundle import Bundle
from vitprune.data import images as image_data
from vitprune.data.preprocessing import of_bundle, require_known
from vitprune.errors import LoadError, RecipeError, VitpruneError
from vitprune.methods.base import Geometry, keys_of
from vitprune.methods.cost import dense_blocks, model_macs
from vitprune.methods.dvt.cost import exit_costs
from vitprune.methods.dvt.host import Member, all_exits, confidence, fires, open_session, torch_members
from vitprune.methods.dvt.keys import EXITS, Params
from vitprune.recipe import Gates
from vitprune.validation import intervals, power
from vitprune.validation.compare import Comparison, Gate, gate_list
from vitprune.validation.precision import against_float32, decision_types
from vitprune.validation.verdict import Verdict

BATCH = 8
Arrays = dict[str, NDArray[Any]]


def exits_of(logits: Sequence[NDArray[np.float32]], thresholds: Sequence[float | None]) -> NDArray[np.int64]:
    """Exit (from 1) that answers each image, given the logits [B,classes] of all exits."""
    exits = np.full(len(logits[0]), len(logits), np.int64)
    for number in reversed(range(len(thresholds))):
        exits[fires(confidence(logits[number]), thresholds[number])] = number + 1
    return exits


def margins_of(logits: Sequence[NDArray[np.float32]], thresholds: Sequence[float | None], exits: NDArray[np.int64]) -> Any:
    """Smallest |confidence - threshold| [B] over the exits that an image came by; infinite where none was asked."""
    margin = np.full(len(exits), np.inf)
    for number, threshold in enumerate(thresholds):
        if threshold is not None:
            distance = np.abs(confidence(logits[number]) - threshold)
            margin = np.where(exits > number, np.minimum(margin, distance), margin)
    return margin


def reference_arrays(members: Sequence[Member], inputs: image_data.Images, thresholds: Sequence[float | None]) -> Arrays:
    """Reference results in pieces: images, logits of every exit and of the exit that answers, exits, margin, labels if known."""
    pieces = [all_exits(members, inputs.pixels[start : start + BATCH]) for start in range(0, len(inputs), BATCH)]
    logits = [np.concatenate([piece[number] for piece in pieces]) for number in range(EXITS)]
    exits = exits_of(logits, thresholds)
    arrays: Arrays = {f"logits_exit{number}": value for number, value in enumerate(logits, start=1)}
    arrays |= {
        "images": inputs.pixels, "logits": _answers(logits, exits), "exits": exits, "margin": margins_of(logits, thresholds, exits)
    }  # fmt: skip
    return arrays if inputs.labels is None else arrays | {"labels": inputs.labels}


def _answers(logits: Sequence[NDArray[np.float32]], exits: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.stack(logits)[exits - 1, np.arange(len(exits))]


def compare(
    found: Sequence[NDArray[np.float32]], reference: Arrays, thresholds: Sequence[float | None], gates: Gates
) -> Comparison:
    """Compare the logits of every exit, and the exits that follow from them.

    An image may answer at another exit only where the reference's confidence lies within flip_margin of a threshold. The accuracy
    called "dense" is that of the last exit: what the cascade would reach if nothing left early.

    Args:
        found: logits [B,classes] of all exits. reference: arrays of `reference_arrays`.
    """
    exits, wanted = exits_of(found, thresholds), reference["exits"]
    differing = exits != wanted
    illegal = differing & (reference["margin"] > gates.flip_margin)
    worst = [float(np.abs(value - reference[f"logits_exit{number}"]).max()) for number, value in enumerate(found, start=1)]
    logits = _answers(found, exits)
    top1 = logits.argmax(1)
    labels = reference.get("labels")
    accuracy = None
    if labels is not None:
        table = {"pruned": logits, "reference": reference["logits"], "dense": reference[f"logits_exit{EXITS}"]}
        accuracy = {name: round(100 * float((value.argmax(1) == labels).mean()), 3) for name, value in table.items()}
    evidence = {
        "exits": [int((exits == number).sum()) for number in range(1, EXITS + 1)], "exit_logits_max_abs": worst,
        "images_differing": int(differing.sum()), "illegal_flips": int(illegal.sum()),
        "smallest_margin": float(reference["margin"].min()) if len(wanted) else None,
        "decisions": int(np.isfinite(reference["margin"]).sum()),
        "could_fail": int((np.isfinite(reference["margin"]) & (reference["margin"] > gates.flip_margin)).sum()),
    }  # fmt: skip
    evidence = {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in evidence.items()}
    return Comparison(
        images=len(exits),
        logits_max_abs=max(worst),
        logits_compared=len(exits) * EXITS,
        top1_agreement=float((top1 == reference["logits"].argmax(1)).mean()),
        top1_agreement_interval=intervals.wilson(int((top1 == reference["logits"].argmax(1)).sum()), len(exits)),
        drop=None if labels is None else intervals.drop(reference[f"logits_exit{EXITS}"].argmax(1), top1, labels),
        dense_agreement=float((top1 == reference[f"logits_exit{EXITS}"].argmax(1)).mean()),
        sites=[],
        accuracy=accuracy,
        evidence=evidence,
    )


def validate(
    bundle: Bundle, *, backend: str, reference: str, data: str | Path | None, weights: str | None, samples: int | None,
    report: Callable[[str], None],
) -> Verdict:  # fmt: skip
    """Validate a cascade; arguments and errors as `vitprune.validation.validate.validate`."""
    gates, params = bundle.recipe.validation.gates, _params(bundle)
    if gates.of_accuracy:
        require_known(of_bundle(bundle), "accuracy is gated (validate.gates)")
    session = open_session(bundle, backend)
    stored = bundle.samples()
    cascade, note = _live(bundle, reference, data, weights)
    if cascade is None:
        arrays, origin = {name: value[: samples or len(value)] for name, value in stored.items()}, "stored samples"
        label = f"stored samples ({note})"
    else:
        inputs = _inputs(bundle, stored, data, samples)
        origin = inputs.origin
        report("running the PyTorch reference")
        arrays, label = reference_arrays(torch_members(cascade), inputs, params.thresholds), "PyTorch, live"
    if gates.of_accuracy and "labels" not in arrays:
        raise RecipeError(
            109,
            "accuracy is gated but there are no labels",
            cause=f"the recipe sets {gates.of_accuracy} and {origin} carries no labels",
            next_step="--data FILE.npz with 'labels', an image folder, or --set validate.gates.top1_drop=null --set validate.gates.dense_top1=null at export",
        )
    gates = bundle.recipe.gates(float(np.abs(arrays["logits"]).max()))
    report(f"running {backend}")
    pieces, running = [], []
    for start in range(0, len(arrays["images"]), BATCH):
        piece = arrays["images"][start : start + BATCH]
        pieces.append(session.all_exits(piece))
        running.append(session.run(piece))
        report(f"running the graphs {min(start + BATCH, len(arrays['images']))}/{len(arrays['images'])}")
    found = [np.concatenate([piece[number] for piece in pieces]) for number in range(EXITS)]
    comparison = compare(found, arrays, params.thresholds, gates)
    exits = np.concatenate([result.exits for result in running])
    routed = float(np.abs(np.concatenate([result.logits for result in running]) - _answers(found, exits)).max())
    evidence = {**comparison.evidence, "backend_version": backends.get(backend).version(), "routing_max_abs": routed}
    comparison = replace(comparison, evidence=evidence)
    listed = gates_of(comparison, gates)
    if gates.logits_max_abs is not None:
        listed.append(Gate("routing", gates.logits_max_abs, routed, routed <= gates.logits_max_abs))
    if bundle.recipe.precision.mode != "fp32":
        listed.append(decision_types(bundle))
        if cascade is not None and data is not None:
            report("running the PyTorch reference in fp32")
            full = reference_arrays(torch_members(_made(bundle, weights)), inputs, params.thresholds)["logits"]
            listed += against_float32(_answers(found, exits), full, arrays.get("labels"), bundle.recipe.precision)
    return Verdict(
        bundle.manifest.name, backend, label, origin, comparison, listed, _macs(bundle, comparison), (_table(bundle, comparison),)
    )


def _params(bundle: Bundle) -> Params:
    return keys_of(bundle.recipe.prune, Params)


def gates_of(comparison: Comparison, gates: Gates) -> list[Gate]:
    """The recipe's gates, with the exits as decisions."""
    illegal = comparison.evidence["illegal_flips"]
    others = [gate for gate in gate_list(comparison, gates) if gate.name != "decisions"]
    decided, could = (comparison.evidence[key] for key in ("decisions", "could_fail"))
    said = power.note(decided, could, gates.flip_margin, 0)  # the logits of every exit are compared, wherever an image leaves
    return [Gate("decisions", 0, illegal, not illegal, note=said), *others]


def _live(bundle: Bundle, reference: str, data: Any, weights: str | None) -> tuple[Any, str]:
    """The live cascade, or None and the reason why stored samples serve."""
    from vitprune.backends import torch as torch_backend

    if reference not in ("auto", "torch", "stored"):
        raise RecipeError(
            199,
            f"--reference '{reference}'",
            cause="exits of a cascade are compared with PyTorch's or the stored ones",
            next_step="--reference stored",
        )
    if reference == "stored":
        return None, "asked for"
    try:
        if why := torch_backend.missing():
            raise LoadError(611, "PyTorch is not at hand", cause=why, next_step="pip install 'vitprune[torch]'")
        from vitprune.methods.dvt.precision import in_precision

        return in_precision(_made(bundle, weights), bundle.recipe), ""
    except VitpruneError as error:
        if reference == "torch" or data is not None or weights is not None:
            raise
        return None, error.cause or error.message


def _made(bundle: Bundle, weights: str | None) -> Any:
    """The cascade in float32."""
    from vitprune.methods.dvt.members import again

    return again(bundle.manifest.model["source"], bundle.recipe, weights)


def _inputs(bundle: Bundle, stored: Arrays, data: str | Path | None, samples: int | None) -> image_data.Images:
    if data is not None:
        return image_data.for_bundle(bundle, Path(data), samples or bundle.recipe.validation.samples)
    count, labels = samples or len(stored["images"]), stored.get("labels")
    return image_data.Images(stored["images"][:count], None if labels is None else labels[:count], "stored samples")


def _costs(bundle: Bundle) -> tuple[Geometry, list[float]]:
    geometry = Geometry(**bundle.manifest.model["geometry"])
    return geometry, exit_costs(_params(bundle), geometry, bundle.manifest.preprocessing["input_size"])


def _macs(bundle: Bundle, comparison: Comparison) -> dict[str, float]:
    """Mean MACs per image of the cascade, against the last member's backbone alone."""
    geometry, costs = _costs(bundle)
    shares = np.asarray(comparison.evidence["exits"]) / max(comparison.images, 1)
    dense, pruned = model_macs(geometry, dense_blocks(geometry)), float((shares * np.asarray(costs)).sum())
    return {"dense": dense, "pruned": pruned, "ratio": pruned / dense}


def _table(bundle: Bundle, comparison: Comparison) -> tuple[str, list[str], list[list[str]]]:
    _, costs = _costs(bundle)
    thresholds = [*_params(bundle).thresholds, "rest"]
    rows = [
        [f"exit {number}", "never" if limit is None else str(limit), str(count), f"{cost / 1e9:.3f} G", f"{worst:.1e}"]
        for number, (limit, count, cost, worst) in enumerate(
            zip(thresholds, comparison.evidence["exits"], costs, comparison.evidence["exit_logits_max_abs"], strict=True), start=1
        )
    ]
    return (
        f"exits, {comparison.images} images",
        ["exit", "threshold", "images", "MACs up to here", "max |logit difference|"],
        rows,
    )
