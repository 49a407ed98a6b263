"""The last step of a surgery: types.

`plan` is made on the surgery's graph, where the anatomy is known; `apply` writes it into the finished model.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from vitprune.errors import ExportError, RecipeError
from vitprune.graph.passes.base import Surgery
from vitprune.graph.precision import audit, casting, roles
from vitprune.recipe import PrecisionSection
from vitprune.support.precision import chosen, layer_names, unused


@dataclass(frozen=True)
class Plan:
    """Which nodes compute in the half type, by layer; kept: layers that the recipe leaves in float32."""

    mode: str
    nodes: dict[str, str]
    kept: tuple[str, ...]


def plan(surgery: Surgery, precision: PrecisionSection) -> Plan | None:
    """The plan for a finished surgery, None for float32.

    Raises:
        RecipeError: VP113 when a pattern of keep_fp32 fits no layer. ExportError: VP316 the layers are not understood.
    """
    names = layer_names(len(surgery.anatomy.blocks))
    check_patterns(names, precision.keep_fp32)
    if precision.mode == "fp32":
        return None
    kept = chosen(names, precision.keep_fp32)
    nodes = {node: layer for node, layer in roles.layers(surgery).items() if layer not in kept}
    roles.freeze(surgery, set(nodes))
    return Plan(precision.mode, nodes, tuple(name for name in names if name in kept))


def require_available(precision: PrecisionSection, family: str, blocks: str) -> None:
    """Half types are defined for plain ViTs.

    Raises:
        RecipeError: VP115 for another family.
    """
    if precision.mode != "fp32" and family != "ViT":
        raise RecipeError(
            115,
            f"{precision.mode} is not available for {family}",
            cause=f"which layers of {blocks} may take another type is not defined",
            next_step="--set precision.mode=fp32",
        )


def check_patterns(names: list[str], patterns: list[str]) -> None:
    """Every pattern must fit a layer.

    Raises:
        RecipeError: VP113.
    """
    if lost := unused(names, patterns):
        raise RecipeError(
            113,
            f"precision.keep_fp32 names '{lost[0]}', which fits no layer",
            cause=f"layers are named {names[0]}, {names[1]}, {names[2]}, {names[3]} and so on up to {names[-1]}",
            next_step="correct the pattern; * stands for any text",
        )


def apply(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """The model with the plan's types.

    Raises:
        ExportError: VP317 a weight does not fit, VP318 the types clash or something that decides would compute in a half type.
    """
    half = casting.cast(model, set(plan.nodes), plan.mode)
    try:
        onnx.checker.check_model(half, full_check=False)
        onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=False)
    except Exception as error:
        raise _refused(str(error).splitlines()[0][:200]) from error
    if wrong := audit.half_decisions(half):
        raise _refused(f"node '{wrong[0]}' decides which tokens stay and computes in {plan.mode}")
    return half


def _refused(cause: str) -> ExportError:
    return ExportError(
        318, "the graph cannot be given its types", cause=cause, next_step="report the model and recipe with this message"
    )
