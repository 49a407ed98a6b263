"""TensorRT 10.3 to 11.x: Jetson, desktop and server GPUs. Networks are strongly typed: the graph says what computes in what."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitprune.backends._tensorrt import messages as messages_of
from vitprune.backends._tensorrt import plugins
from vitprune.backends._tensorrt.audit import Audit, audit, read_layers
from vitprune.backends._tensorrt.building import Settings, memory_problem, said_out_of_memory, settings_of
from vitprune.backends._tensorrt.memory import free_memory
from vitprune.backends._tensorrt.session import Session
from vitprune.backends._tensorrt.sites import not_onnx, plugin_sites_in, sites_as_plugins
from vitprune.backends._tensorrt.support import ALWAYS_TYPED, CUMULATIVE_LAYER, unsupported
from vitprune.backends._tensorrt.trtexec import command_line
from vitprune.errors import BuildError
from vitprune.graph.lowering.tensorrt import for_tensorrt
from vitprune.ops.token_sample import NAME
from vitprune.support import registry, trust
from vitprune.support.gpus import Gpu, local_gpus
from vitprune.support.versions import Version

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["Session", "build", "missing", "version"]

TIMING_CACHE = "timing.cache"
# The graph as TensorRT got it stays beside the engine: the trtexec command names it.
PARSED = ".parsed.onnx"
LOWER = "lower --workspace or the largest batch, close other programs, add swap, or stop the desktop of a Jetson"


def missing() -> str:
    """Why the backend cannot be used here, or ""."""
    try:
        found = str(registry.module("tensorrt").__version__)
    except (ImportError, OSError, AttributeError) as error:
        return (
            f"TensorRT is not installed, or its libraries are not ({error}); on a Jetson it is a system package of JetPack, "
            "elsewhere: pip install 'vitprune[tensorrt]'"
        )
    return unsupported(found)


def version() -> str:
    """Version of TensorRT."""
    import tensorrt

    return str(tensorrt.__version__)


def build(request: dict[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    """Build an engine for the GPU of this machine.

    Args:
        request: see `building`; optionally also plugin ("auto", "none" or a path), embed_plugin, architectures (those of the target),
            precision, keep_fp32, sites ("nodes", or "plugin": a site is one node of the plugin library).
        report: called with progress texts.

    Returns:
        Facts for engine.json: runtime, tensorrt, architecture, gpu, layers by precision, plugin, graph form, workspace, timing
        cache, tactics skipped for memory, the trtexec command.

    Raises:
        BuildError: VP520 the parser refuses the graph, VP521 no engine found, VP522 no plugin, VP523 TensorRT not supported, VP524
            not enough memory, VP525 another GPU than the target's, VP526 layers of another precision than asked for, VP527 the
            engine cannot be read back, VP528 onnx is missing, VP529 not an ONNX file, VP537 no site can be one plugin node.
    """
    import tensorrt as trt

    if why := unsupported(str(trt.__version__)):
        raise BuildError(523, "this TensorRT is not supported", cause=why, next_step="vitprune targets")
    gpu = check_gpu(local_gpus(), request.get("architectures") or [])
    settings = settings_of(request, gpu)
    messages: list[str] = []
    try:
        return _build(settings, gpu, messages, report)
    finally:
        settings.log.write_text("\n".join(messages) + "\n", encoding="utf-8")


def check_gpu(gpus: list[Gpu], architectures: list[str]) -> Gpu:
    """The GPU to build for: the first one, which is the one TensorRT uses.

    Raises:
        BuildError: VP525 when there is none or it is not one of `architectures` (an empty list takes any).
    """
    if not gpus:
        raise BuildError(
            525,
            "there is no GPU here to build for",
            cause="TensorRT tries kernels on the GPU that will run them, and the driver lists none",
            next_step="build on the device, or vitprune build-engine BUNDLE --target rtx, which needs no GPU",
        )
    if architectures and gpus[0].architecture not in architectures:
        raise BuildError(
            525,
            f"this GPU has SM {gpus[0].architecture}, the target has SM {' or '.join(architectures)}",
            cause=f"'{gpus[0].name}' cannot build engines for other GPUs",
            next_step="build on the device, or --target desktop for this GPU",
        )
    return gpus[0]


def _build(settings: Settings, gpu: Gpu, messages: list[str], report: Callable[[str], None]) -> dict[str, Any]:
    import tensorrt as trt

    here = Version.parse(str(trt.__version__))
    if why := memory_problem(settings.model.stat().st_size, settings.workspace_mib, free_memory()):
        raise BuildError(524, "there is not enough memory for the build", cause=why, next_step=LOWER)
    model = sites_as_plugins(settings.model) if settings.sites == "plugin" else settings.model.read_bytes()
    library, why_not = plugins.obtain(settings.plugin, gpu.architecture, report)
    whole = plugin_sites_in(model, settings.model.name)
    if whole and library is None:
        raise BuildError(
            522,
            "sites as plugin nodes need the plugin library",
            cause=why_not,
            next_step="vitprune plugins build, or an engine without --sites plugin",
        )
    if library is None and settings.plugin != "none" and (settings.plugin != "auto" or here < CUMULATIVE_LAYER):
        loop = ", CumSum as a loop among them" if here < CUMULATIVE_LAYER else ""
        raise BuildError(
            522,
            "the TokenSample plugin is not at hand",
            cause=f"{why_not}; without it TensorRT {here} runs a long chain of operators{loop}",
            next_step="vitprune plugins build, or --plugin none to build without it",
        )
    if library is not None:
        for operator in (NAME, *whole):
            plugins.register(trt.get_plugin_registry(), library, BuildError, 522, operator)
        library = plugins.beside(library, settings.output.parent)
        trust.remember(library)
    model, form = _form(model, settings.model.name, here, library is not None)
    parsed = settings.output.with_suffix(PARSED)
    parsed.write_bytes(model)
    logger = messages_of.logger(messages)
    builder = trt.Builder(logger)
    report("parsing the graph")
    network = _network(builder, logger, model, here)
    config = builder.create_builder_config()
    image = network.get_input(0)
    rest = tuple(int(image.shape[axis]) for axis in range(1, len(image.shape)))
    shapes = None if int(image.shape[0]) > 0 else [(batch, *rest) for batch in settings.batch]
    _configure(config, builder, settings, library, image.name, shapes)
    cache = _timing_cache(config, settings.output.parent / TIMING_CACHE)
    config.progress_monitor = messages_of.monitor(report)
    report(f"building for batch {':'.join(map(str, settings.batch))}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _no_engine(messages)
    report("writing the engine")
    settings.output.write_bytes(bytes(plan))
    if settings.embed_plugin:
        trust.remember(settings.output)
    kept = config.get_timing_cache()
    if kept is not None:
        (settings.output.parent / TIMING_CACHE).write_bytes(bytes(kept.serialize()))
    report("inspecting the engine")
    audited = _inspect(logger, settings, messages)
    if audited.wrong:
        raise BuildError(
            526,
            f"asked for {settings.precision}, but {len(audited.wrong)} layers compute with another type",
            cause=", ".join(audited.wrong[:3]) + (", ..." if len(audited.wrong) > 3 else ""),
            next_step="name layers that may stay FP32 in precision.keep_fp32 and export again, or see build.log",
        )
    plugin = None
    if library is not None and form.startswith("plugin"):
        plugin = plugins.Plugin(library.name, plugins.digest(library), embedded=settings.embed_plugin).document()
    return {
        "runtime": f"tensorrt {trt.__version__}", "tensorrt": str(trt.__version__), "architecture": gpu.architecture, "gpu": gpu.name,
        "strongly_typed": True, "tf32": settings.tf32, "graph": form, "layers": sum(audited.layers.values()), **audited.document(),
        "plugin": plugin, "plugin_reason": why_not, "version_compatible": settings.embed_plugin and plugin is not None,
        "workspace_mib": settings.workspace_mib, "timing_cache": cache, "tactics_skipped_for_memory": sum(map(said_out_of_memory, messages)),
        "inputs": [network.get_input(i).name for i in range(network.num_inputs)],
        "outputs": [network.get_output(i).name for i in range(network.num_outputs)],
        "trtexec": command_line(
            here, onnx=parsed.name, engine=settings.output.name, image=image.name, shapes=shapes,
            workspace_mib=settings.workspace_mib, plugin=library.name if library else None, embed_plugin=settings.embed_plugin,
            timing_cache=TIMING_CACHE, tf32=settings.tf32,
        ),
    }  # fmt: skip


def _form(model: bytes, name: str, here: Version, plugin: bool) -> tuple[bytes, str]:
    """The graph in the form for this TensorRT, and its name.

    Raises:
        BuildError: VP528 for a form that takes the onnx package, without it; VP529 not an ONNX file.
    """
    try:
        return for_tensorrt(model, here, plugin)
    except ImportError as error:
        raise BuildError(
            528,
            f"TensorRT {here} needs the plugin, or the onnx package to do without",
            cause=f"its parser mixes up names inside local functions, so these must be written out: {error}",
            next_step="build with the plugin (vitprune plugins build), or pip install onnx",
        ) from error
    except ValueError as error:
        raise not_onnx(name, error) from error


def _network(builder: trt.Builder, logger: trt.ILogger, model: bytes, here: Version) -> trt.INetworkDefinition:
    """Parse a model into a strongly typed network.

    Raises:
        BuildError: VP520.
    """
    import tensorrt as trt

    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if here < ALWAYS_TYPED else 0
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        first = parser.get_error(0).desc() if parser.num_errors else "no message"
        raise BuildError(
            520, "TensorRT refuses the graph", cause=first, next_step="vitprune check BUNDLE --target TARGET; see build.log"
        )
    return network


def _configure(
    config: trt.IBuilderConfig, builder: trt.Builder, settings: Settings, library: Path | None, image: str, shapes: Any
) -> None:
    """Scratch memory, profile, number types, layer names in the engine, plugin in the engine."""
    import tensorrt as trt

    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.embed_plugin and library is not None:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.plugins_to_serialize = [str(library)]
    if shapes is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape(image, *shapes)
        config.add_optimization_profile(profile)


def _timing_cache(config: trt.IBuilderConfig, path: Path) -> str:
    """Use the timing cache in the engine's folder: "reused", "started anew" when it is of another device, "new"."""
    old = path.read_bytes() if path.is_file() else b""
    if config.set_timing_cache(config.create_timing_cache(old), ignore_mismatch=False):
        return "reused" if old else "new"
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return "started anew: the old one is of another device or version"


