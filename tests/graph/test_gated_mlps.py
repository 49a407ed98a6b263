"""Gated MLPs (packed or not): they are pruned like plain ones, and the MACs reported are those that are computed.

Seen failing before: a packed GLU was counted as two matrices of its packed width; `aimv2_*` (SwiGLU) ended in VP198.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from torch import nn

import vitprune
from helpers import images, legacy_onnx, run
from vitprune.exporting.dense import dense_onnx
from vitprune.graph import surgery
from vitprune.graph.anatomy.find import find
from vitprune.methods.cost import dense_blocks, model_macs
from vitprune.pipelines import reference
from vitprune.vit.dense import geometry

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "packed GLU": ("vit_tiny_patch16_224", {"mlp_layer": GluMlp}),
    "packed SwiGLU": ("vit_tiny_patch16_224", {"mlp_layer": SwiGLUPacked}),
    "SwiGLU": ("vit_tiny_patch16_224", {"mlp_layer": SwiGLU}),
    "aimv2": ("aimv2_large_patch14_224", {}),
}


def made(kind: str) -> Any:
    torch.manual_seed(0)
    name, arguments = KINDS[kind]
    return timm.create_model(name, **SIZES, **arguments).eval()


def counted(model: Any, tokens: int) -> float:
    """MACs of one image, counted while it runs: rows times weights of every map in the blocks, patches and attention products."""
    total = []
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and name.startswith("blocks"):
            part.register_forward_hook(lambda m, i, o: total.append(i[0].shape[1] * m.weight.numel()))
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda m, i, o: total.append(o.shape[2] * o.shape[3] * m.weight.numel()))
    model(torch.zeros(1, 3, 32, 32))
    return sum(total) + len(model.blocks) * 2 * tokens**2 * model.embed_dim


@pytest.mark.parametrize("kind", KINDS)
def test_macs_and_logits(kind, tmp_path):
    model = made(kind)
    sizes = geometry(model)
    if kind == "aimv2":  # the TorchScript exporter knows no RMSNorm
        dense = dense_onnx(model, (3, 32, 32), vitprune.Recipe.load({}))
    else:
        dense = legacy_onnx(model, torch.zeros(2, 3, 32, 32), tmp_path / "dense.onnx", 17)
    assert surgery.geometry(find(dense)).mlp_hidden == sizes.mlp_hidden
    method = {"method": "topk", "stages": [0, 1], "keep": [12, 8]} if sizes.has_cls else {"method": "tome", "r": 3}
    recipe = vitprune.Recipe.load({"prune": method})
    x = images(3, (3, 32, 32))
    with torch.inference_mode():
        logits = reference(model, recipe)(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(run(surgery.rewrite(dense, recipe)[0], x)[0], logits, atol=1e-4)
        assert np.abs(logits - model(torch.from_numpy(x)).numpy()).max() > 1e-4, "pruning must change something"
        assert model_macs(sizes, dense_blocks(sizes)) == counted(model, sizes.tokens)
