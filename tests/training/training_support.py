"""A tiny model, tiny data in every format, and recipes that train in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitprune.recipe import Recipe

CLASSES, SIDE = 3, 16
MODEL = {
    "name": "vit_tiny_patch16_224",
    "args": {
        "img_size": SIDE, "patch_size": 4, "in_chans": 1, "num_classes": CLASSES, "embed_dim": 32, "depth": 4, "num_heads": 2,
    },
    "mean": [0.5],
    "std": [0.5],
}  # fmt: skip
QUICK = {
    "epochs": 2, "batch": 8, "lr": 1e-3, "lr_batch": None, "warmup_epochs": 0, "augment": {"kind": "shift", "shift": 1, "mixup": 0, "cutmix": 0},
}  # fmt: skip
PRUNE: dict[str, dict[str, Any]] = {
    "asvit": {"stages": [3], "thresholds": [0.05]},
    "ats": {"stages": [1, 2, 3], "num_samples": 10},
    "ats_merge": {"stages": [1, 2, 3], "num_samples": 10},
    "avit": {"gate_scale": 5.0, "gate_center": 1.0, "compact_at": [1, 2, 3]},
    "dvt": {"grids": [2, 3, 4], "thresholds": [0.6, 0.6]},
    "dynamicvit": {"stages": [1, 3]},
    "evit": {"stages": [1, 3]},
    "pomt": {"stages": [1], "remove": 5},
    "tome": {"r": 2},
    "tome_threshold": {"tau": 0.8, "r_max": 3},
    "topk": {"stages": [1, 3]},
    "ward_merge": {"mu": 0.3},
}


def recipe(method: str, train: dict[str, Any] | None = None, **prune: Any) -> Recipe:
    extra = {"cooldown_epochs": 0} if method == "dvt" else {}
    return Recipe.load(
        {
            "model": MODEL, "prune": {"method": method, **PRUNE[method], **prune}, "train": QUICK | extra | (train or {}),
            "validate": {"samples": 8},
        }
    )  # fmt: skip


def write_recipe(path: Path, made: Recipe) -> Path:
    path.write_text(made.to_yaml())
    return path


def pictures(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Class = third of the image that is bright; uint8 [n,SIDE,SIDE] and int64 [n]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    images = rng.integers(0, 90, (count, SIDE, SIDE))
    for image, label in zip(images, labels, strict=True):
        image[label * 5 : label * 5 + 5] += 140
    return images.astype(np.uint8), labels.astype(np.int64)


def write_idx(array: np.ndarray, path: Path) -> None:
    head = b"\0\0\x08" + bytes([array.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def idx(folder: Path, train: int = 32, held_out: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", train, 1), ("t10k", held_out, 2)):
        images, labels = pictures(count, seed)
        write_idx(images, folder / f"{name}-images-idx3-ubyte")
        write_idx(labels, folder / f"{name}-labels-idx1-ubyte")
    return folder


def class_folders(folder: Path, per_class: int = 4) -> Path:
    """folder/train/<class>/<n>.png"""
    from PIL import Image

    images, _ = pictures(CLASSES * per_class)
    for number, image in enumerate(images):
        place = folder / "train" / f"class{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    return folder


def tensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(str(path))
