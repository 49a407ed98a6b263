"""Writing a device package: one tar, the same bytes for the same bundle, target and tool.

<bundle>-<target>/
  run.sh run.py     what to start on the device, and the verification it starts with
  package.json      what to do, sha256 of every file
  bundle/           model.onnx, samples.npz, recipe.yaml, manifest.json: a bundle without engines and reports
  plugins/          sources of the native library
  sites/            where it was asked for: the model with one plugin node for every site, which the engine is built from
  profile/          where it was asked for: small models by token count, for run.sh --profile-tokens
  lib/vitprune/     this package's Python sources
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitprune.bundle import Bundle
from vitprune.device import entry
from vitprune.device.hardware import capability_of, machine_of
from vitprune.engines import float32_layers
from vitprune.errors import LoadError, RecipeError, TargetError
from vitprune.methods.base import Geometry
from vitprune.support import json_text, temporary
from vitprune.support.about import VERSION
from vitprune.targets import Target
from vitprune.validation.precision import gates_in_force


def package_name(bundle: Bundle, target: Target) -> str:
    """`<bundle>-<target>`, in letters that every shell and file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{bundle.path.resolve().name}-{target.name}").strip("-.")


def job_of(
    bundle: Bundle, target: Target, batch: tuple[int, int, int], workspace_mib: int | None, stated: dict[str, str] | None = None
) -> dict[str, Any]:
    """Everything the device has to know, resolved: it reads neither recipe nor target file. stated: what the user said of it."""
    geometry = Geometry(**bundle.manifest.model["geometry"])
    gates = gates_in_force(bundle.recipe, bundle.samples()["logits"], geometry)
    return {
        "bundle": bundle.manifest.name, "method": bundle.recipe.prune.method, "target": {**target.model_dump(mode="json"), "workspace_mib": workspace_mib},
        "batch": list(batch), "static_batch": bundle.recipe.graph.static_batch, "io": bundle.manifest.io,
        "input_size": list(bundle.manifest.preprocessing["input_size"]), "blocks": [int(s["block"]) for s in bundle.manifest.sites],
        "gates": gates.model_dump(mode="json"), "features": bundle.recipe.output.features,
        "precision": bundle.recipe.precision.mode,
        "keep_fp32": float32_layers(bundle, "model.onnx"),
        "model_sha256": bundle.manifest.files["model.onnx"], "compute_capability": capability_of(target),
        "stated": stated or {},
    }  # fmt: skip


def write_package(
    bundle: Bundle, target: Target, job: dict[str, Any], output: Path, more: Mapping[str, bytes] | None = None
) -> dict[str, Any]:
    """Write the tar.

    Args:
        bundle: an opened bundle. target: what the engine is for. job: from `job_of`. output: the tar; appears whole or not at all.
        more: further files by their path in the package.

    Returns:
        The package's manifest.

    Raises:
        TargetError: VP239 without the plugin's sources. RecipeError: VP107 when the tar cannot be written.
    """
    contents = package_files(bundle) | dict(more or {})
    manifest: dict[str, Any] = {
        "schema_version": entry.SCHEMA, "kind": entry.KIND, "name": package_name(bundle, target), "tool_version": VERSION,
        "machine": machine_of(target), "job": job, "files": {name: _digest(source) for name, source in sorted(contents.items())},
    }  # fmt: skip
    manifest["sha256"] = entry.seal(manifest)
    contents[entry.MANIFEST] = (json.dumps(manifest, indent=2) + "\n").encode()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with temporary.file(output) as new:
            with new.open("wb") as stream:
                _write_tar(stream, manifest["name"], contents)
            os.replace(new, output)
    except OSError as error:
        raise RecipeError(
            107, f"cannot write '{output}'", cause=error.strerror or str(error), next_step="free some space, or copy the bundle"
        ) from error
    return manifest


def read_manifest(package: Path) -> dict[str, Any]:
    """The manifest inside a package's tar; the files themselves are verified where it is unpacked.

    Raises:
        LoadError: VP640 when it is not a package, VP641 when the manifest was changed.
    """
    try:
        with tarfile.open(package) as tar:
            name = next(
                member.name for member in tar if member.name.count("/") == 1 and member.name.endswith(f"/{entry.MANIFEST}")
            )
            stream = tar.extractfile(name)
            manifest: dict[str, Any] = json_text.parse(stream.read(1 << 24).decode()) if stream is not None else {}
    except (OSError, tarfile.TarError, ValueError, StopIteration) as error:
        raise LoadError(
            640, f"'{package}' is not a device package", cause=f"{type(error).__name__}: {error}", next_step="make it anew"
        ) from error
    if entry.seal(manifest) != manifest.get("sha256"):
        raise LoadError(
            641, f"'{package}' was changed", cause=f"the sha256 of {entry.MANIFEST} does not match", next_step="make it anew"
        )
    return manifest


def package_files(bundle: Bundle) -> dict[str, Path | bytes]:
    """Path inside the package -> file or contents, package.json excepted."""
    root = Path(entry.__file__).resolve().parents[1]
    contents: dict[str, Path | bytes] = {
        "run.sh": root / "device" / "run.sh",
        "run.py": root / "device" / "entry.py",
        "bundle/manifest.json": _bare_manifest(bundle).encode(),
    }
    contents |= {f"bundle/{name}": bundle.path / name for name in _bundle_files(bundle)}
    contents |= {f"lib/vitprune/{path.relative_to(root).as_posix()}": path for path in _python_sources(root)}
    return contents | _plugin_sources()


def _bundle_files(bundle: Bundle) -> list[str]:
    return [name for name in bundle.manifest.files if not name.startswith(("engines/", "reports/"))]


def _bare_manifest(bundle: Bundle) -> str:
    """The bundle's manifest without engines: those of other targets stay here."""
    kept = {name: bundle.manifest.files[name] for name in _bundle_files(bundle)}
    return bundle.manifest.model_copy(update={"files": kept}).sealed().text()


def _python_sources(root: Path) -> list[Path]:
    """The package's own modules; data folders of an installed package ("_recipes", "_plugins") stay out."""
    return [path for path in sorted(root.rglob("*.py")) if path.relative_to(root).parts[0] not in ("_recipes", "_plugins")]


def _plugin_sources() -> dict[str, Path | bytes]:
    from vitprune.plugins import PluginError, find_sources

    try:
        folder = find_sources()
    except PluginError as error:
        raise TargetError(
            239, "the package would lack the plugin's sources", cause=error.cause, next_step=error.next_step
        ) from error
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    shown = ((path.relative_to(folder), path) for path in files)
    return {f"plugins/{name.as_posix()}": path for name, path in shown if not any(part.startswith(".") for part in name.parts)}


def _digest(source: Path | bytes) -> str:
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else entry.sha256_of(source)


def _write_tar(stream: Any, folder: str, contents: dict[str, Path | bytes]) -> None:
    """Sorted names, one fixed time, no owner: nothing of this machine or moment gets in."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted(contents):
            source = contents[name]
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.mode = 0o755 if name == "run.sh" else 0o644
            info.mtime = 315532800  # 1980-01-01, which zip can hold too
            if isinstance(source, bytes):
                info.size = len(source)
                tar.addfile(info, io.BytesIO(source))
            else:
                with source.open("rb") as file:
                    info.size = os.fstat(file.fileno()).st_size
                    tar.addfile(info, file)
