"""Images as a model reads them: from data on disk, or synthetic ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.bundle import Bundle
from vitprune.data.pixels import normalise as normalise
from vitprune.data.preprocessing import for_show, of_bundle, require_known
from vitprune.data.source import Source
from vitprune.data.sources import open_images
from vitprune.errors import LoadError
from vitprune.support import extras


@dataclass(frozen=True)
class Images:
    """Preprocessed images float32 [N,C,H,W], labels int64 [N] or None, where they come from, and the classes' names where given."""

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    origin: str
    classes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)

    def naming(self, preprocessing: dict[str, Any]) -> dict[str, Any]:
        """The description of a model's images with the names of the classes, where these images brought them."""
        return preprocessing if not self.classes or "classes" in preprocessing else preprocessing | {"classes": self.classes}


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
    return Images(normalise(pixels, for_show(preprocessing)), None, f"synthetic (seed {seed})")


def for_bundle(bundle: Bundle, path: Path, limit: int, splits: Sequence[str] = ("val",)) -> Images:
    """At most `limit` images for a bundle; errors as for `load`."""
    classes = bundle.manifest.model["geometry"].get("classes") or None
    return load(path, of_bundle(bundle), limit, classes=classes, splits=splits)


def load(
    path: Path, preprocessing: dict[str, Any], limit: int, *, classes: int | None, splits: Sequence[str] = ("val",)
) -> Images:
    """At most `limit` images, spread evenly over the data set.

    Args:
        path, classes, splits: as for `sources.open_images`. preprocessing: of the model, see `data.preprocessing`.

    Raises:
        LoadError: VP62x as there; VP621 an image cannot be read or ready-made ones have another shape; VP628 pixels need resizing
            or normalising and the model's preprocessing is not known. TargetError: VP201 a package is missing.
    """
    source = open_images(path, splits, preprocessing, classes, limit)
    shape = tuple(preprocessing["input_size"])
    fits = source.pixels is not None and source.pixels.shape[1:] == shape
    complete = classes is not None and len(source.classes) == classes
    named = source.classes if complete else []
    if source.pixels is not None and source.ready:
        if not fits:
            raise LoadError(
                621,
                f"data '{path}' does not fit the model",
                cause=f"images are preprocessed and of shape {source.pixels.shape[1:]}, the model takes {shape}",
                next_step=f"store images of shape {shape}, or uint8 pixels, which are resized",
            )
        return Images(np.ascontiguousarray(source.pixels), source.labels, source.origin, named)
    if source.pixels is not None and fits:
        scale = np.float32(255 if source.pixels.dtype == np.uint8 else 1)
        return Images(normalise(source.pixels.astype(np.float32) / scale, preprocessing), source.labels, source.origin, named)
    require_known(preprocessing, f"images of '{path}' cannot be resized and normalised as the model was trained")
    prepare = Preparation(preprocessing)
    return Images(np.stack([_one(source, i, prepare) for i in range(len(source))]), source.labels, source.origin, named)


def _one(source: Source, number: int, prepare: Preparation) -> NDArray[np.float32]:
    try:
        image = source.read(number)
        image.load()
        return np.asarray(prepare(image), dtype=np.float32)
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises all three on damaged files
        raise LoadError(
            621,
            f"image '{source.name(number)}' cannot be read",
            cause=" ".join(str(error).split()) or type(error).__name__,
            next_step="remove or replace it",
        ) from error


class Preparation:
    """Resizes, crops and normalises PIL images as a model's evaluation does."""

    def __init__(self, preprocessing: dict[str, Any]) -> None:
        extras.import_torch("resizing images")
        from timm.data import create_transform

        self.mode = "L" if preprocessing["input_size"][0] == 1 else "RGB"
        self._transform: Any = create_transform(
            input_size=tuple(preprocessing["input_size"]), is_training=False, interpolation=preprocessing["interpolation"],
            mean=tuple(preprocessing["mean"]), std=tuple(preprocessing["std"]), crop_pct=preprocessing["crop_pct"],
            crop_mode=preprocessing.get("crop_mode", "center"),
        )  # fmt: skip

    def __call__(self, image: Any) -> Any:
        """A PIL image as a float32 tensor [C,H,W]."""
        return self._transform(image.convert(self.mode))
