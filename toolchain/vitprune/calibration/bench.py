"""What a setting costs, measured by running the PyTorch reference on calibration images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitprune import methods
from vitprune.methods.cost import dense_blocks, model_macs
from vitprune.recipe import Recipe
from vitprune.vit.dense import geometry
from vitprune.vit.features import dense_answers, depth_of, joined
from vitprune.vit.pruned import PrunedViT

BATCH = 64


@dataclass(frozen=True)
class Measured:
    """counts int64 [images,sites] of kept patches; share of the dense MACs (mean); margin float64 [images,sites,P]; overflow bool [images]."""

    counts: NDArray[np.int64]
    macs: float
    margin: NDArray[np.float64]
    overflow: NDArray[np.bool_]

    @property
    def tokens(self) -> float:
        """Mean number of patches that a site leaves."""
        return float(self.counts.mean())


class Bench:
    """A dense model and images float32 [n,C,H,W]; `measure` says what a setting of the recipe's method does on them."""

    def __init__(self, module: Any, recipe: Recipe, images: NDArray[np.float32]) -> None:
        self.module, self.recipe, self.images = module.eval(), recipe, images
        self.geometry = geometry(module)
        if recipe.output.features:  # the model ends behind the last block that is asked for
            self.geometry = replace(self.geometry, depth=depth_of(recipe.output, self.geometry.depth)[-1], classes=0)
        self.method = methods.get(recipe.prune.method)
        self.dense = model_macs(self.geometry, dense_blocks(self.geometry))

    def with_prune(self, changes: dict[str, Any]) -> Recipe:
        """The recipe with changed method keys, checked like a file."""
        plain = self.recipe.to_dict()
        return Recipe.load(plain | {"prune": plain["prune"] | changes})

    def measure(self, changes: dict[str, Any], padded: bool = False) -> Measured:
        """Run all images."""
        recipe = self.with_prune(changes)
        graph = recipe.graph.model_copy(update={"shapes": "padded" if padded else "dynamic"})
        oracle = PrunedViT(self.module, recipe.model_copy(update={"graph": graph})).eval()
        counts, margins, overflow = [], [], []
        with torch.inference_mode():
            for start in range(0, len(self.images), BATCH):
                oracle(torch.from_numpy(self.images[start : start + BATCH]))
                counts.append(torch.stack([(kept >= 0).sum(dim=1) for kept in oracle.kept], dim=1).numpy())
                margins.append(torch.stack(oracle.margin, dim=1).numpy())
                overflow.append((torch.stack(oracle.overflow, dim=1) > 0).any(dim=1).numpy())
        every = np.concatenate(counts)
        return Measured(every, self.cost(oracle.sites, every.mean(axis=0)), np.concatenate(margins), np.concatenate(overflow))

    def agreement(self, changes: dict[str, Any]) -> tuple[float, float]:
        """Share of images with the dense model's prediction (0 of features), and mean cosine of logits (about their mean), or features."""
        oracle = PrunedViT(self.module, self.with_prune(changes)).eval()
        pruned, dense = self._logits(oracle), self._dense_logits
        same = 0.0 if self.recipe.output.features else float((pruned.argmax(dim=1) == dense.argmax(dim=1)).float().mean())
        near = torch.nn.functional.cosine_similarity(
            pruned - pruned.mean(dim=1, keepdim=True), dense - dense.mean(dim=1, keepdim=True)
        )
        return same, float(near.mean())

    @cached_property
    def _dense_logits(self) -> torch.Tensor:
        return self._logits(dense_answers(self.module, self.recipe.output))

    def _logits(self, model: Any) -> torch.Tensor:
        with torch.inference_mode():
            parts = [self.images[start : start + BATCH] for start in range(0, len(self.images), BATCH)]
            found = (model(torch.from_numpy(part)) for part in parts)
            return torch.cat([joined(list(one)) if isinstance(one, tuple) else one for one in found])

    def cost(self, sites: Any, kept: Sequence[float] | NDArray[Any]) -> float:
        """Share of the dense MACs for mean kept counts."""
        return model_macs(self.geometry, self.method.block_tokens(sites, self.geometry, [float(k) for k in kept])) / self.dense
