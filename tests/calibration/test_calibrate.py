from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from training_support import PRUNE, idx, pictures, recipe, write_recipe

from vitprune.calibration.bench import Bench
from vitprune.calibration.calibrating import calibrate
from vitprune.cli import run as cli
from vitprune.errors import RecipeError
from vitprune.methods.asvit.knob import between
from vitprune.methods.tome.knob import FALLING, spread
from vitprune.recipe import Recipe
from vitprune.vit import loading


def bench(method, **prune):
    one = recipe(method, **({"predictor": "random"} if method == "dynamicvit" else {}), **prune)
    made = loading.load(one.model, pretrained=False, seed=1)
    for block in made.module.blocks:  # uneven attention, so that images and patches differ
        block.attn.qkv.weight.data[:64] *= 8
    images, _ = pictures(24)
    return Bench(made.module, one, ((images[:, None] / 255 - 0.5) / 0.5).astype(np.float32))


def silent(text):
    pass


@pytest.mark.parametrize("method", sorted(set(PRUNE) - {"dvt"}))
def test_the_budget_is_met_and_hardly_undercut(method):
    one = bench(method)
    aim = 0.8
    found = calibrate(one, macs=aim, tokens=None, quantile=None, report=silent)
    assert found.measured.macs <= aim
    assert found.measured.macs >= aim - {"topk": 0.1, "evit": 0.1, "dynamicvit": 0.1}.get(method, 0.06)
    assert one.measure(found.prune).macs == found.measured.macs


def test_mean_tokens_instead_of_macs():
    found = calibrate(bench("asvit"), macs=None, tokens=7.5, quantile=None, report=silent)
    assert 7.0 <= found.measured.tokens <= 7.5
    assert len(np.unique(found.measured.counts)) > 1, "counts adapt to the image"


def test_threshold_lies_between_two_scores():
    assert between(np.array([0.1, 0.4, 0.3, 0.2]), 2) == pytest.approx(0.25)
    assert between(np.array([0.1, 0.4]), 2) == -1.0
    assert between(np.array([0.1, 0.4]), 0) > 0.25


def test_capacities_hold_the_quantile_and_the_overflow_is_reported():
    one = bench("asvit", thresholds=[0.05])
    counts = one.measure({}).counts
    found = calibrate(one, macs=None, tokens=None, quantile=0.75, report=silent)
    capacity = found.prune["capacity"][0]
    assert capacity == max(1, int(np.ceil(np.quantile(counts[:, 0], 0.75))))
    assert found.overflow == pytest.approx(float((counts[:, 0] > capacity).mean()))
    assert 0 < found.overflow < 0.5
    assert found.graph == {"shapes": "padded"}


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ({"macs": 0.01}, "VP171"),
        ({"macs": 0.5, "tokens": 5.0}, "VP170"),
        ({}, "VP170"),
        ({"macs": 1.5}, "VP170"),
        ({"quantile": 0.9}, "VP173"),
    ],
)
def test_goals_that_cannot_be_met(goal, expected):
    with pytest.raises(RecipeError) as error:
        calibrate(bench("topk"), **({"macs": None, "tokens": None, "quantile": None} | goal), report=silent)
    assert error.value.code == expected


def test_command_writes_a_new_recipe_and_never_overwrites(tmp_path, capsys):
    data = idx(tmp_path / "idx")
    source = write_recipe(tmp_path / "ats.yaml", recipe("ats"))
    call = [
        "calibrate",
        str(source),
        "--data",
        str(data),
        "--no-pretrained",
        "--budget-macs",
        "0.8",
        "-o",
        str(tmp_path / "new.yaml"),
    ]
    assert cli(call) == 0
    made = Recipe.load(tmp_path / "new.yaml")
    assert made.prune.method == "ats"
    before = source.read_text()
    assert cli(call) == 2
    assert "VP106" in capsys.readouterr().err
    assert source.read_text() == before
    assert cli([*call, "--force"]) == 0


def test_a_bundle_of_a_cascade_gets_thresholds(tmp_path):
    import vitprune

    one = recipe("dvt")
    vitprune.export(None, one, tmp_path / "bundle", pretrained=False, seed=2)
    call = ["calibrate", str(tmp_path / "bundle"), "--data", str(idx(tmp_path / "idx")), "-o", str(tmp_path / "new.yaml")]
    assert cli([*call, "--budget-macs", "1.0"]) == 0
    assert len(Recipe.load(tmp_path / "new.yaml").prune.thresholds) == 2
    assert cli([*call, "--force", "--mean-tokens", "5"]) == 2


def test_pairs_are_spread_as_a_schedule_says():
    assert spread(13, 8, 0.0, 49) == [2, 2, 2, 2, 2, 1, 1, 1]
    assert spread(40, 8, 1.0, 49) == [9, 8, 7, 6, 4, 3, 2, 1]
    assert spread(20, 3, 4.0, 16) == [8, 4, 2]  # half of what is left at most


def test_the_schedule_that_agrees_best_is_kept():
    one = bench("tome")
    lines = []
    found = calibrate(one, macs=0.8, tokens=None, quantile=None, report=lines.append, schedule="best")
    assert found.measured.macs <= 0.8
    tried = [tuple(float(word) for word in re.findall(r"([\d.]+) %.* ([\d.]+)$", line)[0]) for line in lines if "cosine" in line]
    assert len(tried) == 1 + len(FALLING)
    same, near = one.agreement(found.prune)
    assert max(tried) == (pytest.approx(100 * same, abs=0.06), pytest.approx(near, abs=6e-6))
    assert one.agreement({"r": 0}) == (1.0, pytest.approx(1.0))


def test_schedules_that_cannot_get_as_cheap_are_passed_over():
    one = bench("tome")
    even = one.measure({"r": spread(one.geometry.patches - 2, one.geometry.depth, 0.0, one.geometry.patches)}).macs
    steep = one.measure({"r": spread(one.geometry.patches - 2, one.geometry.depth, 4.0, one.geometry.patches)}).macs
    budget = (even + steep) / 2
    with pytest.raises(RecipeError, match="VP171"):
        calibrate(one, macs=budget, tokens=None, quantile=None, report=silent, schedule="constant")
    assert calibrate(one, macs=budget, tokens=None, quantile=None, report=silent, schedule="best").measured.macs <= budget
    with pytest.raises(RecipeError, match="VP171"):
        calibrate(one, macs=steep / 2, tokens=None, quantile=None, report=silent, schedule="best")


def test_fixed_counts_follow_the_mean_of_adaptive_ones():
    one = bench("ward_merge", counts="fixed")
    found = calibrate(one, macs=0.8, tokens=None, quantile=None, report=silent)
    assert found.measured.macs <= 0.8
    assert len(np.unique(found.measured.counts, axis=0)) == 1
    adaptive = one.measure({"counts": "adaptive", "r": None, "mu": found.prune["mu"]}).counts.mean(axis=0)
    left = one.geometry.patches - np.cumsum(found.prune["r"])
    np.testing.assert_allclose(left, adaptive, atol=0.51)


@pytest.mark.parametrize(("method", "schedule"), [("topk", "falling"), ("tome", "rising")])
def test_schedules_that_are_not_there(method, schedule):
    with pytest.raises(RecipeError, match="VP174"):
        calibrate(bench(method), macs=0.8, tokens=None, quantile=None, report=silent, schedule=schedule)
