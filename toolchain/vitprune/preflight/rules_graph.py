"""Rules on the graph: opset, IR, operators, functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitprune import methods
from vitprune.backends._tensorrt.support import CUMULATIVE_LAYER
from vitprune.graph.lowering import tensorrt as variants
from vitprune.preflight import operators as tables
from vitprune.preflight.context import NVIDIA, Context
from vitprune.preflight.findings import Verdict
from vitprune.preflight.rules import Opinion, rule

if TYPE_CHECKING:
    import onnx


@rule("VP401", "opset")
def opset(context: Context) -> Opinion:
    """The parser takes the graph's opset."""
    version, found = context.choice.runtime_version, variants.opset(context.model)
    limit = tables.max_opset(version) if context.backend == "tensorrt" and version else context.choice.target.max_opset
    if found > limit:
        mend = f"export again with --set graph.opset={min(limit, variants.MAX_OPSET)}"
        return Verdict.BLOCKED, f"the graph has opset {found}, the parser takes up to {limit}", mend
    return context.accepted, f"opset {found} of up to {limit}", ""


@rule("VP402", "IR version")
def ir(context: Context) -> Opinion:
    """The runtime reads the file's IR version."""
    found, limit = context.model.ir_version, context.choice.target.max_ir
    if found > limit:
        return (
            Verdict.BLOCKED,
            f"the file has IR version {found}, the runtime reads up to {limit}",
            "export again with this vitprune",
        )
    return context.accepted, f"IR version {found} of up to {limit}", ""


@rule("VP403", "operators")
def operators(context: Context) -> Opinion | None:
    """The parser knows every operator."""
    version, used = context.choice.runtime_version, sorted(context.operators)
    if context.backend == "tensorrt_rtx":
        refused, unknown = [op for op in used if op in tables.RTX_REFUSES], []
    elif context.backend == "tensorrt" and version:
        refused, unknown = tables.refused(used, version), tables.unknown(used, version)
    else:
        return None
    if refused:
        return Verdict.BLOCKED, f"the parser does not take {', '.join(refused)}", "export the dense model without it"
    if unknown and context.accepted is not Verdict.VERIFIED:
        return Verdict.UNVERIFIED, f"no table tells whether the parser takes {', '.join(unknown)}", "build on the device to know"
    return context.accepted, f"{len(used)} operators, all known to the parser", ""


@rule("VP404", "forms of operators")
def forms(context: Context) -> Opinion | None:
    """No operator is used in a form that the parser refuses."""
    if context.backend not in NVIDIA:
        return None
    found = sorted({text for node in context.nodes if (text := _refused_form(node, context.backend))})
    if found:
        return Verdict.BLOCKED, f"the parser refuses {', '.join(found)}", "export the dense model without it"
    return context.accepted, "no operator in a form that the parser refuses", ""


def _refused_form(node: onnx.NodeProto, backend: str) -> str:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    reduction = attributes["reduction"].s.decode() if "reduction" in attributes else "none"
    if (
        node.op_type == "ScatterND"
        and reduction != "none"
        or backend == "tensorrt_rtx"
        and node.op_type == "ScatterElements"
        and reduction != "none"
    ):
        return f"{node.op_type} with reduction {reduction}"
    if node.op_type == "TopK" and "sorted" in attributes and not attributes["sorted"].i:
        return "TopK with sorted=0"
    several = [name for name in node.output if name]
    if node.op_type in ("LayerNormalization", "Attention") and len(several) > 1:
        return f"{node.op_type} with more than one output"
    return ""


@rule("VP405", "TopK")
def topk(context: Context) -> Opinion | None:
    """No TopK asks for more than the runtime's limit."""
    if context.backend not in NVIDIA or not context.operators["TopK"]:
        return None
    patches = int(context.bundle.manifest.model["geometry"]["patches"])
    largest = max([_constant_k(context.model), min(patches, _largest_choice(context))])
    if largest > tables.MAX_TOPK:
        mend = "a smaller image, larger patches, or prune.capacity of at most 3840"
        return Verdict.BLOCKED, f"TopK may ask for {largest} of {patches} patches; the limit is {tables.MAX_TOPK}", mend
    return context.accepted, f"TopK asks for at most {largest}; the limit is {tables.MAX_TOPK}", ""


def _constant_k(model: onnx.ModelProto) -> int:
    from onnx import numpy_helper

    values = {tensor.name: tensor for tensor in model.graph.initializer}
    asked = [node.input[1] for node in model.graph.node if node.op_type == "TopK" and len(node.input) > 1]
    found = [values[name] for name in asked if name in values]
    return max((int(numpy_helper.to_array(tensor).max()) for tensor in found), default=0)


def _largest_choice(context: Context) -> int:
    return max((int(site["limit"]) for site in context.bundle.manifest.sites), default=0)


@rule("VP406", "CumSum")
def cumsum(context: Context) -> Opinion | None:
    """CumSum is a layer of its own from TensorRT 10.8 on."""
    version = context.choice.runtime_version
    if context.backend != "tensorrt" or version is None or version >= CUMULATIVE_LAYER or not context.operators["CumSum"]:
        return None
    reason = f"TensorRT {version} runs CumSum as a loop, and its operator table lists it for floating point alone"
    if any(node.op_type == "CumSum" for node in context.model.graph.node):
        return Verdict.UNVERIFIED, f"{reason}; the graph itself has one", "a newer JetPack, or measure it on the device"
    return (
        context.accepted,
        f"{reason}; only the function of TokenSample has one, which the plugin replaces",
        "do not build with --plugin none",
    )


@rule("VP407", "function or plugin")
def function(context: Context) -> Opinion | None:
    """Something on the device can carry out TokenSample."""
    nodes = variants.token_samples(context.model)
    if not nodes:
        return None
    bodies = {body.name for body in context.model.functions}
    has_body = all(node.op_type in bodies for node in nodes)
    if context.backend != "tensorrt":
        if not has_body:
            return Verdict.BLOCKED, "TokenSample has no function body and this runtime has no plugins", "export the bundle again"
        return context.accepted, f"{len(nodes)} TokenSample nodes run as the model's own function", ""
    version = context.choice.runtime_version
    if version is not None and version < variants.PLUGIN_WINS:
        text = f"TensorRT {version} prefers functions to plugins: the build removes them and needs the plugin library"
        return context.accepted, text, "vitprune plugins build on the device"
    if not has_body:
        return (
            Verdict.UNVERIFIED,
            "TokenSample has no function body: the build needs the plugin library",
            "vitprune plugins build on the device",
        )
    return context.accepted, f"{len(nodes)} TokenSample nodes run in the plugin where it is loaded, else as functions", ""


@rule("VP408", "plugin namespace")
def namespace(context: Context) -> Opinion | None:
    """Every TokenSample node names the namespace its plugin is registered in."""
    if context.backend != "tensorrt" or not variants.token_samples(context.model):
        return None
    unnamed = variants.unnamed_plugins(context.model)
    if unnamed:
        text = f"{len(unnamed)} TokenSample nodes have no plugin_namespace: the parser would not find the plugin"
        return Verdict.BLOCKED, text, "export the bundle again"
    return context.accepted, f"every TokenSample node names namespace '{variants.NAMESPACE}'", ""


@rule("VP418", "padded counts")
def padded_counts(context: Context) -> Opinion | None:
    """Constant shapes keep what the method gains."""
    recipe = context.bundle.recipe
    if recipe.graph.shapes != "padded":
        return None
    what, _, instead = methods.get(recipe.prune.method).padded_advice(recipe.prune).partition("; ")
    return (context.accepted, what, instead) if what else None
