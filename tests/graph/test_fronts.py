"""Graphs that take bytes, channels last, or normalise inside: the front is read off, recorded and taken away, and checked to be that.

The judge is the PyTorch model with keys hidden (`small_vits.masked`), on images normalised here in NumPy.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from small_vits import SIDE, SmallViT, masked

import vitprune
from helpers import images, legacy_onnx
from vitprune.errors import ExportError
from vitprune.exporting.given_front import check_front
from vitprune.graph.normal.front import taken_off

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
STAGES = [1, 2]
MODEL = SmallViT(lambda t: t[:, 0])


class Fronted(torch.nn.Module):
    """The small ViT behind what some exporters put in front of it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = MODEL, kind
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32) for v in (MEAN, STD))

    def forward(self, image: Any) -> Any:
        first = (self.mean.view(3, 1, 1), self.std.view(3, 1, 1))
        if self.kind == "bytes":
            return self.net((image.float() / 255 - first[0]) / first[1])
        if self.kind == "bytes, channels last":
            return self.net(((image.float() - self.mean * 255) / (self.std * 255)).permute(0, 3, 1, 2))
        if self.kind == "channels last":
            return self.net(image.permute(0, 3, 1, 2))
        if self.kind == "floats 0 to 255":
            return self.net((image * (1 / 255) - first[0]) / first[1])
        return self.net((image - first[0]) / first[1])


KINDS = {
    "bytes": ((2, 3, SIDE, SIDE), torch.uint8, {"layout": "NCHW", "dtype": "uint8", "white": 255.0}),
    "bytes, channels last": ((2, SIDE, SIDE, 3), torch.uint8, {"layout": "NHWC", "dtype": "uint8", "white": 255.0}),
    "channels last": ((2, SIDE, SIDE, 3), torch.float32, {"layout": "NHWC", "dtype": "float32"}),
    "floats 0 to 1": ((2, 3, SIDE, SIDE), torch.float32, {"layout": "NCHW", "dtype": "float32", "white": 1.0}),
    "floats 0 to 255": ((2, 3, SIDE, SIDE), torch.float32, {"layout": "NCHW", "dtype": "float32", "white": 255.0}),
}
RECIPE = {"prune": {"method": "topk", "stages": STAGES, "keep": [20, 12]}, "validate": {"samples": 8}}


def exported(kind: str, folder: Path) -> Path:
    shape, dtype, _ = KINDS[kind]
    legacy_onnx(Fronted(kind).eval(), torch.zeros(shape, dtype=dtype), folder / "dense.onnx", 17)
    return folder / "dense.onnx"


@pytest.mark.parametrize("kind", KINDS)
def test_a_front_is_recorded_and_the_bundle_takes_preprocessed_pixels(kind, tmp_path):
    bundle = vitprune.rewrite(exported(kind, tmp_path), vitprune.Recipe.load(RECIPE), tmp_path / "bundle")
    recorded = bundle.manifest.preprocessing
    assert recorded["given_input"] == KINDS[kind][2]
    assert bundle.manifest.io["inputs"][0]["shape"][1:] == [3, SIDE, SIDE]
    if kind == "channels last":
        assert "mean" not in recorded
    else:
        np.testing.assert_allclose(recorded["mean"], MEAN, atol=1e-5)
        np.testing.assert_allclose(recorded["std"], STD, atol=1e-5)
        assert recorded["origin"].startswith("the graph")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 3, SIDE, SIDE)).astype(np.float32)
    x = ((pictures / 255 - MEAN[:, None, None]) / STD[:, None, None]).astype(np.float32)
    result = bundle.run(x)
    kept = [[[int(p) for p in row if p >= 0] for row in site] for site in result.kept]
    with torch.inference_mode():
        np.testing.assert_allclose(result.logits, masked(MODEL, torch.from_numpy(x), kept, STAGES, 1).numpy(), atol=1e-4)


def test_another_mean_than_the_graphs_is_refused(tmp_path):
    recipe = vitprune.Recipe.load({**RECIPE, "model": {"mean": [0.5], "std": [0.5]}})
    with pytest.raises(ExportError, match="VP335"):
        vitprune.rewrite(exported("floats 0 to 1", tmp_path), recipe, tmp_path / "bundle")


def test_a_front_that_was_read_wrongly_is_caught(tmp_path):
    """Seen failing: the check with a planted shift."""
    given = onnx.load(str(exported("bytes", tmp_path)))
    bare, front = taken_off(given)
    assert front is not None
    x = images(3, (3, SIDE, SIDE))
    assert check_front(given, bare, front, x, None, ["logits"]) < 1e-4
    wrong = dataclasses.replace(front, shift=front.shift + 0.1)
    with pytest.raises(ExportError, match="VP336"):
        check_front(given, bare, wrong, x, None, ["logits"])


def test_a_front_that_is_not_understood_stays(tmp_path):
    """One number per pixel is no normalisation; without bytes or turned axes such a graph is taken as it is."""

    class Vignette(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = MODEL

        def forward(self, image: Any) -> Any:
            return self.net(image * torch.linspace(0.5, 1, SIDE))

    model = legacy_onnx(Vignette(), torch.zeros(2, 3, SIDE, SIDE), tmp_path / "dense.onnx", 17)
    assert taken_off(model)[1] is None
