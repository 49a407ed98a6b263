"""Rules on the device: memory, compute capability, number types, release."""

from __future__ import annotations

from vitprune.preflight.context import NVIDIA, Context
from vitprune.preflight.findings import Verdict
from vitprune.preflight.memory import PROCESS_MIB, SYSTEM_MIB, Estimate, estimate
from vitprune.preflight.rules import Opinion, rule
from vitprune.targets import SINCE, Module, lacking

PROTOBUF_LIMIT = 2 << 30


@rule("VP409", "memory")
def memory(context: Context) -> Opinion | None:
    """Weights, activations and the builder's scratch memory fit the module."""
    target, module = context.choice.target, context.choice.module
    if not target.modules:
        return None
    if module is not None:
        return _fits(_need(context, module), module)
    results = {name: _fits(_need(context, one), one)[0] for name, one in target.modules.items()}
    short = [name for name, verdict in results.items() if verdict in (Verdict.BLOCKED, Verdict.UNVERIFIED)]
    smallest = min(target.modules.values(), key=lambda one: one.memory_gib)
    text = f"{_need(context, smallest).text()} on the smallest module, {smallest.title}"
    if not short:
        return Verdict.LIKELY, text, ""
    all_blocked = all(verdict is Verdict.BLOCKED for verdict in results.values())
    verdict = Verdict.BLOCKED if all_blocked else Verdict.UNVERIFIED
    return verdict, f"{text}; too little or little on {', '.join(short)}", f"--module NAME; {_LOWER}"


_LOWER = "lower --workspace or the largest batch, or build on a larger module of the same compute capability"


def _need(context: Context, module: Module) -> Estimate:
    return estimate(context.bundle, context.model, context.batch[2], context.choice.target.workspace_for(module))


def _fits(need: Estimate, module: Module) -> Opinion:
    there = int(module.memory_gib * 1024)
    if need.least + PROCESS_MIB > there:
        text = f"weights and activations take {need.least} MiB, the process about {PROCESS_MIB}; {module.title} has {there} MiB"
        return Verdict.BLOCKED, text, "a smaller batch or a larger module"
    if need.build + SYSTEM_MIB > there:
        return Verdict.UNVERIFIED, f"{need.text()}; {module.title} has {there} MiB, its system takes a part", _LOWER
    return Verdict.LIKELY, f"{need.text()} of {there} MiB on {module.title}", ""


@rule("VP410", "known wrong results")
def known_wrong(context: Context) -> Opinion | None:
    """This TensorRT version is not known to compute Vision Transformers wrongly."""
    version = context.choice.runtime_version
    if context.backend != "tensorrt" or version is None:
        return None
    if str(version.minor()) in ("10.3", "10.4"):
        text = (
            f"TensorRT {version.minor()} is known to give wrong results for Vision Transformers "
            "(NVIDIA/TensorRT issues 4419, 4723 and 4742)"
        )
        if _validated(context):
            return Verdict.VERIFIED, f"{text}; this bundle's engine passed its validation", ""
        return (
            Verdict.UNVERIFIED,
            text,
            "vitprune validate BUNDLE --backend tensorrt on the device; a newer JetPack where it fails",
        )
    return Verdict.LIKELY, f"no wrong results for Vision Transformers known of TensorRT {version.minor()}", ""


@rule("VP411", "compute capability")
def architecture(context: Context) -> Opinion | None:
    """The GPU is one that the target's engines run on."""
    wanted = context.choice.architectures
    target = context.choice.target
    if not wanted:
        return None
    stated = context.architecture
    local = [gpu.architecture for gpu in context.gpus] if target.machine in ("", context.machine) else []
    engine = None if context.elsewhere else context.engines.get(target.name)
    built = str(engine.facts.get("architecture", "")) if engine is not None else ""
    for what, found in (
        ("the GPU you name", stated),
        ("the engine in the bundle", built),
        ("the GPU of this machine", local[0] if local and not stated else ""),
    ):
        if found and found not in wanted:
            text = f"{what} has SM {found}; engines for '{target.name}' are for SM {', '.join(wanted)}"
            return Verdict.BLOCKED, text, "vitprune targets; --target desktop builds for the GPU of this machine"
    return Verdict.VERIFIED if built else Verdict.LIKELY, f"SM {', '.join(wanted)}", ""


