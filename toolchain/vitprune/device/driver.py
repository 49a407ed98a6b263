"""What a device package does on the device: plugin, engine, validation, benchmark; in a rehearsal without plugin and engine.

Everything is written to a temporary sibling of the output folder, which appears whole:

    out/result.json               status, exit code, sha256 of every other file, the error when there was one
    out/environment.json          machine, versions, Jetson module, power mode
    out/validate.json             gates against the stored samples
    out/benchmark.json            latencies with the power state before and after
    out/latency-table.json        with --profile-tokens: what a block and a site cost by token count
    out/engine/                   model.engine, engine.json, build.log, the graph as TensorRT parsed it, the plugin library
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitprune.device.job import Job
from vitprune.device.profiling import FOLDER, INDEX, profile_package
from vitprune.errors import LoadError, TargetError, VitpruneError
from vitprune.support import json_text, temporary
from vitprune.support.about import VERSION
from vitprune.support.hashing import sha256_of
from vitprune.support.replacing import replace_folder

Show = Callable[[str, str, str, str], None]

RESULT = "result.json"
OUTPUTS = {False: "out", True: "out-rehearsal"}


def run(root: Path, manifest: dict[str, Any], options: argparse.Namespace, show: Show) -> int:
    """Run a verified package; returns the exit code. show: prints an error (code, message, cause, next step)."""
    output = root / OUTPUTS[options.rehearse]
    job = Job(root / "bundle", manifest["job"])
    try:
        with temporary.folder(output) as work:
            return _run(manifest, options, job, work, output, show)
    except OSError as error:
        return _unwritable(output, error, show)


def _run(manifest: dict[str, Any], options: argparse.Namespace, job: Job, work: Path, output: Path, show: Show) -> int:
    result: dict[str, Any] = {
        "schema_version": 1, "package": manifest["name"], "package_sha256": manifest["sha256"], "target": job.target["name"],
        "mode": "rehearsal" if options.rehearse else "device",
    }  # fmt: skip
    try:
        result |= _work(job, work, options)
    except VitpruneError as error:
        show(error.code, error.message, error.cause, error.next_step)
        result |= {"status": "error", "exit_code": 2, "error": error.document()}
    except Exception as error:
        traceback.print_exc()
        document = {"code": "VP249", "message": f"unexpected {type(error).__name__}", "cause": str(error), "next_step": ""}
        show(document["code"], document["message"], document["cause"], "report the lines above")
        result |= {"status": "error", "exit_code": 2, "error": document}
    files = sorted(path for path in work.rglob("*") if path.is_file())
    result["files"] = {path.relative_to(work).as_posix(): sha256_of(path) for path in files}
    _write(work / RESULT, result)
    replace_folder(work, output)
    print(f"{result['status']}: {output}", file=sys.stderr)
    return int(result["exit_code"])


def _unwritable(output: Path, error: OSError, show: Show) -> int:
    show("VP245", f"cannot write '{output}'", error.strerror or str(error), "free some space, or unpack elsewhere")
    return 2


def _work(job: Job, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    from vitprune.device.latency import benchmark
    from vitprune.environment.report import environment

    _require_profile(job, options)
    _say("recording the environment")
    _write(work / "environment.json", environment())
    runtime = "onnxruntime" if options.rehearse else job.target["backend"]
    backend = _backend(runtime)
    plugin = _plugin(job, work, options)
    engine: dict[str, Any] | None = None
    differs = "" if options.rehearse else job.differs(backend.version())
    if differs:
        _say(f"note: {differs}")
    openers: dict[str, Callable[[], Callable[[Any], object]]] = {}
    if options.rehearse:
        session = backend.Session(job)
    else:
        engine = _engine(job, work, options, plugin)
        file = work / "engine" / job.target["engine_file"]
        session = backend.Session(job, engine=file)
        openers = {runtime: lambda: backend.Session(job, engine=file).run}
    verdict = _validate(job, runtime, session, backend.version())
    _write(work / "validate.json", verdict)
    if engine is not None:
        _write(work / "engine" / "engine.json", {**engine, "validated": verdict["status"]})
    _say("timing")
    timed = benchmark(job, openers, backend.version(), options.rounds, _say, options.require_locked_clocks)
    _write(work / "benchmark.json", timed)
    if options.profile_tokens:
        _say("timing blocks and sites by token count")
        _write(work / "latency-table.json", _table(job, work, options, runtime, backend, plugin))
    return {
        "status": verdict["status"], "exit_code": verdict["exit_code"], "runtime": f"{runtime} {backend.version()}",
        "evidence": verdict["evidence"], "plugin": plugin, "engine": engine, "differs": differs,
    }  # fmt: skip


def _require_profile(job: Job, options: argparse.Namespace) -> None:
    """Refuse --profile-tokens where the package has no models for it, before anything is built.

    Raises:
        TargetError: VP251.
    """
    if options.profile_tokens and not (job.path.parent / FOLDER / INDEX).is_file():
        raise TargetError(
            251, "the package has no models by token count", cause="it was made without --profile-tokens",
            next_step="vitprune build-engine BUNDLE --target TARGET --package --profile-tokens",
        )  # fmt: skip


def _table(
    job: Job, work: Path, options: argparse.Namespace, runtime: str, backend: Any, plugin: dict[str, Any]
) -> dict[str, Any]:
    """The latency table of this device; an engine of every small model is built for it and thrown away."""
    from vitprune.engines import building
    from vitprune.environment.jetson import power_mode, power_state

    with temporary.folder(work / "profile") as place:

        def runner(model: bytes, shape: Sequence[int], batch: int) -> Callable[[Any], object]:
            if runtime == "onnxruntime":
                session = backend.make_session(model, threads=1, spin=False)
                return lambda images: session.run(None, {session.get_inputs()[0].name: backend.as_read(session, images)})
            (place / "graph.onnx").write_bytes(model)
            request = {
                "backend": runtime, "model": str(place / "graph.onnx"), "output": str(place / "graph.engine"),
                "log": str(place / "build.log"), "batch": [batch, batch, batch], "workspace_mib": _workspace(job.target),
                "precision": job.facts["precision"], "keep_fp32": [], "plugin": _chosen(plugin, work, options),
                "architectures": _architectures(job),
            }  # fmt: skip
            building.run_child(request, lambda text: None, options.timeout)
            small = Job(job.path, {**job.facts, "batch": [batch] * 3, "input_size": list(shape), "blocks": []})
            run: Callable[[Any], object] = backend.Session(small, engine=place / "graph.engine").run
            return run

        device = {
            "target": job.target["name"], "runtime": f"{runtime} {backend.version()}", "processor": os.uname().machine,
            "power_mode": power_mode(power_state()), "clock": "wall time, host copies included",
        }  # fmt: skip
        return profile_package(job.path.parent / FOLDER, runner, device, options.rounds, _say)


def _backend(name: str) -> Any:
    """A backend that can be used here.

    Raises:
        TargetError: VP240 when it is not part of the package, VP241 when its runtime is not installed.
    """
    if importlib.util.find_spec("numpy") is None:
        raise TargetError(
            241,
            "this Python has no numpy",
            cause=f"{sys.executable} cannot import it",
            next_step="sudo apt install python3-numpy, or set VITPRUNE_PYTHON to an interpreter that has it",
        )
    from vitprune import backends

    if name.replace("-", "_") not in backends.names():
        raise TargetError(240, f"the package has no '{name}' backend", next_step="make the package with a newer vitprune")
    backend = backends.get(name)
    if why := backend.missing():
        raise TargetError(
            241,
            f"{name} cannot be used on this device",
            cause=why,
            next_step="set VITPRUNE_PYTHON to an interpreter that has it; on a Jetson: apt list --installed | grep libnvinfer",
        )
    return backend


def _plugin(job: Job, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Build the native library for this device's GPU and keep it beside the engine; says why where there is none."""
    if options.plugin == "skip" or options.rehearse and options.plugin == "auto":
        return {"built": False, "reason": "left out" if options.plugin == "skip" else "a rehearsal runs the graph's own function"}
    from vitprune.device.native import build_for

    _say("building the plugin")
    architecture = job.facts.get("compute_capability", "")
    report = build_for(architecture, cache=work.parent / "plugin-cache", needs_cuda=not options.rehearse)
    if not report["built"]:
        if options.plugin == "require":
            raise TargetError(242, "the plugin cannot be built here", cause=report["reason"], next_step="vitprune doctor")
        _say(f"no plugin: {report['reason']}")
        return report
    library = Path(report.pop("library"))
    (work / "engine").mkdir(exist_ok=True)
    shutil.copy2(library, work / "engine" / library.name)
    return {**report, "library": f"engine/{library.name}"}


