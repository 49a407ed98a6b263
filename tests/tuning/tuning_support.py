"""A small model with uneven attention, saved beside a recipe, and images for it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from training_support import idx, pictures, recipe, write_recipe

from vitprune.recipe import Recipe
from vitprune.vit import loading


def saved(folder):
    """Recipe file, data folder and dense module."""
    from safetensors.torch import save_file

    made = loading.load(recipe("topk").model, pretrained=False, seed=1)
    for block in made.module.blocks:
        block.attn.qkv.weight.data[:64] *= 8
    save_file(made.module.state_dict(), str(folder / "weights.safetensors"))
    plain = recipe("topk").to_dict()
    plain["model"]["weights"] = str(folder / "weights.safetensors")
    plain["prune"] = {"method": "tome", "r": [3, 2, 2, 1]}
    return write_recipe(folder / "hand.yaml", Recipe.load(plain)), idx(folder / "idx", train=160), made.module


def pixels(count, seed=0):
    """Preprocessed images float32 [count,1,16,16]."""
    return ((pictures(count, seed=seed)[0][:, None] / 255 - 0.5) / 0.5).astype(np.float32)
