"""Taking a run's output into the bundle: everything is verified first, the engine folder changes in one step."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from vitprune.bundle import Bundle, sha256_of, write_atomic
from vitprune.device.driver import RESULT
from vitprune.errors import RecipeError, TargetError


def collect(bundle: Bundle, target: str, incoming: Path, package: dict[str, Any]) -> dict[str, Any]:
    """Move a run's output into a bundle.

    Args:
        bundle: gains reports/<target>/ and, from a device, engines/<target>/ with the engine; a rehearsal has
            reports/<target>-rehearsal/ and nothing else.
        target: its name. incoming: the output as it was copied; it is removed. package: the package's manifest.

    Returns:
        The run's result.json.

    Raises:
        TargetError: VP238 when the output is not complete or belongs to another package. RecipeError: VP107 unwritable.
    """
    result = _verified(incoming, package)
    rehearsal = result["mode"] == "rehearsal"
    try:
        _store_reports(bundle, f"{target}-rehearsal" if rehearsal else target, incoming)
        if not rehearsal:
            _store_engine(bundle, target, incoming / "engine")
        shutil.rmtree(incoming)
    except OSError as error:
        raise RecipeError(
            107, f"cannot write into '{bundle.path}'", cause=error.strerror or str(error), next_step="free some space, then again"
        ) from error
    return result


def replace_folder(new: Path, place: Path) -> None:
    """Put a finished folder where another may be."""
    old = place.with_name(f".{place.name}.old-{os.getpid()}")
    if place.exists():
        os.rename(place, old)
    os.rename(new, place)
    shutil.rmtree(old, ignore_errors=True)


def list_engine_files(bundle: Bundle, target: str) -> None:
    """Bring the manifest up to date with engines/<target>/."""
    folder = bundle.engine_path(target)
    bundle.drop_files(f"engines/{target}/")
    bundle.add_files([path.relative_to(bundle.path).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()])


def _verified(incoming: Path, package: dict[str, Any]) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads((incoming / RESULT).read_text(encoding="utf-8"))
        files: dict[str, str] = result["files"]
        belongs = result["package_sha256"] == package["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _incomplete(f"{RESULT}: {type(error).__name__}") from error
    if not belongs:
        raise _incomplete("it is the output of another package")
    for name, digest in files.items():
        file = incoming / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or file.is_symlink():
            raise _incomplete(f"{name} points elsewhere")
        if not file.is_file() or sha256_of(file) != digest:
            raise _incomplete(f"{name} is missing or has another sha256")
    return result


def _incomplete(cause: str) -> TargetError:
    return TargetError(238, "what came back is not usable", cause=cause, next_step="run the same command again")


def _store_reports(bundle: Bundle, name: str, incoming: Path) -> None:
    folder = bundle.path / "reports" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(incoming.glob("*.json")):
        write_atomic(folder / file.name, file.read_bytes())


def _store_engine(bundle: Bundle, target: str, engine: Path) -> None:
    """The folder with the package keeps it and gains the engine."""
    place = bundle.engine_path(target)
    new = Path(tempfile.mkdtemp(prefix=f".{target}.", suffix=".tmp", dir=place.parent))
    try:
        for source in (place, engine):
            shutil.copytree(source, new, dirs_exist_ok=True)
        new.chmod(0o755)
        replace_folder(new, place)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    list_engine_files(bundle, target)
