"""Images in memory: .npz and IDX files."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.data import labels as labelling
from vitprune.data import pixels as pixel_forms
from vitprune.data.source import Source
from vitprune.errors import LoadError
from vitprune.support.arrays import load_arrays
from vitprune.support.files import require_regular
from vitprune.support.limits import limits, require

IDX = {"train": "train", "val": "t10k"}


def from_npz(path: Path, preprocessing: dict[str, Any]) -> Source:
    """An .npz with `images` [n,H,W], [n,C,H,W] or [n,H,W,C] and, where known, `labels` [n], `classes` (names) and `pixels`.

    Args:
        preprocessing: of the model, for the order of axes and the form of float images; {} where there is none.

    Raises:
        LoadError: VP621 unreadable or not taken, VP622 no images, VP624 labels.
    """
    try:
        data = load_arrays(path)
        if "images" not in data:
            raise ValueError(f"it has no array 'images' (it has {', '.join(data)})")
        images = data["images"]
        labels, names, form = (data.get(key) for key in ("labels", "classes", "pixels"))
    except (OSError, ValueError) as error:
        raise LoadError(
            621,
            f"data '{path}' cannot be read",
            cause=" ".join(str(error).split()) or "it is empty",
            next_step="store arrays 'images' and, for accuracy, 'labels' with numpy.savez",
        ) from error
    if images.ndim not in (3, 4):
        raise LoadError(
            621, f"data '{path}' does not fit", cause=f"images have shape {images.shape}",
            next_step="store images [n,H,W], [n,channels,H,W] or [n,H,W,channels]",
        )  # fmt: skip
    if not len(images):
        raise LoadError(622, f"data '{path}' holds no images", next_step="store at least one image")
    values, ready = pixel_forms.checked(images, None if form is None else str(form), preprocessing, path.name)
    numbers = None if labels is None else labelling.checked(labels, len(images), path.name)
    own = _names(names, numbers, path)
    return _in_memory(path.name, _channels_first(values, preprocessing), numbers, own, ready)


def _names(names: Any, labels: NDArray[np.int64] | None, path: Path) -> list[str]:
    if names is None:
        return []
    if names.ndim != 1 or names.dtype.kind != "U":
        raise LoadError(
            621, f"'classes' of '{path}' are no names", cause=f"it is {names.dtype} {names.shape}",
            next_step="store an array of texts, one per class",
        )  # fmt: skip
    found = [str(name) for name in names]
    if labels is not None:
        labelling.in_range(labels, len(found), path.name, lambda number: f"image {number}")
    return found


def _channels_first(images: NDArray[Any], preprocessing: dict[str, Any]) -> NDArray[Any]:
    if images.ndim == 3:
        return images[:, None]
    if "input_size" in preprocessing:
        channels = preprocessing["input_size"][0]
        last = images.shape[-1] == channels and list(images.shape[1:]) != list(preprocessing["input_size"])
    else:
        last = images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3)
    return images.transpose(0, 3, 1, 2) if last else images


def _unpacked(path: Path) -> bytes:
    """The bytes of a file, gzipped or not, as far as they are read."""
    require_regular(path)
    most = limits.array + 1 if limits.on else -1
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        raw = stream.read(most)
    require(f"'{path.name}'", len(raw), limits.array)
    return raw


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or not, as an array of its stored shape.

    Raises:
        LoadError: VP621 truncated or of another type.
    """
    try:
        raw = _unpacked(path)
        if len(raw) < 4 or raw[:3] != b"\0\0\x08":
            raise ValueError("it does not begin like an IDX file of unsigned bytes")
        shape = [int.from_bytes(raw[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(raw[3])]
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise LoadError(
            621, f"'{path}' is not a readable IDX file", cause=str(error), next_step="download the file again"
        ) from error


def from_idx(path: Path, split: str) -> Source | None:
    """IDX files (train-images-idx3-ubyte, t10k-labels-idx1-ubyte, gzipped or not), or None where the split has none.

    Raises:
        LoadError: VP621 unreadable, VP622 one of the two files is missing, VP624 labels.
    """
    files = {kind: sorted(path.glob(f"{IDX[split]}-{kind}-ubyte*")) for kind in ("images-idx3", "labels-idx1")}
    if not any(files.values()):
        return None
    for kind, own in files.items():
        if not own:
            raise LoadError(
                622, f"data '{path}' has no {IDX[split]}-{kind}-ubyte file", cause="IDX data has one file of images and one of labels",
                next_step="add the file",
            )  # fmt: skip
    images, labels = (read_idx(own[0]) for own in files.values())
    if images.ndim != 3:
        raise LoadError(
            621, f"'{files['images-idx3'][0]}' holds no images", cause=f"its shape is {images.shape}", next_step="check it"
        )
    origin = f"IDX {path.name} {split}"
    found = _in_memory(origin, images[:, None], labelling.checked(labels, len(images), origin), [], False)
    return replace(found, whole=False)


def _in_memory(origin: str, pixels: NDArray[Any], labels: NDArray[np.int64] | None, names: list[str], ready: bool) -> Source:
    def read(number: int) -> Any:
        from PIL import Image

        image = pixels[number] if pixels.dtype == np.uint8 else np.rint(pixels[number] * 255).astype(np.uint8)
        if len(image) not in (1, 3):
            raise OSError(f"it has {len(image)} channels, a picture has 1 or 3")
        return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))

    return Source(origin, len(pixels), labels, names, pixels, read, lambda number: f"image {number}", ready=ready)
