"""Dense exports are made once: by what their fingerprint depends on, and for whom there is none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from helpers import ats, tiny
from vitprune.exporting import dense as exporting
from vitprune.exporting.dense import dense_onnx
from vitprune.exporting.fingerprint import fingerprint
from vitprune.recipe import Recipe
from vitprune.support import cache
from vitprune.vit.features import dense_answers

SMALL = {"depth": 1, "img_size": 16, "embed_dim": 32, "num_heads": 2}
RECIPE = Recipe.load(ats(stages=[0]))


def model(**args: Any) -> Any:
    return tiny(**(SMALL | args))


@pytest.fixture(scope="module")
def usual() -> str:
    found = fingerprint(model(), (3, 16, 16), 18)
    assert found is not None
    return found


def test_the_same_model_has_the_same_fingerprint(usual):
    assert fingerprint(model(), (3, 16, 16), 18) == usual


def weight(one: Any) -> Any:
    one.blocks[0].mlp.fc2.bias.data[3] += 1e-6
    return one


def epsilon(one: Any) -> Any:
    one.norm.eps = 2e-6
    return one


def activation(one: Any) -> Any:
    one.blocks[0].mlp.act = nn.ReLU()
    return one


def attention(one: Any) -> Any:
    one.blocks[0].attn.fused_attn = not one.blocks[0].attn.fused_attn
    return one


def tied(one: Any) -> Any:
    one.blocks[0].norm2.weight = one.blocks[0].norm1.weight
    return one


def training(one: Any) -> Any:
    return one.train()


def partial(one: Any) -> Any:
    one.extra = functools.partial(nn.LayerNorm, eps=1e-3)
    return one


CHANGES = [weight, epsilon, activation, attention, tied, training, partial]


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_whatever_changes_a_model_changes_its_fingerprint(usual, change: Callable[[Any], Any]):
    found = fingerprint(change(model()), (3, 16, 16), 18)
    assert found is not None
    assert found != usual


def test_heads_are_no_weights_and_count_all_the_same(usual):
    assert fingerprint(model(num_heads=4), (3, 16, 16), 18) not in (None, usual)


@pytest.mark.parametrize("asked", [((3, 16, 16), 20), ((3, 32, 32), 18), ((3, 16, 16), 18, 1)], ids=["opset", "image", "batch"])
def test_what_is_asked_for_counts(usual, asked):
    assert fingerprint(model(), *asked) not in (None, usual)


def test_versions_and_source_count(usual, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("vitprune.exporting.fingerprint.version", lambda name: "0")
        assert fingerprint(model(), (3, 16, 16), 18) not in (None, usual)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: b"changed")
    assert fingerprint(model(), (3, 16, 16), 18) not in (None, usual)


class Foreign(nn.Linear):
    """A layer of the user's own, whose source nobody watches."""


def foreign(one: Any) -> Any:
    one.blocks[0].mlp.fc1.__class__ = Foreign
    return one


def hooked(one: Any) -> Any:
    one.blocks[0].register_forward_hook(lambda module, args, out: out * 2)
    return one


def replaced(one: Any) -> Any:
    one.blocks[0].mlp.forward = lambda x: x
    return one


def closure(one: Any) -> Any:
    one.norm.scale = lambda x: x
    return one


@pytest.mark.parametrize("change", [foreign, hooked, replaced, closure], ids=lambda one: one.__name__)
def test_what_cannot_be_described_has_no_fingerprint(change: Callable[[Any], Any]):
    assert fingerprint(change(model()), (3, 16, 16), 18) is None


def test_a_class_whose_method_was_replaced_has_none(monkeypatch):
    monkeypatch.setattr("timm.layers.Mlp.forward", lambda self, x: x)
    assert fingerprint(model(), (3, 16, 16), 18) is None


def test_features_are_described_by_what_is_asked_for():
    asked = ({"kind": "features", "fill": "last", "layout": layout} for layout in ("tokens", "map"))
    outputs = [Recipe.load(ats(stages=[0]) | {"output": output}).output for output in asked]
    found = [fingerprint(dense_answers(model(), output), (3, 16, 16), 18) for output in outputs]
    assert None not in found
    assert found[0] != found[1]


@pytest.fixture
def made(tmp_path, monkeypatch) -> list[str]:
    """A cache of its own; what torch was asked to export."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    asked: list[str] = []
    real = exporting._exported

    def counted(*args: Any) -> onnx.ModelProto:
        asked.append("torch")
        return real(*args)

    monkeypatch.setattr(exporting, "_exported", counted)
    return asked


def test_the_second_export_comes_from_the_cache_and_says_so(made, tmp_path):
    said: list[str] = []
    first, second = (dense_onnx(model(), (3, 16, 16), RECIPE, said.append) for _ in range(2))
    assert made == ["torch"]
    assert len(said) == 1
    assert "taken from the cache" in said[0]
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    (entry,) = (tmp_path / exporting.KIND).iterdir()
    entry.write_bytes(entry.read_bytes()[:-1])  # damaged: made again, and whole again
    dense_onnx(model(), (3, 16, 16), RECIPE, said.append)
    dense_onnx(model(), (3, 16, 16), RECIPE, said.append)
    assert (made, len(said)) == (["torch", "torch"], 2)


def test_off_and_the_indescribable_are_exported_each_time(made, monkeypatch):
    torch.manual_seed(0)
    own = foreign(model())
    for _ in range(2):
        dense_onnx(own, (3, 16, 16), RECIPE)
    assert made == ["torch"] * 2
    monkeypatch.setenv(cache.VARIABLE, "off")
    dense_onnx(model(), (3, 16, 16), RECIPE)
    dense_onnx(model(), (3, 16, 16), RECIPE)
    assert made == ["torch"] * 4


def test_export_says_that_it_used_the_cache(made, tmp_path, capsys):
    from vitprune import console
    from vitprune.cli._render import exported
    from vitprune.pipelines import export

    said = []
    for name in ("first", "second"):
        exported(export(model(), RECIPE, tmp_path / name), "export")
        said.append("taken from the cache" in " ".join(capsys.readouterr().err.split()))
    assert not console.settings.quiet
    assert said == [False, True]
