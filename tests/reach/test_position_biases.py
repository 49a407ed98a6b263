"""Biases of positions on attention logits (BEiT) are refused by name, whoever wrote the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.beit import Beit

from vitprune.errors import ExportError
from vitprune.graph.surgery import rewrite
from vitprune.pipelines import reference
from vitprune.recipe import Recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))

from merging_support import export, images  # noqa: E402

RULES = Recipe.load({"prune": {"method": "tome", "r": 3}})


class HuggingFace(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers", reason="extra 'test' brings transformers")
        config = transformers.BeitConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=48, patch_size=8,
            use_relative_position_bias=True, use_mean_pooling=False, attn_implementation="eager",
        )  # fmt: skip
        self.net = transformers.BeitForImageClassification(config)

    def forward(self, image: Any) -> Any:
        return self.net(image).logits


def made(kind: str) -> torch.nn.Module:
    """Random tables: those of a new model are zero, which is no bias."""
    torch.manual_seed(0)
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = HuggingFace() if kind == "Hugging Face" else Beit(**sizes, **{kind: True}, use_abs_pos_emb=False)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return model.eval()


@pytest.mark.parametrize("kind", ["use_rel_pos_bias", "use_shared_rel_pos_bias", "Hugging Face"])
def test_a_graph_of_beit_is_refused(kind: str) -> None:
    with pytest.raises(ExportError, match="VP322") as error:
        rewrite(export(made(kind), images(2)), RULES)
    assert "position biases" in error.value.cause
    assert "node '" in error.value.cause


def test_a_model_of_beit_is_refused() -> None:
    with pytest.raises(ExportError, match="VP310: nothing to patch in Beit"):
        reference(made("use_rel_pos_bias"), RULES)
