"""Build an engine for a target and add it to a bundle."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitprune.engines import building
from vitprune.engines.batching import batch_profile, require_batching
from vitprune.engines.requirements import require_backend
from vitprune.engines.sites import require_sites
from vitprune.errors import BuildError, RecipeError
from vitprune.graph.lowering.logits import with_logits_only
from vitprune.support import temporary
from vitprune.support.about import VERSION
from vitprune.support.hashing import sha256_of
from vitprune.support.locking import locked
from vitprune.support.replacing import replaced

if TYPE_CHECKING:  # a device package builds engines where there is no pydantic
    from vitprune.bundle import Bundle
    from vitprune.targets import Target


def build_engine(
    bundle: Bundle,
    target: Target,
    *,
    batch: tuple[int, int, int] | None = None,
    workspace_mib: int | None = None,
    plugin: str = "auto",
    batching: str = "padded",
    sites: str = "nodes",
    embed_plugin: bool = False,
    kept_outputs: bool = False,
    timeout: float = 1800.0,
    force: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Build in a child process; the engine folder appears whole or not at all.

    Args:
        bundle: an opened bundle; its manifest gains the new files.
        target: what to build for.
        batch: (min, opt, max) instead of the recipe's.
        workspace_mib: memory limit of the builder.
        plugin: "auto", "none" or a library; embed_plugin: put it into the engine, for TensorRT.
        batching: "padded", or "packed" (see `engines.batching`).
        sites: "nodes", or "plugin" (see `engines.sites`).
        kept_outputs: the engine also returns the kept patches, which lets `validate` compare decisions.
        timeout: seconds.
        force: replace an engine that is there; it stays until the new one is complete, and when that fails.
        report: called with progress texts.

    Returns:
        The contents of engine.json.

    Raises:
        TargetError: VP21x. RecipeError: VP106 an engine exists, VP107 unwritable, VP108 batch, VP147 and VP199 batching and sites. BuildError: VP5xx.
    """
    backend = require_backend(target)
    folder = bundle.engine_path(target.name)
    if folder.exists() and not force:
        raise exists(target.name)
    building.require_timeout(timeout)
    require_batching(bundle, target, batching)
    require_sites(target, sites, plugin)
    profile = batch_profile(bundle, batch)
    try:
        with under_way(folder) as new:
            document = _build(
                bundle,
                target,
                backend,
                new,
                profile,
                workspace_mib,
                plugin,
                batching,
                sites,
                embed_plugin,
                kept_outputs,
                timeout,
                report,
            )
            put(bundle, target.name, new, force)
    except OSError as error:
        raise RecipeError(
            107,
            f"cannot write '{folder}'",
            cause=error.strerror or str(error),
            next_step="free some space or copy the bundle elsewhere",
        ) from error
    return document


@contextmanager
def under_way(folder: Path) -> Iterator[Path]:
    """A folder beside engines/<target>/ to build in; engines/ itself goes again when nothing came of it."""
    folder.parent.mkdir(exist_ok=True)
    try:
        with temporary.folder(folder) as new:
            yield new
    finally:
        with suppress(OSError):  # it holds something, or is gone
            folder.parent.rmdir()


def put(bundle: Bundle, target: str, new: Path, force: bool) -> None:
    """Move a complete engine folder into a bundle and list it, both or neither; other builds wait for it.

    Raises:
        RecipeError: VP106 an engine came there meanwhile. LoadError: VP601, VP608 the bundle is not what it was.
    """
    folder = bundle.engine_path(target)
    with bundle.changing(), locked(folder.parent):
        if os.path.lexists(folder) and not force:
            raise exists(target)
        with replaced(new, folder):
            bundle.list_engine(target)


def exists(target: str) -> RecipeError:
    """The error of an engine that is there already."""
    return RecipeError(
        106,
        f"an engine for '{target}' exists in the bundle",
        cause="nothing is overwritten unless asked",
        next_step="add --force",
    )