@rule("VP412", "number types")
def precision(context: Context) -> Opinion | None:
    """The hardware computes with the recipe's number type."""
    if context.backend not in NVIDIA:
        return None
    asked, target = context.bundle.recipe.precision.mode, context.choice.target
    if asked not in target.precisions:
        return (
            Verdict.BLOCKED,
            f"'{target.name}' does not compute with {asked}",
            f"--set precision.mode={target.precisions[0]} at export",
        )
    capabilities = _capabilities(context)
    without = lacking(asked, capabilities)
    if without:
        text = f"SM {', '.join(without)} does not compute with {asked}, which needs SM {SINCE[asked]}"
        if len(without) < len(capabilities):
            return (
                Verdict.UNVERIFIED,
                text,
                "--sm of the device that is meant; --set precision.mode=fp16 at export for the others",
            )
        return Verdict.BLOCKED, text, "--set precision.mode=fp16 at export"
    better = target.recommended_precision
    hint = f"{better} is recommended: --set precision.mode={better} at export" if asked == "fp32" != better else ""
    return context.accepted, f"{asked} is computed in hardware", hint


def _capabilities(context: Context) -> list[str]:
    if context.architecture:
        return [context.architecture]
    return context.choice.architectures or [gpu.architecture for gpu in context.gpus]


@rule("VP413", "release and module")
def release(context: Context) -> Opinion | None:
    """NVIDIA documents the release for the module."""
    found, module = context.choice.release, context.choice.module_name
    if found is None or not found.modules:
        return None
    if module and module in found.modules:
        return context.accepted, f"TensorRT {found.tensorrt} is documented for {module}", ""
    text = f"TensorRT {found.tensorrt} is documented for {', '.join(found.modules)} alone"
    return Verdict.UNVERIFIED, f"{text}, not for {module}" if module else text, "--module NAME, or an older JetPack"


@rule("VP414", "data-dependent shapes")
def shapes(context: Context) -> Opinion | None:
    """Token counts that depend on the data cost a copy to the host at every site."""
    live = [site for site in context.bundle.manifest.sites if not site["bypass"]]
    if context.backend not in NVIDIA or not live:
        return None
    if context.bundle.recipe.graph.shapes == "padded":
        return Verdict.LIKELY, "token counts are fixed: CUDA graphs can capture the engine", ""
    text = (
        f"{len(live)} sites with data-dependent token counts: each costs a copy to the host, and CUDA graphs cannot capture them"
    )
    return Verdict.LIKELY, text, "compare with --set graph.shapes=padded and prune.capacity on the device"


@rule("VP415", "file size")
def size(context: Context) -> Opinion | None:
    """The model fits into one protobuf message."""
    found = context.bundle.model_path.stat().st_size
    if found >= PROTOBUF_LIMIT:
        return Verdict.BLOCKED, f"model.onnx has {found >> 20} MiB; one message takes less than 2048", "a smaller model or FP16"
    return None


@rule("VP416", "a builder of NVIDIA takes the graph")
def builder(context: Context) -> Opinion | None:
    """Some engine was really built from this model."""
    if context.backend not in NVIDIA:
        return None
    target = context.choice.target.name
    if context.own_engine is not None:
        return Verdict.VERIFIED, f"engines/{target}: built from this model.onnx by {context.own_engine.facts.get('runtime')}", ""
    others = {name: one for name, one in context.engines.items() if one.document.get("backend") in NVIDIA}
    if others:
        text = "; ".join(
            f"engines/{name}: built from this model.onnx by {one.facts.get('runtime')}" for name, one in others.items()
        )
        return Verdict.VERIFIED, f"{text} (another builder than this target's)", ""
    return (
        Verdict.LIKELY,
        "no engine in the bundle was built from this model.onnx",
        "vitprune build-engine BUNDLE --target rtx needs no GPU",
    )


@rule("VP417", "results on the device")
def results(context: Context) -> Opinion:
    """The runtime was seen to give the reference's results."""
    if _validated(context):
        return Verdict.VERIFIED, f"reports/validate.json: {context.backend} passed its gates", ""
    if context.backend == "onnxruntime" and "logits_max_abs" in context.export.get("check", {}):
        return Verdict.VERIFIED, "reports/export.json: ONNX Runtime gave the reference's results at export", ""
    again = f"vitprune validate BUNDLE --backend {context.backend.replace('_', '-')} on the device"
    return Verdict.LIKELY, "not validated on this runtime", again


def _validated(context: Context) -> bool:
    """Whether the last validation passed with this backend and, where there is an engine, with this engine."""
    seen = context.validation
    if seen.get("backend", "").replace("-", "_") != context.backend or seen.get("status") != "passed":
        return False
    if context.backend not in NVIDIA:
        return True
    evidence, engine = seen.get("comparison", {}).get("evidence", {}), context.own_engine
    return engine is not None and evidence.get("engine_sha256") == engine.document.get("engine_sha256")
