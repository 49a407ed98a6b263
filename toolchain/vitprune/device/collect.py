"""Taking a run's output into the bundle: everything is verified first, the engine folder changes in one step."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from vitprune.bundle import Bundle, write_atomic
from vitprune.device.driver import RESULT
from vitprune.engines import put, under_way
from vitprune.errors import RecipeError, TargetError
from vitprune.support import json_text
from vitprune.support.files import inside, linked, read_text
from vitprune.support.hashing import sha256_of

PACKAGE_REPORT = "package-report.json"


def collect(bundle: Bundle, target: str, incoming: Path, package: dict[str, Any]) -> dict[str, Any]:
    """Move a run's output into a bundle.

    Args:
        bundle: gains reports/<target>/ and, from a device, engines/<target>/ with the engine; a rehearsal has
            reports/<target>-rehearsal/ and nothing else. An engine that failed its gates does not replace one that is there.
        target: its name. incoming: the output as it was copied; it is removed. package: the package's manifest.

    Returns:
        The run's result.json, with "engine_stored".

    Raises:
        TargetError: VP238 when the output is not complete or belongs to another package. RecipeError: VP107 unwritable.
    """
    result = _verified(incoming, package)
    rehearsal = result["mode"] == "rehearsal"
    try:
        _store_reports(bundle, f"{target}-rehearsal" if rehearsal else target, incoming)
        stored = not rehearsal and (result["exit_code"] == 0 or not _has_engine(bundle.engine_path(target)))
        if stored:
            _store_engine(bundle, target, incoming / "engine")
        shutil.rmtree(incoming)
    except OSError as error:
        raise RecipeError(
            107, f"cannot write into '{bundle.path}'", cause=error.strerror or str(error), next_step="free some space, then again"
        ) from error
    return {**result, "engine_stored": stored}


def _has_engine(folder: Path) -> bool:
    return folder.is_dir() and any(not is_package_file(file.name) for file in folder.iterdir())


def is_package_file(name: str) -> bool:
    """Whether a file of an engine folder belongs to the package and not to the engine."""
    return name == PACKAGE_REPORT or name.endswith(".tar")


def _verified(incoming: Path, package: dict[str, Any]) -> dict[str, Any]:
    try:
        result = json_text.parse(read_text(incoming / RESULT))
        files: dict[str, str] = result["files"]
        belongs = result["package_sha256"] == package["sha256"]
        if result["mode"] not in ("device", "rehearsal") or result["exit_code"] not in (0, 1, 2) or not isinstance(files, dict):
            raise ValueError("it is not what a run writes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _incomplete(f"{RESULT}: {type(error).__name__}") from error
    if not belongs:
        raise _incomplete("it is the output of another package")
    for name, digest in files.items():
        if not inside(name) or linked(incoming, name):
            raise _incomplete(f"{name} points elsewhere")
        file = incoming / name
        if not file.is_file() or sha256_of(file) != digest:
            raise _incomplete(f"{name} is missing or has another sha256")
    for place, folders, names in os.walk(incoming):
        for name in [*folders, *names]:
            file = Path(place) / name
            relative = file.relative_to(incoming).as_posix()
            if file.is_symlink() or (name in names and relative != RESULT and relative not in files):
                raise _incomplete(f"{relative} is not what the run wrote")
    return dict(result)


def _incomplete(cause: str) -> TargetError:
    return TargetError(238, "what came back is not usable", cause=cause, next_step="run the same command again")


def _store_reports(bundle: Bundle, name: str, incoming: Path) -> None:
    folder = bundle.path / "reports" / name
    if linked(bundle.path, f"reports/{name}"):
        raise OSError(errno.ELOOP, f"reports/{name} is a symbolic link")
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(incoming.glob("*.json")):
        write_atomic(folder / file.name, file.read_bytes())


def _store_engine(bundle: Bundle, target: str, engine: Path) -> None:
    """The folder keeps its package; the engine takes the place of an earlier one, of which nothing stays."""
    place = bundle.engine_path(target)
    with under_way(place) as new:
        shutil.copytree(engine, new, dirs_exist_ok=True)
        for file in place.iterdir():
            if is_package_file(file.name) and not file.is_symlink():
                shutil.copy2(file, new / file.name)
        put(bundle, target, new, force=True)
