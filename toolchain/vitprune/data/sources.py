"""Labelled images where users have them, read in one way for all commands: class folders, Hugging Face datasets, IDX files, .npz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitprune.data import arrays, folders, hugging_face
from vitprune.data import labels as labelling
from vitprune.data.source import SPLITS, Source
from vitprune.errors import LoadError


def open_split(path: Path, split: str, classes: int, names: Sequence[str] = ()) -> Source | None:
    """Open the split "train" or "val" of a data set to train on.

    Args:
        path: a folder (class folders, with or without a folder per split; a data set saved by Hugging Face datasets; IDX files) or
            an .npz with `images` and `labels`. Without splits all of it is training data. classes: number of classes of the model.
        names: of the model's classes, in its order, where known; of the training split's for "val".

    Returns:
        None when there is no validation split.

    Raises:
        LoadError: VP620 not found, VP621 unreadable, VP622 no images, VP623 an empty class folder, VP624 labels that are no class
            numbers, VP625 no images or labels found in a data set, VP627 class names that do not fit. TargetError: VP201 a package
            is missing.
    """
    if path.is_file() and split == "val":
        return None
    source = _opened(path, split, {})
    if split == "val" and (source is None or source.whole):
        return None
    if source is None:
        raise LoadError(
            622, f"data '{path}' has no training split", cause="it has a validation split only", next_step="add 'train'"
        )
    if source.labels is None or source.ready:
        cause = "it has no 'labels'" if source.labels is None else "images are preprocessed, training takes pixels"
        raise LoadError(
            621, f"data '{path}' does not fit", cause=cause, next_step="store uint8 'images' and 'labels' with numpy.savez"
        )
    if names and source.classes:
        return replace(source, labels=labelling.by_name(source.labels, source.classes, names, source.origin), classes=list(names))
    labelling.in_range(source.labels, classes, str(path), source.name)
    return source


def open_images(
    path: Path, splits: Sequence[str], preprocessing: dict[str, Any], classes: int | None, limit: int | None = None
) -> Source:
    """Open images to run a model on; labels may be absent.

    Args:
        path: as for `open_split`. splits: which to take where the data has several, the first that is there. preprocessing: of the
            model, with the names of its classes, where known. classes: number of classes, or None: labels are not looked at and are
            left out. limit: largest number of images, spread evenly.

    Raises:
        LoadError: as for `open_split`; VP622 the data has splits and none of `splits`. TargetError: VP201.
    """
    source = next((one for split in splits if (one := _opened(path, split, preprocessing)) is not None), None)
    if source is None:
        wanted = " or ".join(f"'{SPLITS[split][0]}'" for split in splits)
        raise LoadError(
            622, f"data '{path}' has no split {wanted}", cause="it has other splits, which this command does not take by itself",
            next_step=f"name the one to take: --data {path / 'SPLIT'}" if path.is_dir() else "add the split",
        )  # fmt: skip
    if classes is None:
        return replace(source, labels=None).first(limit)
    names = preprocessing.get("classes", ())
    if source.labels is not None and source.classes and names:
        labels = labelling.by_name(source.labels, source.classes, names, source.origin)
        source = replace(source, labels=labels, classes=list(names), folders=False)
    elif source.labels is not None:
        if source.folders:
            labelling.by_order(source.classes, classes, source.origin)
        labelling.in_range(source.labels, classes, str(path), source.name)
    return source.first(limit)


def _opened(path: Path, split: str, preprocessing: dict[str, Any]) -> Source | None:
    """The split of what is at `path`, or all of it where it has no splits; None where it has others only."""
    if not path.exists():
        raise LoadError(620, f"data '{path}' not found", next_step="give a folder of class folders, IDX files, or an .npz")
    if not (path.is_file() or path.is_dir()):
        raise LoadError(
            621, f"data '{path}' is not read", cause="it is neither a file nor a folder", next_step="give a folder or an .npz"
        )
    found: Source | None
    if path.is_file():
        found = arrays.from_npz(path, preprocessing)
    elif any(path.glob("*-idx3-ubyte*")):
        found = arrays.from_idx(path, split)
    elif (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        found = hugging_face.from_disk(path, split)
    else:
        found = folders.from_folders(path, split)
    if found is not None and not len(found):
        raise LoadError(622, f"data '{path}' holds no images", cause=f"{found.origin} is empty", next_step="add images")
    return found
