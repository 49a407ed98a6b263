"""Images to validate on: an .npz file, a folder of class folders, or synthetic ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.errors import LoadError
from vitprune.support import extras


@dataclass(frozen=True)
class Images:
    """Preprocessed images float32 [N,C,H,W], labels int64 [N] or None, and where they come from."""

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    origin: str

    def __len__(self) -> int:
        return len(self.pixels)


def synthetic(count: int, preprocessing: dict[str, Any], seed: int = 0) -> Images:
    """Smooth random images: a bright object on a textured background, so that tokens differ in significance."""
    channels, height, width = preprocessing["input_size"]
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    pixels = np.empty((count, channels, height, width), np.float32)
    for image in range(count):
        cy, cx = rng.uniform(0.25, 0.75, 2) * (height, width)
        radius = rng.uniform(0.12, 0.3) * height
        blob = np.exp(-((rows - cy) ** 2 + (columns - cx) ** 2) / (2 * radius**2))
        for channel in range(channels):
            fy, fx, phase = rng.uniform(0.02, 0.3), rng.uniform(0.02, 0.3), rng.uniform(0, 6.28)
            texture = 0.25 * np.sin(fy * rows + fx * columns + phase) + 0.05 * rng.standard_normal((height, width))
            pixels[image, channel] = np.clip(0.4 + texture * (1 - blob) + rng.uniform(0.2, 0.6) * blob, 0, 1)
    return Images(normalise(pixels, preprocessing), None, f"synthetic (seed {seed})")


def normalise(pixels: NDArray[np.float32], preprocessing: dict[str, Any]) -> NDArray[np.float32]:
    """(pixels - mean) / std per channel; pixels in [0,1]."""
    mean = np.asarray(preprocessing["mean"], np.float32)[:, None, None]
    std = np.asarray(preprocessing["std"], np.float32)[:, None, None]
    return ((pixels - mean) / std).astype(np.float32)


def load(path: Path, preprocessing: dict[str, Any], limit: int) -> Images:
    """At most `limit` images, spread evenly over the data set.

    Raises:
        LoadError: VP620 not found, VP621 unreadable or of another shape, VP622 no images.
    """
    if not path.exists():
        raise LoadError(620, f"data '{path}' not found", next_step="give an .npz file or a folder with one folder per class")
    return _folder(path, preprocessing, limit) if path.is_dir() else _npz(path, preprocessing, limit)


def _spread(total: int, limit: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, total - 1, min(limit, total)).astype(np.int64))


def _npz(path: Path, preprocessing: dict[str, Any], limit: int) -> Images:
    shape = tuple(preprocessing["input_size"])
    try:
        with np.load(path, allow_pickle=False) as data:
            images, labels = data["images"], data["labels"] if "labels" in data.files else None
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(
            621,
            f"data '{path}' cannot be read",
            cause=" ".join(str(error).split()),
            next_step="store arrays 'images' and, for accuracy, 'labels' with numpy.savez",
        ) from error
    if not len(images):
        raise LoadError(622, f"data '{path}' holds no images", next_step="store at least one image")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1:] != shape and images.shape[-1] == shape[0]:
        images = images.transpose(0, 3, 1, 2)
    if images.shape[1:] != shape:
        raise LoadError(
            621,
            f"data '{path}' does not fit the model",
            cause=f"images are {images.shape[1:]}, the model takes {shape}",
            next_step=f"store images of shape {shape}",
        )
    pick = _spread(len(images), limit)
    pixels = images[pick]
    raw = pixels.dtype == np.uint8
    ready = normalise(pixels.astype(np.float32) / 255, preprocessing) if raw else pixels.astype(np.float32)
    return Images(ready, None if labels is None else labels[pick].astype(np.int64), path.name)


def _folder(path: Path, preprocessing: dict[str, Any], limit: int) -> Images:
    extras.import_torch("reading an image folder")
    from timm.data import create_transform
    from torchvision.datasets import ImageFolder

    try:
        dataset = ImageFolder(str(path))
    except (FileNotFoundError, OSError) as error:
        raise LoadError(
            622,
            f"data '{path}' holds no class folders with images",
            cause=str(error).splitlines()[0],
            next_step="use one folder per class",
        ) from error
    transform = create_transform(
        input_size=tuple(preprocessing["input_size"]), is_training=False, interpolation=preprocessing["interpolation"],
        mean=tuple(preprocessing["mean"]), std=tuple(preprocessing["std"]), crop_pct=preprocessing["crop_pct"],
    )  # fmt: skip
    pixels, labels = [], []
    for position in _spread(len(dataset), limit):
        file, label = dataset.samples[int(position)]
        try:
            image = dataset.loader(file)
        except OSError as error:
            raise LoadError(
                621, f"image '{file}' cannot be read", cause=str(error), next_step="remove or replace the file"
            ) from error
        pixels.append(np.asarray(transform(image), dtype=np.float32))
        labels.append(label)
    return Images(np.stack(pixels), np.asarray(labels, np.int64), path.name)
