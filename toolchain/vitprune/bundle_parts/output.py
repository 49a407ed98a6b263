"""Where bundles are put: a new folder appears whole, an old one is replaced only when it is a bundle, and stays until then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitprune.bundle_parts.manifest import MANIFEST, read_manifest
from vitprune.errors import LoadError, RecipeError
from vitprune.support import temporary
from vitprune.support.locking import locked
from vitprune.support.replacing import move_into_nothing, replace_folder


@contextmanager
def folder_in_place(output: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `output`; move it into place when the body succeeds, remove it otherwise.

    Raises:
        RecipeError: VP106 when the output exists and `force` is off or it is no bundle, VP107 when it cannot be written.
    """
    check_output(output, force)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with temporary.folder(output) as new:
            yield new
            with locked(output.parent):
                if force and os.path.lexists(output):
                    check_output(output, force)
                    replace_folder(new, output)
                else:
                    move_into_nothing(new, output)
    except FileExistsError as error:
        raise _exists(output) from error
    except OSError as error:
        raise unwritable(output, error) from error


def check_output(output: Path, force: bool) -> None:
    """Refuse an output that cannot be, early, before any work is done: `force` replaces bundles and empty folders, nothing else.

    Raises:
        RecipeError: VP106 something is there, VP107 nothing can be there.
    """
    try:
        if not os.path.lexists(output):
            _require_place(output)
            return
        if not force:
            raise _exists(output)
        if why := _no_bundle(output):
            raise RecipeError(
                106, f"output '{output}' exists and is not replaced", cause=f"--force only replaces bundles: {why}",
                next_step="choose another -o, or remove it yourself",
            )  # fmt: skip
    except OSError as error:
        raise unwritable(output, error) from error


def require_new_file(output: Path, force: bool) -> None:
    """Refuse the place of a new file early, before any work is done; its folder must be there.

    Raises:
        RecipeError: VP106 something is there, VP107 nothing can be there.
    """
    if os.path.lexists(output) and (not force or not output.is_file()):
        raise _exists(output)
    try:
        if not output.parent.is_dir():
            raise FileNotFoundError(2, f"there is no folder '{output.parent}'")
        _require_place(output)
    except OSError as error:
        raise unwritable(output, error) from error


def _exists(output: Path) -> RecipeError:
    return RecipeError(
        106,
        f"output '{output}' exists",
        cause="nothing is overwritten unless asked",
        next_step="choose another -o, or add --force",
    )


def _no_bundle(output: Path) -> str:
    """Why a path holds something else than a bundle, or more than one; "" for a bundle and for an empty folder."""
    if output.is_symlink():
        return "it is a symbolic link; name the folder itself"
    if not output.is_dir():
        return "it is a file"
    inside = sorted(entry.name for entry in output.iterdir())
    if not inside:
        return ""
    try:
        manifest = read_manifest(output)
    except LoadError as error:
        return error.cause
    known = {MANIFEST, "engines", "reports", *(name.split("/")[0] for name in manifest.files)}
    strange = [name for name in inside if name not in known and not name.endswith(temporary.SUFFIX)]
    return f"'{strange[0]}' in it is not of the bundle" if strange else ""


def _require_place(output: Path) -> None:
    """Refuse a name that no file can have, and a place below a file."""
    there = output.parent
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(20, f"'{there}' is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(13, f"'{there}' cannot be written")
    for part in output.parts:
        if len(os.fsencode(part)) > 255:
            raise OSError(36, "the name is too long")


def unwritable(output: Path, error: OSError) -> RecipeError:
    """The error of a place that cannot be written."""
    return RecipeError(
        107, f"cannot write '{output}'", cause=f"{error.strerror or error}", next_step="free some space or choose another -o"
    )
