"""`vitprune init`: a commented recipe that the other commands take."""

from __future__ import annotations

import json

import pytest
import yaml

from vitprune import cli, methods
from vitprune.errors import VitpruneError
from vitprune.exporting import starting
from vitprune.methods.base import Geometry
from vitprune.recipe import Recipe

SIZES = Geometry(depth=12, patches=196, prefix=1, width=192, heads=3, mlp_hidden=768)


def test_the_file_is_a_recipe(tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    assert cli.run(["init", "vit_tiny_patch16_224", "-o", str(file)]) == 0
    text = file.read_text()
    assert sum(line.strip().startswith("#") for line in text.splitlines()) > 8
    assert "12 blocks, 196 patches, width 192" in text
    assert cli.run(["recipes", str(file)]) == 0
    recipe = Recipe.load(file)
    assert (recipe.model.name, recipe.prune.method, recipe.prune.stages) == ("vit_tiny_patch16_224", "ats", [3, 6, 9])
    capsys.readouterr()
    assert cli.run(["init", "vit_tiny_patch16_224", "-o", str(file), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "VP106"
    assert file.read_text() == text
    assert cli.run(["init", "vit_tinny_patch16_224", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "VP300"


def test_every_method_that_defaults_can_start():
    started, refused = [], {}
    for name in methods.names():
        try:
            text = starting.text_for("vit_tiny_patch16_224", methods.get(name), SIZES)
        except VitpruneError as error:
            refused[name] = error.code
            continue
        recipe = Recipe.load(yaml.safe_load(text))
        assert methods.get(name).sites(recipe.prune, SIZES)
        started.append(name)
    assert {"ats", "topk", "evit", "tome", "ward_merge"} <= set(started)
    assert {"avit", "dvt"} <= set(refused)
    assert set(refused.values()) == {"VP137"}


def test_a_shallow_model_and_one_without_cls():
    method = methods.get("topk")
    shallow = Geometry(depth=2, patches=16, prefix=0, width=32, heads=2, mlp_hidden=64, has_cls=False)
    recipe = Recipe.load(yaml.safe_load(starting.text_for("./folder", method, shallow)))
    assert recipe.prune.stages == [1]
    assert recipe.prune.score == "mean_attention"


def test_a_text_that_says_something_else_is_noticed(monkeypatch):
    monkeypatch.setattr(starting, "_value", lambda value: "[1]" if isinstance(value, list) else json.dumps(value))
    with pytest.raises(AssertionError, match="does not say"):
        starting.text_for("vit_tiny_patch16_224", methods.get("ats"), SIZES)
