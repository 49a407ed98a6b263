"""The last step of a surgery: types.

`plan` is made on the surgery's graph, where the anatomy is known; `apply` writes it into the finished model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
from onnx import helper

from vitprune.errors import ExportError, RecipeError
from vitprune.graph import held
from vitprune.graph.passes.base import Surgery
from vitprune.graph.precision import audit, casting, quantising, roles, smoothing, stream
from vitprune.graph.precision.io import half_io
from vitprune.graph.precision.linears import LinearMap, linear_maps, readers
from vitprune.graph.protos import replace_nodes
from vitprune.recipe import PrecisionSection
from vitprune.support.precision import chosen, layer_names, unused


@dataclass(frozen=True)
class Plan:
    """What becomes of which layer.

    mode: of the recipe. nodes: layer by node name, of all layers but those kept. kept: layers that the recipe leaves in float32.
    quantised: layers whose linear maps take int8 or FP8. floats: type of the nodes that are not quantised.
    ranges, letters: of the recipe, for quantised layers. io: whether inputs and outputs are float16.
    """

    mode: str
    nodes: dict[str, str]
    kept: tuple[str, ...]
    floats: str
    quantised: frozenset[str] = frozenset()
    ranges: dict[str, float] = field(default_factory=dict)
    letters: dict[str, str] = field(default_factory=dict)
    io: bool = False

    def maps(self, model: onnx.ModelProto) -> list[LinearMap]:
        """The quantised layers' linear maps in the finished model."""
        return linear_maps(model, {node: layer for node, layer in self.nodes.items() if layer in self.quantised})

    def half_nodes(self, model: onnx.ModelProto) -> dict[str, str]:
        """Layer by node name, of those that compute in a half type: not a quantised map, its bias, nor what moves its input."""
        if self.floats == "fp32":
            return {}
        maps = self.maps(model)
        names, feeding = {one.node for one in maps}, {(one.layer, one.data) for one in maps}
        found = {}
        for node in reversed(model.graph.node):
            layer = self.nodes.get(node.name)
            if layer is None:
                continue
            if layer in self.quantised:
                if any((layer, name) in feeding for name in node.output):
                    feeding.add((layer, node.input[0]))
                    continue
                if node.name in names or node.op_type == "Add":
                    continue
            found[node.name] = layer
        return found


def plan(surgery: Surgery, precision: PrecisionSection) -> Plan | None:
    """The plan for a finished surgery, None for float32.

    Raises:
        RecipeError: VP113 when a pattern of keep_fp32 or exclude fits no layer, VP115 of `require_half`. ExportError: VP316 the layers are not understood.
    """
    names = layer_names(len(surgery.anatomy.blocks))
    check_patterns(names, precision.keep_fp32)
    check_patterns(names, precision.exclude, "exclude")
    require_half(precision, surgery.method.pipeline is not None)
    if precision.mode == "fp32":
        return None
    kept = chosen(names, precision.keep_fp32)
    nodes = {node: layer for node, layer in roles.layers(surgery).items() if layer not in kept}
    roles.freeze(surgery, set(nodes))
    if precision.residual == "half":
        nodes |= stream.rounded_sums(surgery)
    quantised = quantised_layers(len(surgery.anatomy.blocks), precision)
    return Plan(
        precision.mode, nodes, tuple(name for name in names if name in kept), precision.floats, quantised,
        {layer: value for layer, value in precision.ranges.items() if layer in quantised},
        {layer: text for layer, text in precision.smoothing.items() if layer in quantised}, precision.io == "half",
    )  # fmt: skip


def quantised_layers(depth: int, precision: PrecisionSection) -> frozenset[str]:
    """The layers that take int8 or FP8."""
    names = layer_names(depth)
    left = chosen(names, [*precision.keep_fp32, *precision.exclude])
    return frozenset(name for name in names if name not in left) if precision.quantised else frozenset()


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