def _engine(job: Job, work: Path, options: argparse.Namespace, plugin: dict[str, Any]) -> dict[str, Any]:
    """Build the engine in a child process; returns the contents of engine.json."""
    from vitprune import backends
    from vitprune.engines import building
    from vitprune.graph.lowering.logits import with_logits_only
    from vitprune.support.onnx_weights import take_along

    folder = work / "engine"
    folder.mkdir(exist_ok=True)
    name = job.target["backend"]
    model, source = folder / "graph.onnx", job.engine_model
    _say("building the engine")
    began = time.monotonic()
    if options.kept_outputs or job.target.get("keep_kept_outputs"):
        shutil.copyfile(source, model)
        take_along(source, model)
    else:
        with_logits_only(source, model)
    request = {
        "backend": name, "model": str(model), "output": str(folder / job.target["engine_file"]), "log": str(folder / "build.log"),
        "batch": job.batch, "workspace_mib": _workspace(job.target),
        "precision": job.facts["precision"], "keep_fp32": job.facts["keep_fp32"], "plugin": _chosen(plugin, work, options),
        "architectures": _architectures(job),
    }  # fmt: skip
    try:
        facts = building.run_child(request, _say, options.timeout)
    finally:
        model.unlink(missing_ok=True)
        (folder / f"{source.name}.data").unlink(missing_ok=True)
    file = folder / job.target["engine_file"]
    document = {
        "schema_version": 1, "target": job.target["name"], "backend": name, "backend_version": backends.get(name).version(),
        "tool_version": VERSION, "host": os.uname().machine, "batch": job.batch, "precision": job.facts["precision"],
        "model_sha256": job.facts["model_sha256"], "engine": file.name, "engine_sha256": sha256_of(file),
        "engine_bytes": file.stat().st_size, "seconds": round(time.monotonic() - began, 2), "facts": facts,
    }  # fmt: skip
    _write(folder / "engine.json", document)  # sessions read it
    return document


