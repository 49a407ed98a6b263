"""build-engine for a device that is not this machine: what can be proven here, the package, and the run over there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitprune.backends._tensorrt.sites import sites_as_plugins
from vitprune.bundle import Bundle
from vitprune.device import preparing
from vitprune.device.collect import PACKAGE_REPORT, collect, is_package_file
from vitprune.device.hardware import is_device, lacking
from vitprune.device.job import SITES_MODEL
from vitprune.device.package import job_of, package_name, read_manifest, write_package
from vitprune.device.remote import Remote, require_tools
from vitprune.device.remote_run import run_package
from vitprune.engines import building, put, under_way
from vitprune.engines.batching import batch_profile
from vitprune.engines.sites import require_sites
from vitprune.errors import RecipeError, TargetError
from vitprune.support.hashing import sha256_of
from vitprune.targets import Choice, Target, capability

PACKAGED = "packaged, engine to be built on the device"


def wants_package(target: Target, root: Path = Path("/")) -> bool:
    """Whether the engine of a target cannot be built on this machine by its nature, whatever is installed."""
    return target.builds_on == "device" and not is_device(target, root)


def require_device(target: Target) -> None:
    """Refuse a build that this machine could do but for what it lacks; a package in its place must be asked for.

    Raises:
        TargetError: VP212, naming the runtime or GPU that is missing.
    """
    if target.builds_on == "device" and (why := lacking(target)):
        raise TargetError(
            212,
            f"an engine for '{target.name}' cannot be built on this machine",
            cause=why,
            next_step="--remote user@host builds it on a machine that has it, --package writes a package to be run there",
        )


def package_engine(
    bundle: Bundle,
    choice: Choice,
    *,
    architecture: str = "",
    batch: tuple[int, int, int] | None = None,
    workspace_mib: int | None = None,
    timeout: float = 1800.0,
    trials: bool = True,
    sites: str = "nodes",
    force: bool = False,
    more: Mapping[str, bytes] | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Prove what can be proven here and write the device package into the bundle.

    Args:
        bundle: gains engines/<target>/<bundle>-<target>.tar. choice: target, release and module; builds_on must be "device".
        architecture: compute capability that the user states, "87" or "8.7".
        batch: (min, opt, max) instead of the recipe's. workspace_mib: memory of the device's builder.
        timeout: seconds of the stand-in build.
        trials: also compile the plugin and build with TensorRT-RTX, where they are installed.
        sites: "nodes", or "plugin": the package also has a graph whose sites are one plugin node each, and builds that.
        force: replace a package that is there and is another one; an equal package is kept. An engine that is there stays in
            either case, until the one of this package comes back from the device.
        more: further files of the package by their path.
        report: called with progress texts.

    Returns:
        The contents of package-report.json, with "path".

    Raises:
        PreflightError: VP4xx. RecipeError: VP106 something else is there, VP107 unwritable, VP108 batch, VP147 and VP199 sites.
        TargetError: VP224, VP225 compute capability, VP239. BuildError: VP537 no site can be one plugin node.
    """
    building.require_timeout(timeout)
    require_sites(choice.target, sites)
    profile, sm = batch_profile(bundle, batch), capability(architecture)
    choice = choice.with_workspace(workspace_mib)
    report("static checks")
    findings = {"preflight": preparing.preflight(bundle, choice, profile, sm)}
    target, stated = choice.narrowed(sm), choice.stated(sm)
    report("writing the package")
    place = bundle.engine_path(target.name)
    job = job_of(bundle, target, profile, target.workspace_mib, stated)
    if sites == "plugin":
        job |= {"sites": sites}
        more = dict(more or {}) | {SITES_MODEL: sites_as_plugins(bundle.model_path)}
    try:
        with under_way(place) as new:
            tar = new / f"{package_name(bundle, target)}.tar"
            manifest = write_package(bundle, target, job, tar, more)
            digest = sha256_of(tar)
            same = (place / tar.name).is_file() and sha256_of(place / tar.name) == digest
            if place.exists() and not same and not force:
                raise RecipeError(
                    106,
                    f"'{place}' holds an engine or another package",
                    cause="it came of another model, batch, target or vitprune, and nothing is overwritten unless asked",
                    next_step="add --force",
                )
            if trials:
                report("compiling the plugin for the device")
                findings["plugin"] = preparing.compile_plugin(target)
                findings["stand_in"] = preparing.stand_in_build(bundle, profile, timeout, report)
            document = {
                "schema_version": 1, "status": PACKAGED, "target": target.name, "package": tar.name, "package_sha256": digest,
                "package_bytes": tar.stat().st_size, "files": len(manifest["files"]), "machine": manifest["machine"], "batch": profile,
                "stated": stated, "engine_there": (place / target.engine_file).is_file(), "findings": findings,
            }  # fmt: skip
            (new / PACKAGE_REPORT).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            _put(bundle, target.name, new, same)
    except OSError as error:
        raise _unwritable(place, error) from error
    return {**document, "path": str(place / tar.name)}


def _put(bundle: Bundle, target: str, new: Path, same: bool) -> None:
    """Put a package into the bundle, its report alone where the `same` package is there; the engine beside it stays."""
    place = bundle.engine_path(target)
    if same:
        with bundle.changing():
            os.replace(new / PACKAGE_REPORT, place / PACKAGE_REPORT)
            bundle.list_engine(target)
        return
    if place.exists():
        for file in place.iterdir():
            if not is_package_file(file.name) and not file.is_symlink():
                (shutil.copytree if file.is_dir() else shutil.copy2)(file, new / file.name)
    put(bundle, target, new, force=True)


def _unwritable(place: Path, error: OSError) -> RecipeError:
    return RecipeError(
        107, f"cannot write '{place}'", cause=error.strerror or str(error), next_step="free some space, or copy the bundle"
    )


def run_remotely(
    bundle: Bundle,
    target: Target,
    package: Path,
    remote: Remote,
    *,
    rehearse: bool = False,
    again: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run a package on a device and take its engine and reports into the bundle.

    Returns:
        The run's result.json with "repeated": whether it had finished before this call.

    Raises:
        TargetError: VP231-VP238.
    """
    require_tools()
    manifest = read_manifest(package)
    incoming = bundle.path / "engines" / f".{target.name}{'-rehearsal' if rehearse else ''}.incoming"
    finished = run_package(
        remote,
        package,
        manifest["name"],
        target.name,
        manifest["machine"],
        incoming,
        rehearse=rehearse,
        again=again,
        report=report,
    )
    result = collect(bundle, target.name, finished.folder, manifest)
    return {**result, "repeated": finished.repeated}