def _build(
    bundle: Bundle, target: Target, backend: Any, folder: Path, profile: tuple[int, int, int], workspace_mib: int | None, plugin: str,
    batching: str, sites: str, embed_plugin: bool, kept_outputs: bool, timeout: float, report: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Build every model file into `folder` and write engine.json there; returns its contents."""
    document = {
        "schema_version": 1, "target": target.name, "backend": target.backend, "backend_version": backend.version(),
        "tool_version": VERSION, "host": platform.machine(), "batch": profile, "precision": bundle.recipe.precision.mode,
        **({"batching": batching} if batching != "padded" else {}),
        **({"sites": sites} if sites != "nodes" else {}),
    }  # fmt: skip
    _take_timing_cache(bundle.engine_path(target.name), folder)
    options: dict[str, Any] = {
        "batch": profile, "workspace_mib": workspace_mib or target.workspace_mib, "plugin": plugin, "batching": batching, "sites": sites, "embed_plugin": embed_plugin,
        "kept_outputs": target.keep_kept_outputs or kept_outputs, "precision": bundle.recipe.precision.mode,
        "rest": bundle.recipe.precision.floats,
        "architectures": [] if target.architectures == "auto" else target.architectures,
    }  # fmt: skip
    parts = [_build_model(bundle, target, name, folder, options, report, timeout) for name in bundle.model_files]
    document |= parts[0] if len(parts) == 1 else _together(parts)
    (folder / "engine.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return document


def _build_model(
    bundle: Bundle, target: Target, name: str, folder: Path, options: dict[str, Any], report: Callable[[str], None], timeout: float,
) -> dict[str, Any]:  # fmt: skip
    """Build one model file into `folder`; returns its entry of engine.json."""
    began = time.monotonic()
    several = len(bundle.model_files) > 1
    engine = folder / (f"{Path(name).stem}{Path(target.engine_file).suffix}" if several else target.engine_file)
    request: dict[str, Any] = {
        **options, "keep_fp32": float32_layers(bundle, name), "backend": target.backend, "model": str(_model_for(bundle, options["kept_outputs"], folder, name)),
        "output": str(engine), "log": str(folder / (f"build-{Path(name).stem}.log" if several else "build.log")),
        "batch": _fixed_batch(bundle, name) or options["batch"],
    }  # fmt: skip
    try:
        facts = building.run_child(request, (lambda text: report(f"{name}: {text}")) if several else report, timeout)
    except BuildError:
        _keep_log(bundle, Path(request["log"]), target)
        raise
    for copy in ("graph.onnx", f"{name}.data"):
        (folder / copy).unlink(missing_ok=True)
    return {
        "model_sha256": bundle.manifest.files[name], "engine": engine.name, "engine_sha256": sha256_of(engine),
        "engine_bytes": engine.stat().st_size, "seconds": round(time.monotonic() - began, 2), "facts": facts,
    }  # fmt: skip


def float32_layers(bundle: Bundle, name: str) -> list[str]:
    """Patterns of precision.keep_fp32, and names of what the graph itself leaves in float32 where the rest is in another type."""
    if bundle.recipe.precision.mode == "fp32":
        return bundle.recipe.precision.keep_fp32
    from vitprune.graph.precision import audit
    from vitprune.support.onnx_file import read_model

    return [*bundle.recipe.precision.keep_fp32, *audit.float32_layers(read_model(bundle.path / name))]


def _together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Entries of engine.json for a bundle of several models; layers are counted over all of them."""
    counts: dict[str, dict[str, int]] = {}
    for key in ("layers_by_precision", "quantising_layers"):
        total: Counter[str] = Counter()
        for part in parts:
            total.update(part["facts"].get(key, {}))
        counts |= {key: dict(sorted(total.items()))} if total else {}
    return {
        "engine": [part["engine"] for part in parts], "engine_bytes": sum(part["engine_bytes"] for part in parts),
        "seconds": round(sum(part["seconds"] for part in parts), 2), "parts": parts,
        "facts": {"runtime": parts[0]["facts"]["runtime"], **counts},
    }  # fmt: skip


def _fixed_batch(bundle: Bundle, name: str) -> tuple[int, int, int] | None:
    """The batch of a model file that has a fixed one, whatever the recipe's profile."""
    inputs = bundle.manifest.io.get("models", {}).get(name, {}).get("inputs", [])
    size = inputs[0]["shape"][0] if inputs else None
    return (size, size, size) if isinstance(size, int) else None


def _take_timing_cache(old: Path, new: Path) -> None:
    """Timings of kernels outlive a rebuild."""
    if (old / "timing.cache").is_file() and not (old / "timing.cache").is_symlink():
        shutil.copyfile(old / "timing.cache", new / "timing.cache")


def _keep_log(bundle: Bundle, log: Path, target: Target) -> None:
    if log.is_file():
        bundle.write_report(f"build-{target.name}.log", log.read_text(encoding="utf-8", errors="replace"))


def _model_for(bundle: Bundle, with_kept: bool, folder: Path, name: str) -> Path:
    """The model file, or a copy without the kept outputs: data-dependent outputs would need an allocator at run time."""
    if with_kept:
        return bundle.path / name
    path = folder / "graph.onnx"
    with_logits_only(bundle.path / name, path)
    return path
