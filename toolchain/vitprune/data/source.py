"""What every form of data becomes: a number of images with labels, class names and a way to read each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
NAMES = tuple(name for names in SPLITS.values() for name in names)


@dataclass(frozen=True)
class Source:
    """Some images.

    Attributes:
        origin: what it is, for messages. count: number of images. labels: int64 [n], or None. classes: their names, or [] where
            nothing names them; labels are then the data's own numbers. folders: labels are places in `classes` and no numbers.
        pixels: all images [n,channels,H,W] where they have one size and are in memory, else None: uint8, or float32 in [0,1], or
            float32 as the model reads them (`ready`). whole: the data has no splits, this is all of it.
        read: number of an image -> PIL image of its pixels; raises OSError where it cannot be read. name: number -> what to call it.
    """

    origin: str
    count: int
    labels: NDArray[np.int64] | None
    classes: list[str]
    pixels: NDArray[Any] | None
    read: Callable[[int], Any]
    name: Callable[[int], str]
    ready: bool = False
    folders: bool = False
    whole: bool = True

    def __len__(self) -> int:
        return self.count

    def first(self, count: int | None) -> Source:
        """At most `count` images, spread evenly."""
        if count is None or count >= len(self):
            return self
        pick = np.unique(np.linspace(0, len(self) - 1, count).astype(np.int64))
        return replace(
            self,
            count=len(pick),
            labels=None if self.labels is None else self.labels[pick],
            pixels=None if self.pixels is None else self.pixels[pick],
            read=lambda i: self.read(int(pick[i])),
            name=lambda i: self.name(int(pick[i])),
        )
