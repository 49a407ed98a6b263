"""The one model in the forms that runtimes want: with functions, without them, inlined; and what all forms promise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitprune.graph import wire
from vitprune.ops.sites import PLUGIN_SITES
from vitprune.ops.token_sample import DOMAIN, NAME
from vitprune.support import onnx_weights
from vitprune.support.onnx_file import read_model
from vitprune.support.versions import Version

if TYPE_CHECKING:
    import onnx

    from vitprune.bundle import Bundle

MAX_OPSET = 20
MAX_IR = 10
NAMESPACE = "vitprune"
INLINED = "model.inline.onnx"
# Below this, TensorRT's parser takes a local function even where a plugin of that name is loaded.
PLUGIN_WINS = Version.parse("10.7")
# Below this, names inside local functions could clash with those around them.
FUNCTIONS_SCOPED = Version.parse("10.8")


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions written out: plain ONNX, no custom domain, no functions."""
    import onnx.inliner

    flat = onnx.inliner.inline_local_functions(model)
    used = {node.domain for node in flat.graph.node}
    keep = [entry for entry in flat.opset_import if entry.domain in ("", "ai.onnx") or entry.domain in used]
    del flat.opset_import[:]
    flat.opset_import.extend(keep)
    return flat


def for_tensorrt(model: bytes, version: Version, plugin: bool) -> tuple[bytes, str]:
    """The form for a TensorRT version; only "inlined" needs the onnx package, which a Jetson may lack.

    Args:
        model: the file as in the bundle.
        version: of TensorRT.
        plugin: the plugin library is loaded.

    Returns:
        The model and its form: "plain" (no TokenSample in it), "plugin" (functions removed), "plugin or function", "inlined" or
        "function". With sites that are plugin nodes it is "plugin" in any case.

    Raises:
        ImportError: "inlined" without the onnx package.
    """
    found = wire.operators(model, DOMAIN)
    if found & set(PLUGIN_SITES):
        return (wire.without_functions(model) if version < PLUGIN_WINS else model), "plugin"
    if NAME not in found:
        return model, "plain"
    if plugin and version < PLUGIN_WINS:
        return wire.without_functions(model), "plugin"
    if plugin:
        return model, "plugin or function"
    if version >= FUNCTIONS_SCOPED:
        return model, "function"
    import onnx

    return inlined(onnx.load_from_string(model)).SerializeToString(), "inlined"


def token_samples(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """TokenSample nodes of the main graph."""
    return [node for node in model.graph.node if node.op_type == NAME and node.domain == DOMAIN]


def opset(model: onnx.ModelProto) -> int:
    """Opset of the standard domain, the highest one that the model or a function of it names."""
    imports = [*model.opset_import, *(entry for body in model.functions for entry in body.opset_import)]
    return max((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), default=0)


def broken_promises(model: onnx.ModelProto) -> list[str]:
    """What every form must keep so that all supported runtimes read it, and this one does not; [] when all is well."""
    found = []
    if opset(model) > MAX_OPSET:
        found.append(f"opset {opset(model)} is beyond {MAX_OPSET}")
    if model.ir_version > MAX_IR:
        found.append(f"IR version {model.ir_version} is beyond {MAX_IR}")
    return found + [f"node '{node.name}' has no plugin_namespace '{NAMESPACE}'" for node in unnamed_plugins(model)]


def unnamed_plugins(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """TokenSample nodes without the attribute that TensorRT's parser finds the plugin by."""
    return [node for node in token_samples(model) if _text(node, "plugin_namespace") != NAMESPACE]


def _text(node: onnx.NodeProto, name: str) -> str:
    return next((attribute.s.decode(errors="replace") for attribute in node.attribute if attribute.name == name), "")


def add_inlined(bundle: Bundle) -> Path:
    """Write model.inline.onnx, the form without a custom domain, into a bundle and list it in its manifest."""
    from vitprune.bundle import write_atomic

    path, model = bundle.path / INLINED, read_model(bundle.model_path)
    if onnx_weights.any_elsewhere(model):
        size = onnx_weights.total(model)
        raise onnx_weights.too_large(
            size, "this bundle", "the form without a custom domain is one file", "build the engine from model.onnx"
        )
    write_atomic(path, inlined(model).SerializeToString())
    bundle.add_files([INLINED])
    return path
