"""Data sets saved by Hugging Face `datasets`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.data import labels as labelling
from vitprune.data.pixels import picture
from vitprune.data.source import SPLITS, Source
from vitprune.errors import LoadError, TargetError


def from_disk(path: Path, split: str) -> Source | None:
    """A `Dataset` (it has no splits) or a split of a `DatasetDict` that `save_to_disk` wrote; None where the split is not there.

    Raises:
        TargetError: VP201 datasets is not installed. LoadError: VP621 unreadable, VP624 labels, VP625 no image or label column.
    """
    try:
        import datasets
    except ImportError as error:
        raise TargetError(
            201,
            "reading a Hugging Face data set needs datasets",
            cause="the package is not installed",
            next_step="pip install datasets",
        ) from error
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise LoadError(
            621, f"data '{path}' cannot be read", cause=str(error).splitlines()[0], next_step="save it again with save_to_disk"
        ) from error
    whole = not isinstance(loaded, datasets.DatasetDict)
    if not whole:
        here = [name for name in SPLITS[split] if name in loaded]
        if not here:
            return None
        loaded = loaded[here[0]]
    image = next((name for name, kind in loaded.features.items() if isinstance(kind, datasets.Image)), None)
    label = next((n for n in ("label", "labels", "fine_label", "class") if n in loaded.features), None)
    if image is None or label is None:
        raise LoadError(
            625, f"data '{path}' has no {'image' if image is None else 'label'} column", cause=f"columns: {', '.join(loaded.features)}",
            next_step="rename the columns to 'image' and 'label'",
        )  # fmt: skip
    names = getattr(loaded.features[label], "names", None) or []
    origin = f"data set {path.name}" + ("" if whole else f", split {here[0]}")
    labels = labelling.checked(np.asarray(loaded.with_format("numpy")[label][:]), len(loaded), origin)
    if names and (labels < 0).any():  # datasets writes -1 where a test split has no labels
        labelling.in_range(labels, len(names), origin, lambda number: f"row {number}")

    encoded = loaded.cast_column(image, datasets.Image(decode=False))

    def read(number: int) -> Any:
        found = encoded[number][image]
        if found["bytes"] is not None:
            return picture(io.BytesIO(found["bytes"]))
        with Path(found["path"]).open("rb") as stream:
            shown = picture(stream)
            shown.load()
            return shown

    return Source(origin, len(loaded), labels, list(names), None, read, lambda number: f"row {number}", whole=whole)
