"""Batches whose content depends on seed, epoch and image only: not on workers, processes, or where a run was resumed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitprune.data.images import Preparation
from vitprune.data.pixels import normalise
from vitprune.data.preprocessing import require_known
from vitprune.data.source import Source
from vitprune.errors import LoadError
from vitprune.methods.train_keys import Augment


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Run with all global generators seeded by some numbers; the generators' states are put back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        seed_all(*numbers)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_all(*numbers: int) -> None:
    """Seed Python's, numpy's and torch's global generators by some numbers."""
    one = int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])
    random.seed(one)
    np.random.seed(one)
    torch.manual_seed(one)


def order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of an epoch."""
    return np.random.default_rng([seed, epoch, 1]).permutation(count)


def share(batch: NDArray[np.int64], rank: int, ranks: int) -> NDArray[np.int64]:
    """One process's part of a batch whose size the number of processes divides."""
    size = len(batch) // ranks
    return batch[rank * size : (rank + 1) * size]


@dataclass
class Batch:
    """images float32 [B,C,H,W] normalised, labels int64 [B], and what could not be read: (name, cause)."""

    images: Tensor
    labels: Tensor
    bad: list[tuple[str, str]] = field(default_factory=list)


class Feed:
    """A source made ready for a model.

    Args:
        source: images and labels. preprocessing: of the model (see `data.preprocessing`).
        augment: of training; None = as in validation. seed: of the run.
    """

    def __init__(self, source: Source, preprocessing: dict[str, Any], augment: Augment | None, seed: int) -> None:
        self.source, self.preprocessing, self.augment, self.seed = source, preprocessing, augment, seed
        self.labels = np.zeros(len(source), np.int64) if source.labels is None else source.labels
        self.shape = tuple(preprocessing["input_size"])
        fits = source.pixels is not None and source.pixels.shape[1:] == self.shape
        plain = augment is None or augment.kind != "timm"
        if plain and augment is not None and augment.kind == "shift" and not fits:
            have = "of different sizes" if source.pixels is None else f"{source.pixels.shape[1:]}"
            raise LoadError(
                621,
                "train.augment.kind 'shift' does not go with these images",
                cause=f"it moves images that already have the model's size {self.shape}; these are {have}",
                next_step="--set train.augment.kind=timm",
            )
        self.whole = fits and plain
        if not self.whole:
            require_known(preprocessing, "images cannot be prepared as the model was trained")
        self._transform: Any = None

    def batches(self, parts: Sequence[NDArray[np.int64]], epoch: int, workers: int) -> Iterator[Batch]:
        """Batches of the given image numbers, in order."""
        if self.whole:
            yield from (self._from_memory(part, epoch) for part in parts)
            return
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            _Epoch(self, epoch), batch_sampler=[part.tolist() for part in parts], num_workers=workers, collate_fn=_collate
        )
        yield from loader

    def _from_memory(self, part: NDArray[np.int64], epoch: int) -> Batch:
        assert self.source.pixels is not None
        white = np.float32(255 if self.source.pixels.dtype == np.uint8 else 1)
        pixels = torch.from_numpy(normalise(self.source.pixels[part].astype(np.float32) / white, self.preprocessing))
        if self.augment is not None and self.augment.kind == "shift":
            black = torch.from_numpy(normalise(np.zeros((len(pixels[0]), 1, 1), np.float32), self.preprocessing))
            pixels = self._shifted(pixels, part, epoch, black)
        return Batch(pixels, torch.from_numpy(self.labels[part]))

    def _shifted(self, pixels: Tensor, part: NDArray[np.int64], epoch: int, black: Tensor) -> Tensor:
        assert self.augment is not None
        drawn = self._draws(epoch)[part]
        flip = torch.from_numpy(drawn[:, 0] < self.augment.flip)
        pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
        reach = self.augment.shift
        if not reach:
            return pixels
        _, height, width = self.shape
        wide = black[None].repeat(len(pixels), 1, height + 2 * reach, width + 2 * reach)
        wide[:, :, reach : reach + height, reach : reach + width] = pixels
        top, left = (torch.from_numpy((drawn[:, axis] * (2 * reach + 1)).astype(np.int64)) for axis in (1, 2))
        rows, columns = top[:, None] + torch.arange(height), left[:, None] + torch.arange(width)
        image = torch.arange(len(pixels))[:, None, None]
        return wide[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    def _draws(self, epoch: int) -> NDArray[np.float64]:
        """Three uniform numbers for every image of the source in an epoch."""
        if getattr(self, "_drawn", (None, None))[0] != epoch:
            self._drawn = (epoch, np.random.default_rng([self.seed, epoch, 2]).random((len(self.source), 3)))
        return self._drawn[1]

    def one(self, number: int, epoch: int) -> tuple[Tensor, int, list[tuple[str, str]]]:
        """Image `number`, transformed; where it cannot be read the next one that can, so that batches keep their size."""
        bad: list[tuple[str, str]] = []
        for step in range(len(self.source)):
            at = (number + step) % len(self.source)
            try:
                image = self.source.read(at)
                image.load()
            except (OSError, SyntaxError, ValueError) as error:  # PIL raises all three on damaged files
                bad.append((self.source.name(at), " ".join(str(error).split()) or type(error).__name__))
                continue
            with seeded(self.seed, epoch, at, 3):
                return self._apply(image), int(self.labels[at]), bad
        raise LoadError(622, "no image can be read", cause=f"{bad[0][0]}: {bad[0][1]}", next_step="check the files")

    def _apply(self, image: Any) -> Tensor:
        image = image.convert("L" if self.shape[0] == 1 else "RGB")
        if self._transform is None:
            augmented = self.augment is not None and self.augment.kind == "timm"
            self._transform = _transform(self.preprocessing, self.augment) if augmented else Preparation(self.preprocessing)
        pixels: Tensor = self._transform(image)
        return pixels


def _transform(preprocessing: dict[str, Any], augment: Any) -> Any:
    from timm.data import create_transform

    return create_transform(
        input_size=tuple(preprocessing["input_size"]), interpolation=preprocessing["interpolation"], mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]), is_training=True, scale=(augment.crop_scale[0], augment.crop_scale[1]), hflip=augment.flip,
        auto_augment=augment.auto_augment, color_jitter=augment.color_jitter, re_prob=augment.erasing, re_mode="pixel",
    )  # fmt: skip


