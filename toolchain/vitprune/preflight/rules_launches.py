"""Rule on launches: whether the kernels that score and select eat what fewer tokens save."""

from __future__ import annotations

from vitprune.preflight.context import NVIDIA, Context
from vitprune.preflight.findings import Verdict
from vitprune.preflight.launch_model import Estimate, Uncounted, count, estimate
from vitprune.preflight.rules import Opinion, rule

_MEND = "a larger batch, fewer sites (prune.stages), graph.shapes=padded for CUDA graphs, or measure on the device: vitprune benchmark"


@rule("VP419", "launches against work")
def launches(context: Context) -> Opinion | None:
    """The model of launches, bytes and MACs does not say that pruning loses at the batch."""
    try:
        found = _estimates(context)
    except Uncounted:
        return None
    except ValueError as error:
        return Verdict.LIKELY, f"launches were not counted: {error}", "export the bundle again", True
    if not found:
        return None
    losing = [name for name, one in found.items() if one.loses]
    name = losing[0] if losing else next(iter(found))
    where = f" on {name}" if name else ""
    if losing:
        others = f"; also on {', '.join(losing[1:])}" if len(losing) > 1 else ""
        return Verdict.LIKELY, f"pruning loses{where}, {found[name].text()}{others}", _MEND, True
    return Verdict.LIKELY, f"pruning wins{where}, {found[name].text()}", ""


def _estimates(context: Context) -> dict[str, Estimate]:
    """By name of the module: of the one that is meant, else of all that the target file has constants of.

    Raises:
        ValueError: of `launch_model.count`.
    """
    target, chosen = context.choice.target, context.choice.module_name
    modules = {name: one for name, one in target.modules.items() if one.speed is not None and chosen in ("", name)}
    if context.backend not in NVIDIA or target.launch is None or not modules:
        return {}
    counted = count(context.bundle, context.model, context.backend)
    batch = context.batch[1]
    made = {
        name: estimate(context.bundle, counted, target.launch, one.speed, batch)
        for name, one in modules.items()
        if one.speed is not None
    }
    return {name: one for name, one in made.items() if one is not None}
