"""TensorRT-RTX: builds engines for desktop GPUs without one; running them needs the GPU."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitprune.backends._progress import Outermost
from vitprune.errors import BuildError, LoadError
from vitprune.support.precision import HALF, QUANTISED

if TYPE_CHECKING:
    from vitprune.bundle import Bundle


def missing() -> str:
    """Why the backend cannot be used here, or ""."""
    import importlib.util

    return (
        ""
        if importlib.util.find_spec("tensorrt_rtx")
        else "tensorrt_rtx is not installed (extra 'rtx': pip install 'vitprune[rtx]', x86-64, Python >= 3.11)"
    )


def version() -> str:
    """Version of TensorRT-RTX."""
    import tensorrt_rtx

    return str(tensorrt_rtx.__version__)


def build(request: dict[str, Any], report: Any) -> dict[str, Any]:
    """Build an engine on the CPU; see `building` for the request. Returns facts for engine.json.

    Raises:
        BuildError: VP510 the parser refuses the graph, VP511 the builder finds no engine.
    """
    import tensorrt_rtx as trt

    messages: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                messages.append(f"{severity.name}: {message}")

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    report("parsing the graph")
    if not parser.parse_from_file(str(request["model"])):
        first = parser.get_error(0).desc() if parser.num_errors else "no message"
        raise BuildError(510, "TensorRT-RTX refuses the graph", cause=first, next_step="see build.log")
    counted = _layers_by_type(trt, network)
    _require_type(str(request.get("precision") or "fp32"), counted, str(request.get("rest") or ""))
    quantised = _quantising_layers(trt, network)
    config = builder.create_builder_config()
    if workspace := request.get("workspace_mib"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(workspace) << 20)
    low, opt, high = request["batch"]
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (low, *rest), (opt, *rest), (high, *rest))
    config.add_optimization_profile(profile)
    monitor = _monitor(trt, report)
    if monitor is not None:
        config.progress_monitor = monitor
    report(f"building for batch {low}:{opt}:{high}")
    plan = builder.build_serialized_network(network, config)
    Path(request["log"]).write_text("\n".join(messages) + "\n", encoding="utf-8")
    if plan is None:
        errors = [line for line in messages if line.startswith("ERROR")]
        raise BuildError(
            511,
            "TensorRT-RTX found no engine for the graph",
            cause=errors[0] if errors else "no message",
            next_step="see build.log",
        )
    report("writing the engine")
    Path(request["output"]).write_bytes(plan)  # straight from the builder's memory
    return {
        "runtime": f"tensorrt_rtx {version()}",
        "layers": network.num_layers,
        "strongly_typed": True,
        "layers_by_precision": counted,
        **({"quantising_layers": quantised} if quantised else {}),
        "inputs": [network.get_input(i).name for i in range(network.num_inputs)],
        "outputs": [network.get_output(i).name for i in range(network.num_outputs)],
    }


def _layers_by_type(trt: Any, network: Any) -> dict[str, int]:
    """How many products and convolutions of the network compute in which type; strongly typed, an engine computes in these.

    A product of which both factors come from a dequantising layer counts in the type they were stored in: such are fused to one kernel.
    """
    heavy = (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION)
    names = {
        trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16", trt.DataType.INT8: "int8", trt.DataType.FP8: "fp8",
    }  # fmt: skip
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    makers = {layer.get_output(number).name: layer for layer in layers for number in range(layer.num_outputs)}

    def stored(tensor: Any) -> str:
        if tensor is None:  # a convolution's weights that are part of it, where its bias is a tensor
            return ""
        maker = makers.get(tensor.name)
        while maker is not None and maker.type == trt.LayerType.SHUFFLE:
            maker = makers.get(maker.get_input(0).name)
        return names.get(maker.get_input(0).dtype, "") if maker is not None and maker.type == trt.LayerType.DEQUANTIZE else ""

    counted: Counter[str] = Counter()
    for layer in layers:
        if layer.type in heavy:
            factors = {stored(layer.get_input(number)) for number in range(min(2, layer.num_inputs))}
            quantised = factors.pop() if len(factors) == 1 else ""
            counted[quantised or names.get(layer.get_output(0).dtype, "other")] += 1
    return dict(sorted(counted.items()))


def _quantising_layers(trt: Any, network: Any) -> dict[str, int]:
    """How many layers of the network quantise and dequantise; {} when none does."""
    kinds = {trt.LayerType.QUANTIZE: "quantize", trt.LayerType.DEQUANTIZE: "dequantize"}
    found = (network.get_layer(number).type for number in range(network.num_layers))
    return dict(sorted(Counter(kinds[kind] for kind in found if kind in kinds).items()))


def _require_type(asked: str, counted: dict[str, int], rest: str = "") -> None:
    """The network must compute in the type asked for, and in no other than float32 and `rest` besides.

    Raises:
        BuildError: VP512.
    """
    others = [kind for kind in (*HALF, *QUANTISED) if kind not in (asked, rest) and counted.get(kind)]
    if counted.get(asked) and not others:
        return
    listed = ", ".join(f"{count} in {kind}" for kind, count in counted.items()) or "none"
    raise BuildError(
        512,
        f"the engine would not compute in {asked}",
        cause=f"products and convolutions of the network: {listed}",
        next_step="export the bundle again; its graph carries the types",
    )


class Session:
    """Running an RTX engine needs an NVIDIA GPU of compute capability 8.0, 8.6, 8.9 or 12.0."""

    def __init__(self, bundle: Bundle, engine: Path | None = None, target: str | None = None) -> None:
        raise LoadError(
            614,
            "TensorRT-RTX engines are not run by this version",
            cause="only building is supported",
            next_step="validate with --backend onnxruntime",
        )


def _monitor(trt: Any, report: Any) -> Any:
    """A progress monitor, where this version has the interface."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(Outermost, trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            Outermost.__init__(self, report)

    return Monitor()
