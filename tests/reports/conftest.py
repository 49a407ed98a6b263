"""Bundles whose tokens merge, halt and leave at exits, for pages with pictures of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import vitprune

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A merging and a halting bundle."""
    from training_support import recipe

    from vitprune.vit import loading

    module = loading.load(recipe("tome").model, pretrained=False, seed=1).module
    folder = tmp_path_factory.mktemp("tokens")
    return {
        "avit": vitprune.export(module, recipe("avit"), folder / "avit"),
        "tome": vitprune.export(None, recipe("tome"), folder / "tome", pretrained=False, seed=1),
    }


@pytest.fixture(scope="session")
def cascade():
    """What pictures of exits need of a cascade's bundle: four stored samples, answered at exits 1, 1, 3 and 1."""

    class Bundle:
        model_files = ("exit1.onnx", "exit2.onnx", "exit3.onnx")
        manifest = type("", (), {"preprocessing": {"input_size": [3, 4, 4], "mean": [0.5] * 3, "std": [0.5] * 3}})

        def samples(self):
            return {"images": np.zeros((4, 3, 4, 4), np.float32), "exits": np.array([1, 1, 3, 1])}

    return Bundle()
