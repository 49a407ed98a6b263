"""`score: mean_attention`: ATS, top-k and EViT on models without a CLS token."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import run, sets
from vitprune.errors import ExportError
from vitprune.graph.surgery import rewrite
from vitprune.methods import get
from vitprune.methods._dropping.rule import mean_received
from vitprune.methods.cost import model_macs
from vitprune.pipelines import reference
from vitprune.recipe import Recipe
from vitprune.vit.dense import geometry

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))

from merging_support import images, small, small_dense  # noqa: E402

PRUNE: dict[str, dict[str, Any]] = {
    "ats": {"stages": [0, 1], "num_samples": [20, 12]},
    "topk": {"stages": [0, 2], "keep_rate": 0.5},
    "evit": {"stages": [0, 1], "keep_rate": 0.6},
    "ats_merge": {"stages": [0, 1], "num_samples": [20, 12]},
}


def recipe(method: str, shapes: str = "dynamic", **keys: Any) -> Recipe:
    prune = {"method": method, **PRUNE[method], "score": "mean_attention", **keys}
    return Recipe.load({"prune": prune, "graph": {"shapes": shapes, "batch": "1:4:8"}})


@pytest.mark.parametrize(
    ("variant", "method", "shapes"),
    [("mean", "ats_merge", "dynamic"), ("mean", "ats", "dynamic"), ("mean", "ats", "padded"), ("mean", "topk", "dynamic"), ("mean", "evit", "padded"), ("cls_mean", "ats", "padded")],
)  # fmt: skip
def test_graph_and_reference_agree(variant: str, method: str, shapes: str) -> None:
    x, rules, model = images(4, seed=3), recipe(method, shapes), small(variant)
    oracle = reference(model, rules)
    with torch.no_grad():
        logits, plain = oracle(x).numpy(), model(x).numpy()
    got, *kept = run(rewrite(small_dense(variant), rules, has_cls=variant != "mean")[0], x.numpy())
    np.testing.assert_allclose(got, logits, atol=1e-4)
    assert [sets(rows) for rows in kept] == [sets(rows) for rows in oracle.kept]
    assert np.abs(logits - plain).max() > 1e-3, "pruning must change something"


def test_the_score_by_its_definition() -> None:
    """Column means of attention over the queries that are there, one query at a time."""
    weights = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True, True, True, True, True], [True, True, True, False, False]])
    for image, askers in ((0, range(6)), (1, range(4))):
        mean = sum(weights[image, :, query, 1:] for query in askers) / len(askers)
        torch.testing.assert_close(mean_received(weights, valid, 1)[image], mean)


def test_pads_do_not_ask() -> None:
    """Planted: a score that lets pads ask differs from the one that does not."""
    weights = torch.rand(1, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    valid = torch.tensor([[True, True, False, False]])
    assert not torch.allclose(mean_received(weights, valid, 1), mean_received(weights, torch.ones_like(valid), 1))


def test_without_the_key_a_cls_token_is_still_wanted() -> None:
    with pytest.raises(ExportError, match="VP312") as error:
        reference(small("mean"), recipe("ats", score="cls"))
    assert "prune.score=mean_attention" in (error.value.next_step or "")


@pytest.mark.parametrize("method", ["ats", "ats_merge", "topk", "evit"])
def test_all_queries_are_counted(method: str) -> None:
    shape = geometry(small("plain"))
    costs = []
    for score in ("cls", "mean_attention"):
        rules = recipe(method, score=score)
        sites = get(method).sites(rules.prune, shape)
        costs.append(model_macs(shape, get(method).block_tokens(sites, shape, [site.limit for site in sites])))
    assert costs[1] > costs[0]