def require_half(precision: PrecisionSection, cascade: bool) -> None:
    """A half residual stream needs a half type, half inputs and outputs float16; both are for single models.

    Raises:
        RecipeError: VP115.
    """
    asked = [key for key in ("residual", "io") if getattr(precision, key) == "half"]
    if not asked:
        return
    key, cause = asked[0], ""
    if cascade:
        cause = "what one model of a cascade hands to the next is float32"
    elif precision.floats == "fp32":
        cause = "no layer is in a half type" + (" (precision.rest is fp32)" if precision.quantised else "")
    elif "io" in asked and precision.floats == "bf16":
        key, cause = "io", "bfloat16 has fewer bits than the bytes of an image, and few programs can hand it over"
    if cause:
        raise RecipeError(
            115, f"precision.{key}=half is not available here", cause=cause, next_step=f"--set precision.{key}=fp32"
        )


def check_patterns(names: list[str], patterns: list[str], key: str = "keep_fp32") -> None:
    """Every pattern must fit a layer.

    Raises:
        RecipeError: VP113.
    """
    if lost := unused(names, patterns):
        raise RecipeError(
            113,
            f"precision.{key} names '{lost[0]}', which fits no layer",
            cause=f"layers are named {names[0]}, {names[1]}, {names[2]}, {names[3]} and so on up to {names[-1]}",
            next_step="correct the pattern; * stands for any text",
        )


def apply(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """The model with the plan's types.

    Raises:
        ExportError: VP317 a weight does not fit, VP318 the types clash or something that decides would compute in another type than FP32.
        RecipeError: VP117 a layer to quantise has no range, VP138 smoothing of a layer that cannot be smoothed.
    """
    half = plan.half_nodes(model)
    if plan.quantised:
        _require_ranges(plan)
        model = smoothed(model, plan)
        model = quantising.insert(model, plan.maps(model), plan.ranges, plan.mode)
        if plan.floats != "fp32":
            half |= _round_results(model, plan)
    if half:
        model = casting.cast(model, set(half), plan.floats)
    model = half_io(model) if plan.io else model
    try:
        held.check(held.parted(model)[0], check_type=True)
    except Exception as error:
        raise _refused(str(error).splitlines()[0][:200]) from error
    if wrong := audit.half_decisions(model):
        raise _refused(f"node '{wrong[0]}' decides which tokens stay and computes in {plan.mode}")
    return model


def smoothed(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """The float32 model with the plan's factors moved.

    Raises:
        RecipeError: VP138.
    """
    places = smoothing.sites(model, plan.maps(model))
    channels = {site.layer: len(smoothing.row_maxima(model, site)) for site in places}
    for layer, text in plan.letters.items():
        if channels.get(layer) != len(text):
            raise RecipeError(
                138,
                f"precision.smoothing names {layer}, which cannot be smoothed so",
                cause=f"it has {channels[layer]} input channels, the recipe {len(text)} factors" if layer in channels
                else "in this graph something else reads its input channels, or no norm and no values stand before it",
                next_step="leave precision.smoothing out and give --data: it is found anew",
            )  # fmt: skip
    return smoothing.fold(model, places, plan.letters)


def _require_ranges(plan: Plan) -> None:
    missing = sorted(plan.quantised - plan.ranges.keys())
    if missing:
        raise RecipeError(
            117,
            f"{plan.mode} needs calibration images",
            cause=f"the recipe has no range for {missing[0]}" + (f" and {len(missing) - 1} more layers" if missing[1:] else ""),
            next_step="--data DIR with images like those the model will see",
        )


def _round_results(model: onnx.ModelProto, plan: Plan) -> dict[str, str]:
    """Queries, keys and values of quantised maps become numbers of the half type; changes the model, returns the nodes that do it."""
    maps = {node.name for node in audit.quantised_products(model)}
    added: dict[str, str] = {}
    below = readers(model)
    written = []
    for node in model.graph.node:
        written.append(node)
        layer = plan.nodes.get(node.name, "")
        last = node.name in maps and not any(
            one.op_type == "Add" and one.name in plan.nodes for one in below.get(node.output[0], [])
        )
        if layer in plan.quantised and layer.endswith("attn.qkv") and (last or node.op_type == "Add"):
            result, exact = node.output[0], f"{node.output[0]}/exact"
            node.output[0] = exact
            written.append(helper.make_node("Identity", [exact], [result], name=f"{result}/{plan.floats}"))
            added[written[-1].name] = layer
    replace_nodes(model.graph, written)
    return added


def _refused(cause: str) -> ExportError:
    return ExportError(
        318, "the graph cannot be given its types", cause=cause, next_step="report the model and recipe with this message"
    )
