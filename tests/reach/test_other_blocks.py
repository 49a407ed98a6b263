"""An MLP beside the attention, RMSNorm over the head's channels, and NaFlexVit at one size."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

from helpers import run, sets, uneven
from vitprune.errors import ExportError
from vitprune.exporting.graph_vit import GraphViT
from vitprune.graph.anatomy.find import find
from vitprune.graph.canonical import replace_attention as right_replacement
from vitprune.graph.intake import take_in
from vitprune.graph.surgery import canonical, rewrite
from vitprune.model_section import ModelSection
from vitprune.pipelines import reference
from vitprune.recipe import Recipe
from vitprune.vit import loading
from vitprune.vit.naflex import at_size
from vitprune.vit.pruned import PrunedViT

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))

from merging_support import export, images  # noqa: E402

SIZES = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5, "mlp_ratio": 2.0}
PRUNE: dict[str, dict[str, Any]] = {
    "ats": {"stages": [0, 1], "num_samples": [20, 12]},
    "topk": {"stages": [0, 1], "keep_rate": 0.5},
    "evit": {"stages": [0, 1], "keep_rate": 0.6},
    "tome": {"r": 5},
    "ward_merge": {"stages": [0, 1], "mu": 2.0},
}


class Rms(torch.nn.Module):
    """RMSNorm written out, as torch's older exporter would write it."""

    def __init__(self, width: int, **_: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


@cache
def small(kind: str) -> Any:
    torch.manual_seed(0)
    more: dict[str, Any] = (
        {"qk_norm": True, "norm_layer": Rms} if kind == "rms" else {"block_fn": ParallelScalingBlock, "init_values": 0.5}
    )
    model = VisionTransformer(**{**SIZES, **more}).eval()
    return uneven(model)


@cache
def dense(kind: str) -> onnx.ModelProto:
    return export(small(kind), images(2))


def recipe(method: str, shapes: str = "dynamic") -> Recipe:
    return Recipe.load({"prune": {"method": method, **PRUNE[method]}, "graph": {"shapes": shapes, "batch": "1:4:8"}})


def judged(kind: str, method: str, shapes: str, x: torch.Tensor) -> tuple[np.ndarray, list[Any]]:
    oracle = reference(small(kind), recipe(method, shapes))
    with torch.no_grad():
        return oracle(x).numpy(), [sets(rows) for rows in oracle.kept]


@pytest.mark.parametrize(
    ("kind", "method", "shapes"),
    [("parallel", "ats", "padded"), ("parallel", "topk", "dynamic"), ("parallel", "evit", "dynamic"), ("parallel", "tome", "dynamic"), ("parallel", "ward_merge", "padded"), ("rms", "ats", "dynamic"), ("rms", "tome", "padded")],
)  # fmt: skip
def test_graph_and_reference_agree(kind: str, method: str, shapes: str) -> None:
    x = images(4, seed=3)
    logits, kept = judged(kind, method, shapes, x)
    got, *lists = run(rewrite(dense(kind), recipe(method, shapes), has_cls=True)[0], x.numpy())
    np.testing.assert_allclose(got, logits, atol=1e-4)
    assert [sets(rows) for rows in lists[: len(kept)]] == kept
    with torch.no_grad():
        assert np.abs(small(kind)(x).numpy() - logits).max() > 1e-3, "pruning must change something"


@pytest.mark.parametrize("kind", ["parallel", "rms"])
def test_nothing_pruned_is_the_model_itself(kind: str) -> None:
    x, free = images(2), Recipe.load({"prune": {"method": "tome", "r": 0}})
    with torch.no_grad():
        plain = small(kind)(x).numpy()
        np.testing.assert_allclose(reference(small(kind), free)(x).numpy(), plain, atol=1e-5)
    np.testing.assert_allclose(run(canonical(dense(kind), free), x.numpy())[0], plain, atol=1e-5)


@pytest.mark.parametrize("kind", ["parallel", "rms"])
def test_the_reference_made_of_the_graph_agrees(kind: str) -> None:
    x, rules = images(3, seed=5), recipe("ats")
    taken = take_in(dense(kind), rules).model
    with torch.no_grad():
        ours = PrunedViT(GraphViT(taken, find(taken)), rules)(x).numpy()
    np.testing.assert_allclose(ours, judged(kind, "ats", "dynamic", x)[0], atol=1e-5)


def test_an_mlp_beside_that_reads_other_rows_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the MLP's rows are those of the first tokens, not of the kept ones."""
    from vitprune.methods._dropping import surgery

    def wrong(place: Any, block: Any, projected: Any, x: Any = None, h: Any = None) -> None:
        emit = place.emitter.child(f"planted{block.index}")
        right_replacement(
            place, block, projected, x, None if h is None else emit.op("Add", [h, emit.constant(0.1, np.float32)], "moved")
        )

    monkeypatch.setattr(surgery, "replace_attention", wrong)
    x = images(3, seed=5)
    got = run(rewrite(dense("parallel"), recipe("topk"), has_cls=True)[0], x.numpy())[0]
    assert np.abs(got - judged("parallel", "topk", "dynamic", x)[0]).max() > 1e-3


def test_half_types_of_an_mlp_beside_are_refused() -> None:
    half = Recipe.load({"prune": {"method": "tome", "r": 2}, "precision": {"mode": "fp16"}})
    with pytest.raises(ExportError, match="VP315"):
        reference(small("parallel"), half)
    with pytest.raises(ExportError, match="VP316"):
        rewrite(dense("parallel"), half)


def naflex(**more: Any) -> Any:
    torch.manual_seed(0)
    config = NaFlexVitCfg(
        patch_size=8, embed_dim=32, depth=2, num_heads=2, reg_tokens=2, init_values=0.5, pos_embed_grid_size=(4, 4), **more
    )
    model = NaFlexVit(config, num_classes=5).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    "more", [{"global_pool": "avg", "fc_norm": True}, {"global_pool": "map"}, {"global_pool": "token", "class_token": True, "pos_embed_ar_preserving": True}, {"pos_embed": "factorized", "global_pool": "avg"}],
)  # fmt: skip
def test_naflex_at_one_size_is_the_model_itself(more: dict[str, Any]) -> None:
    model, x = naflex(**more), images(2)
    fixed = at_size(model, 48)
    assert type(fixed) is VisionTransformer
    with torch.no_grad():
        np.testing.assert_allclose(fixed(x).numpy(), model(x).numpy(), atol=1e-5)
        assert reference(model, Recipe.load({"model": {"image_size": 48}, "prune": {"method": "tome", "r": 4}}))(x).shape == (
            2,
            5,
        )


@pytest.mark.parametrize("fixed", [True, False])
def test_weights_of_a_naflex_are_taken_in_either_form(fixed: bool, tmp_path: Path) -> None:
    """Those that finetune saved have a VisionTransformer's names, those that timm saved the model's own."""
    section = ModelSection(name="naflexvit_base_patch16_gap", image_size=32, args={"embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3})  # fmt: skip
    trained = timm.create_model(section.name, **section.args).eval()
    for parameter in trained.parameters():
        parameter.data += 0.1
    saved = at_size(trained, 32) if fixed else trained
    file = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous().clone() for name, value in saved.state_dict().items()}, file)
    loaded = loading.load(section, weights=str(file)).module
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_allclose(loaded(x).numpy(), at_size(trained, 32)(x).numpy(), atol=1e-6)


def test_what_naflex_cannot_be_is_refused() -> None:
    with pytest.raises(ExportError, match="VP345"):
        at_size(naflex(global_pool="avg"), 50)
    with pytest.raises(ExportError, match="VP345"):
        at_size(naflex(global_pool="avg", rope_type="axial"), 48)
