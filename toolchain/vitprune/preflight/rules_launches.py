"""Rule on launches: whether the kernels that score and select eat what fewer tokens save."""

from __future__ import annotations

from vitprune.preflight.context import NVIDIA, Context
from vitprune.preflight.findings import Verdict
from vitprune.preflight.launch_model import Counted, Estimate, Uncounted, count, estimate, with_plugins
from vitprune.preflight.rules import Opinion, rule
from vitprune.support.device_speed import Speed

_MEND = "a larger batch, fewer sites (prune.stages), graph.shapes=padded for CUDA graphs, or measure on the device: vitprune benchmark"


@rule("VP419", "launches against work")
def launches(context: Context) -> Opinion | None:
    """The model of launches, bytes and MACs does not say that pruning loses at the batch."""
    try:
        counted, found = _estimates(context)
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
        mend = _with_plugins(context, counted, losing) or _MEND
        return Verdict.LIKELY, f"pruning loses{where}, {found[name].text()}{others}", mend, True
    return Verdict.LIKELY, f"pruning wins{where}, {found[name].text()}", ""


def _estimates(context: Context) -> tuple[Counted | None, dict[str, Estimate]]:
    """What was counted, and by name of the module: of the one that is meant, else of all that the target file has constants of.

    Raises:
        ValueError: of `launch_model.count`.
    """
    modules = _modules(context)
    if context.backend not in NVIDIA or not modules:
        return None, {}
    counted = count(context.bundle, context.model, context.backend)
    return counted, _modelled(context, counted, modules)


def _modules(context: Context) -> dict[str, Speed]:
    """Modules that are meant and have constants, of a target that has them."""
    target, chosen = context.choice.target, context.choice.module_name
    if target.launch is None:
        return {}
    return {name: one.speed for name, one in target.modules.items() if one.speed is not None and chosen in ("", name)}


def _modelled(context: Context, counted: Counted, modules: dict[str, Speed]) -> dict[str, Estimate]:
    launch, batch = context.choice.target.launch, context.batch[1]
    if launch is None:
        return {}
    made = {name: estimate(context.bundle, counted, launch, speed, batch) for name, speed in modules.items()}
    return {name: one for name, one in made.items() if one is not None}


def _with_plugins(context: Context, counted: Counted | None, losing: list[str]) -> str:
    """What `--sites plugin` makes of modules on which pruning loses, where it wins there by the model; "" where it does not."""
    try:
        other = None if counted is None else with_plugins(context.bundle, context.model, counted, context.backend)
    except ValueError:
        return ""
    if other is None:
        return ""
    found = _modelled(context, other[0], {name: speed for name, speed in _modules(context).items() if name in losing})
    won = [name for name, one in found.items() if not one.loses]
    if not won:
        return ""
    where = f" on {', '.join(won)}" if any(won) else ""
    return f"build-engine --sites plugin, with which pruning wins{where}: {found[won[0]].text()}; or {_MEND}"