def _chosen(plugin: dict[str, Any], work: Path, options: argparse.Namespace) -> str:
    """What the builder is to do for the plugin: take the library that was built, do without, or say itself why there is none."""
    if options.plugin == "skip":
        return "none"
    return str(work / plugin["library"]) if plugin["built"] and plugin["tensorrt"] else "auto"


def _architectures(job: Job) -> list[str]:
    """Compute capabilities the target allows; [] for any."""
    named = job.target.get("architectures") or []
    return [] if named == "auto" else named


def _workspace(target: dict[str, Any]) -> int | None:
    """MiB of the builder's scratch memory: as given, else the target's part of this device's memory, else the runtime's default."""
    given, fraction = target.get("workspace_mib"), target.get("workspace_fraction")
    if given or not fraction:
        return given
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * fraction) >> 20


def _validate(job: Job, name: str, session: Any, version: str) -> dict[str, Any]:
    """Run the stored samples and judge them with the recipe's gates.

    Raises:
        LoadError: VP645 when the runtime gives logits of another shape than the stored ones.
    """
    from vitprune.validation.compare import compare, gate_list, status

    _say("validating against the stored samples")
    reference = job.samples()
    result = session.run(reference["images"])
    if result.logits.shape != reference["logits"].shape:
        raise LoadError(
            645, "the results do not fit the stored samples",
            cause=f"logits {result.logits.shape}, stored {reference['logits'].shape}", next_step="make the package anew",
        )  # fmt: skip
    seen = bool(result.kept)
    comparison = compare(result, reference, job.blocks if seen else [], job.gates, heads=job.heads)
    # An engine without kept outputs shows no decisions: a gate over none of them would always hold.
    gates = [gate for gate in gate_list(comparison, job.gates) if seen or gate.name != "decisions"]
    found = status(gates)
    for gate in gates:
        _say(f"{'✓' if gate.passed else '?' if gate.undecided else '✗'} {gate.text()}")
    return {
        "schema_version": 1, "status": found, "exit_code": 0 if found == "passed" else 1,
        "bundle": job.facts["bundle"], "backend": name, "backend_version": version, "reference": "stored samples",
        "evidence": "graph = reference on CPU" if name == "onnxruntime" else "engine = reference on a GPU",
        "decisions_compared": seen,
        "gates": [{"name": g.name, "limit": g.limit, "seen": g.seen, "passed": g.passed, "undecided": g.undecided} for g in gates],
        "comparison": comparison.document(),
    }  # fmt: skip


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json_text.written(document), encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