class _Epoch(torch.utils.data.Dataset[Any]):
    def __init__(self, feed: Feed, epoch: int) -> None:
        self.feed, self.epoch = feed, epoch

    def __getitem__(self, number: int) -> tuple[Tensor, int, list[tuple[str, str]]]:
        return self.feed.one(number, self.epoch)

    def __len__(self) -> int:
        return len(self.feed.source)


def _collate(items: list[tuple[Tensor, int, list[tuple[str, str]]]]) -> Batch:
    images, labels, bad = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), [entry for one in bad for entry in one])


class BadImages:
    """Books unreadable images by name: fatal at the first one, or counted.

    Raises:
        LoadError: VP621 from `book` when fatal.
    """

    def __init__(self, fatal: bool) -> None:
        self.fatal = fatal
        self.found: dict[str, str] = {}

    def book(self, bad: list[tuple[str, str]]) -> list[str]:
        """Add images; returns those not seen before as sentences."""
        new = [(name, cause) for name, cause in bad if name not in self.found]
        if new and self.fatal:
            raise LoadError(
                621,
                f"image '{new[0][0]}' cannot be read",
                cause=new[0][1],
                next_step="remove or replace it, or train without such images: --bad-images skip",
            )
        self.found |= dict(new)
        return [f"unreadable image {len(self.found)}: {name} ({cause}); skipped" for name, cause in new]