def _no_engine(messages: list[str]) -> BuildError:
    memory = next((line for line in _errors(messages) if said_out_of_memory(line)), "")
    if memory:
        return BuildError(524, "there is not enough memory for the build", cause=memory, next_step=LOWER)
    return BuildError(521, "TensorRT found no engine for the graph", cause=_first_error(messages), next_step="see build.log")


def _errors(messages: list[str]) -> list[str]:
    return [line for line in messages if re.match(r"(INTERNAL_)?ERROR", line)]


def _first_error(messages: list[str]) -> str:
    return next(iter(_errors(messages)), "TensorRT gave no reason")


def _inspect(logger: trt.ILogger, settings: Settings, messages: list[str]) -> Audit:
    """Read the engine back and look at its layers.

    Raises:
        BuildError: VP527 when it cannot be read back.
    """
    import tensorrt as trt

    runtime = trt.Runtime(logger)
    if settings.embed_plugin:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(settings.output.read_bytes())
    if engine is None:
        raise BuildError(527, "the engine cannot be read back", cause=_first_error(messages), next_step="see build.log")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    (settings.output.parent / "layers.json").write_text(text, encoding="utf-8")
    try:
        return audit(read_layers(text), settings.precision, settings.keep_fp32)
    except ValueError:
        return Audit({}, {}, [], possible=False)
