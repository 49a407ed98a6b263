"""One folder per class, with or without a folder per split above."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitprune.data.pixels import picture
from vitprune.data.source import NAMES, SPLITS, Source
from vitprune.errors import LoadError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


def _visible(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """Image files in a folder and below.

    Raises:
        LoadError: VP621 something is called like an image and is none: a pipe, a device, a link to nowhere.
    """
    named = sorted(file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS and not file.is_dir())
    for file in named:
        if not file.is_file():
            raise LoadError(
                621, f"image '{file}' cannot be read", cause="it is no regular file", next_step="remove or replace it"
            )
    return named


def split_folder(path: Path, split: str) -> Path | None:
    """The folder of a split, `path` itself where its subfolders are classes, or None where it has other splits only.

    Subfolders called train, val, test ... are splits when class folders lie in them and no other subfolder holds images; they are
    classes when images lie right in them and other classes stand beside them.

    Raises:
        LoadError: VP622 neither is the case.
    """
    subfolders = _visible(path)
    named = [folder for folder in subfolders if folder.name.lower() in NAMES]
    if not named:
        return path
    nested = [folder for folder in named if _visible(folder)]
    others = [folder for folder in subfolders if folder not in named]
    if not nested and others:
        return path
    strangers = [folder for folder in others if any(f.suffix.lower() in EXTENSIONS for f in folder.rglob("*"))]
    if not nested or strangers:
        cause = (
            f"'{named[0].name}' may be a split or a class: '{strangers[0].name}' beside it holds images too"
            if strangers
            else f"'{named[0].name}' holds no class folders"
        )
        raise LoadError(
            622, f"the splits of data '{path}' are not understood", cause=cause,
            next_step=f"use one folder per class, in {named[0].name}/ and the like; or name one split: --data {named[0]}",
        )  # fmt: skip
    return next((folder for name in SPLITS[split] for folder in nested if folder.name.lower() == name), None)


def from_folders(root: Path, split: str) -> Source | None:
    """Class folders in `root` or in its split; labels count them alphabetically. None where `root` has other splits only.

    Raises:
        LoadError: VP622 there are none, VP623 one is empty.
    """
    path = split_folder(root, split)
    if path is None:
        return None
    found = _visible(path)
    if not found:
        raise LoadError(
            622, f"data '{path}' holds no class folders", cause="it has no subfolders", next_step="use one folder per class"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(found):
        own = _images(folder)
        if not own:
            raise LoadError(
                623,
                f"class folder '{folder}' is empty",
                cause=f"it holds no file that ends in {', '.join(sorted(EXTENSIONS))}; labels count folders, so none may be skipped",
                next_step="add images or remove the folder",
            )
        files += own
        labels += [label] * len(own)

    def read(number: int) -> Any:
        with files[number].open("rb") as stream:
            return picture(stream).convert("RGB")

    origin = f"folder {path.name}" if path == root else f"folder {root.name}, split {path.name}"
    numbers = np.asarray(labels, np.int64)
    names = [folder.name for folder in found]
    return Source(origin, len(files), numbers, names, None, read, lambda i: str(files[i]), folders=True, whole=path == root)
