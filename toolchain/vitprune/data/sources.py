"""Labelled images where users have them: class folders, Hugging Face datasets on disk, IDX files, .npz."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.errors import LoadError, TargetError

SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
IDX = {"train": "train", "val": "t10k"}
EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Source:
    """One split.

    Attributes:
        origin: what it is, for messages. labels: int64 [n]. classes: their names, or [] where nothing names them.
        pixels: uint8 [n,channels,H,W] where all images have one size and are in memory, else None.
        read: number of an image -> PIL image; raises OSError where it cannot be read. name: number -> what to call it.
    """

    origin: str
    labels: NDArray[np.int64]
    classes: list[str]
    pixels: NDArray[np.uint8] | None
    read: Callable[[int], Any]
    name: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> Source:
        """At most `count` images, spread evenly."""
        if count is None or count >= len(self):
            return self
        pick = np.linspace(0, len(self) - 1, count).astype(np.int64)
        pixels = None if self.pixels is None else self.pixels[pick]
        return Source(
            self.origin,
            self.labels[pick],
            self.classes,
            pixels,
            lambda i: self.read(int(pick[i])),
            lambda i: self.name(int(pick[i])),
        )


def open_split(path: Path, split: str, classes: int) -> Source | None:
    """Open the split "train" or "val" of a data set.

    Args:
        path: a folder (class folders, with or without a folder per split; a data set saved by Hugging Face datasets; IDX files) or
            an .npz with `images` and `labels`, which is training data only. classes: number of classes of the model.

    Returns:
        None when there is no validation split.

    Raises:
        LoadError: VP620 not found, VP621 unreadable, VP622 no images, VP623 an empty class folder, VP624 labels out of range,
            VP625 no images or labels found in a data set. TargetError: VP201 a package is missing.
    """
    if not path.exists():
        raise LoadError(620, f"data '{path}' not found", next_step="give a folder of class folders, IDX files, or an .npz")
    found = _open(path, split)
    if found is None:
        return None
    if not len(found):
        raise LoadError(622, f"data '{path}' holds no images", cause=f"split {split} is empty", next_step="add images")
    wrong = np.flatnonzero((found.labels < 0) | (found.labels >= classes))
    if len(wrong):
        label = int(found.labels[wrong[0]])
        raise LoadError(
            624,
            f"labels of '{path}' are out of range",
            cause=f"{found.name(int(wrong[0]))} has label {label}, the model has classes 0 to {classes - 1}; {len(wrong)} such labels",
            next_step="set model.args.num_classes to the data's number of classes, or correct the labels",
        )
    return found


def _open(path: Path, split: str) -> Source | None:
    if path.is_file():
        return _npz(path) if split == "train" else None
    if any(path.glob("*-idx3-ubyte*")):
        return _idx(path, split)
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return _hugging_face(path, split)
    parts = [path / name for name in SPLITS[split] if (path / name).is_dir()]
    others = [path / name for names in SPLITS.values() for name in names if (path / name).is_dir()]
    if parts:
        return _folders(parts[0])
    if others:
        if split == "val":
            return None
        raise LoadError(
            622,
            f"data '{path}' has no training split",
            cause=f"it has '{others[0].name}' but no 'train'",
            next_step="add a folder train",
        )
    return _folders(path) if split == "train" else None


def _folders(path: Path) -> Source:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise LoadError(
            622, f"data '{path}' holds no class folders", cause="it has no subfolders", next_step="use one folder per class"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        own = sorted(file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS)
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
        from PIL import Image

        with files[number].open("rb") as stream:
            return Image.open(stream).convert("RGB")

    return Source(
        f"folder {path.name}", np.asarray(labels, np.int64), [f.name for f in folders], None, read, lambda i: str(files[i])
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or not, as an array of its stored shape.

    Raises:
        LoadError: VP621 truncated or of another type.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if len(raw) < 4 or raw[:3] != b"\0\0\x08":
            raise ValueError("it does not begin like an IDX file of unsigned bytes")
        shape = [int.from_bytes(raw[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(raw[3])]
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise LoadError(
            621, f"'{path}' is not a readable IDX file", cause=str(error), next_step="download the file again"
        ) from error


def _idx(path: Path, split: str) -> Source | None:
    arrays = []
    for kind in ("images-idx3", "labels-idx1"):
        files = sorted(path.glob(f"{IDX[split]}-{kind}-ubyte*"))
        if not files:
            if split == "val":
                return None
            raise LoadError(
                622, f"data '{path}' has no {IDX[split]}-{kind}-ubyte file", cause="IDX data has one file of images and one of labels",
                next_step="add the file",
            )  # fmt: skip
        arrays.append(read_idx(files[0]))
    return _in_memory(f"IDX {path.name} {split}", arrays[0][:, None], arrays[1].astype(np.int64))


def _npz(path: Path) -> Source:
    try:
        with np.load(path, allow_pickle=False) as data:
            images, labels = data["images"], data["labels"].astype(np.int64)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(
            621, f"data '{path}' cannot be read", cause=" ".join(str(error).split()),
            next_step="store uint8 'images' and 'labels' with numpy.savez",
        ) from error  # fmt: skip
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise LoadError(
            621, f"data '{path}' does not fit", cause=f"images are {images.dtype} {images.shape}, training takes uint8 pixels",
            next_step="store uint8 images [n,H,W], [n,channels,H,W] or [n,H,W,channels]",
        )  # fmt: skip
    if images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    return _in_memory(path.name, images[:, None] if images.ndim == 3 else images, labels)


def _in_memory(origin: str, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> Source:
    if len(pixels) != len(labels):
        raise LoadError(
            621,
            f"{origin} does not fit together",
            cause=f"{len(pixels)} images and {len(labels)} labels",
            next_step="check the files",
        )

    def read(number: int) -> Any:
        from PIL import Image

        image = pixels[number]
        return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))

    return Source(origin, labels, [], pixels, read, lambda number: f"image {number}")


def _hugging_face(path: Path, split: str) -> Source | None:
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
    if isinstance(loaded, datasets.DatasetDict):
        here = [name for name in SPLITS[split] if name in loaded]
        if not here:
            if split == "val":
                return None
            raise LoadError(
                622,
                f"data '{path}' has no training split",
                cause=f"splits: {', '.join(loaded)}",
                next_step="name one of them 'train'",
            )
        loaded = loaded[here[0]]
    elif split == "val":
        return None
    image = next((name for name, kind in loaded.features.items() if isinstance(kind, datasets.Image)), None)
    label = next((n for n in ("label", "labels", "fine_label", "class") if n in loaded.features), None)
    if image is None or label is None:
        raise LoadError(
            625, f"data '{path}' has no {'image' if image is None else 'label'} column", cause=f"columns: {', '.join(loaded.features)}",
            next_step="rename the columns to 'image' and 'label'",
        )  # fmt: skip
    names = getattr(loaded.features[label], "names", None) or []
    labels = np.asarray(loaded.with_format("numpy")[label][:], np.int64)
    return Source(f"data set {path.name} {split}", labels, names, None, lambda i: loaded[i][image], lambda i: f"row {i}")
