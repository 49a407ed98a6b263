"""How near a pruned model is to the dense one, on images without labels: a few images first, then all of them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitprune.calibration.bench import BATCH
from vitprune.recipe import Recipe
from vitprune.support.files import write_atomic
from vitprune.vit.pruned import PrunedViT

SCOUTS = 128  # images that a setting is turned on, and judged by first


@dataclass(frozen=True)
class Fidelity:
    """How near outputs are to the dense model's.

    agreement: share of images with the same prediction, None for models without classes. error: 1 - cosine of the outputs (logits
    about their mean), mean over the images.
    """

    agreement: float | None
    error: float

    @property
    def loss(self) -> float:
        """What a search minimises: disagreement plus error."""
        return (0.0 if self.agreement is None else 1 - self.agreement) + self.error


@dataclass(frozen=True)
class Run:
    """Outputs float32 [n,classes] and kept patches int64 [n,sites] of some images."""

    logits: NDArray[np.float32]
    counts: NDArray[np.int64]

    def followed_by(self, other: Run) -> Run:
        """Both."""
        return Run(np.concatenate([self.logits, other.logits]), np.concatenate([self.counts, other.counts]))


def scouts_first(images: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """The images with `SCOUTS` of them, spread evenly, in front; and how many those are."""
    count = min(SCOUTS, len(images))
    front = np.unique(np.linspace(0, len(images) - 1, count).astype(np.int64))
    behind = np.setdiff1d(np.arange(len(images)), front)
    return np.ascontiguousarray(images[np.concatenate([front, behind])]), len(front)


def run(module: Any, recipe: Recipe, images: NDArray[np.float32]) -> Run:
    """A recipe's PyTorch reference on images [n,C,H,W]."""
    oracle = PrunedViT(module, recipe).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            logits = oracle(torch.from_numpy(images[start : start + BATCH]))
            counts = torch.stack([(kept >= 0).sum(dim=1) for kept in oracle.kept], dim=1)
            parts.append(Run(logits.float().numpy(), counts.numpy()))
    every = parts[0]
    for part in parts[1:]:
        every = every.followed_by(part)
    return every


def fidelity(logits: NDArray[np.float32], dense: NDArray[np.float32], classes: bool) -> Fidelity:
    """Compare outputs [n,classes] of the pruned and the dense model."""
    a, b = (x.astype(np.float64) for x in (logits, dense))
    if classes:
        a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(norms, 1e-12)
    same = float((logits.argmax(axis=1) == dense.argmax(axis=1)).mean()) if classes else None
    return Fidelity(same, float(1 - cosine.mean()))


def dense_logits(module: Any, images: NDArray[np.float32], cache: Path) -> tuple[NDArray[np.float32], str]:
    """Outputs of the dense model, and a digest of model and images; read from `cache` where that is of the same ones."""
    digest = _digest(module, images)
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["digest"]) == digest and len(stored["logits"]) == len(images):
                return stored["logits"], digest
    except (OSError, ValueError, KeyError, EOFError):
        pass
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            parts.append(module(torch.from_numpy(images[start : start + BATCH])).float().numpy())
    logits = np.concatenate(parts)
    packed = io.BytesIO()
    np.savez(packed, logits=logits, digest=np.array(digest))
    write_atomic(cache, packed.getvalue())
    return logits, digest


def _digest(module: Any, images: NDArray[np.float32]) -> str:
    found = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return found.hexdigest()
