from __future__ import annotations

import sys

import numpy as np
import pytest
import yaml

from helpers import RECIPES, script

FOLDER = RECIPES / "fashion_mnist"
sys.path.insert(0, str(FOLDER))

import precision  # noqa: E402
import results  # noqa: E402
import ship  # noqa: E402
import tuned  # noqa: E402
import types_report  # noqa: E402

from vitprune.recipe import Recipe  # noqa: E402
from vitprune.vit import loading  # noqa: E402

report = script(FOLDER / "report.py")


def run(name, correct, share, **more):
    found = {
        "name": name,
        "method": name.split("-")[0],
        "trained": "-" not in name,
        "macs": share * 1e6,
        "macs_share": share,
        "sites": [],
    }
    return found | results.accuracy_of(correct, 10000) | more


def test_wilson_interval_of_a_known_case():
    # Brown, Cai, DasGupta 2001: 5 of 10 gives 0.237 to 0.763
    assert results.wilson(5, 10) == pytest.approx((23.66, 76.34), abs=0.01)
    low, high = results.wilson(10000, 10000)
    assert low < 100 <= high + 1e-9


def test_claims_are_computed_and_bad_news_is_said():
    dense = run("dense", 9129, 1.0)
    varies = {"sites": [{"deviation": 2.0, "mean": 9.0}]}
    close, inside = run("tome_threshold", 9102, 0.69, **varies), run("asvit", 9090, 0.66, **varies)
    others = [run("ats-65", 8900, 0.6, **varies), run("ats-untrained-65", 8950, 0.6, **varies), run("topk", 9120, 0.65)]
    named = {r["name"]: r for r in (dense, *others, close, inside)}
    text = "\n".join(report.claims(named))
    assert "91.29 % (holds)" in text
    assert "within its interval (holds). Within 0.3 points: tome_threshold (-0.27 at 0.69);" in text
    assert "not, but in dense's interval: asvit (-0.39 at 0.66); lower: ats-65 (-2.29 at 0.60)" in text
    assert "topk" not in text  # keeps the same number of tokens on every image
    assert "interval (does not hold)" in "\n".join(report.claims({"dense": dense, "asvit": inside}))
    assert "-0.50 points (does not hold)" in text
    rows = report.questions(named)
    assert [
        "ATS fine-tuned against off the shelf",
        "89.00 % at 0.600 / 89.50 % at 0.600",
        "-0.50",
        "within the intervals",
    ] in rows
    assert any(row[1] == "not run" for row in rows)
    assert report.winners(list(named.values()))[1][1] == "topk (0.650)"
    assert "| dense | yes | 91.29 [" in report.markdown(list(named.values()), [])


def test_every_training_recipe_loads_and_has_a_training_section():
    found = sorted((FOLDER / "training").glob("*.yaml"))
    assert len(found) >= 11
    for path in found:
        assert Recipe.load(path).train is not None, path.name


def test_ship_writes_a_recipe_that_names_shipped_files(tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "HERE", tmp_path / "here")
    (tmp_path / "here").mkdir()
    source = Recipe.load(FOLDER / "training" / "dynamicvit.yaml").to_dict()
    source["model"]["weights"], source["prune"]["predictor"] = "model.safetensors", "predictor.safetensors"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(source))
    (tmp_path / "model.safetensors").write_bytes(b"1")
    (tmp_path / "predictor.safetensors").write_bytes(b"2")
    ship.ship(tmp_path, "dynamicvit")
    made = Recipe.load(tmp_path / "here" / "dynamicvit.yaml")
    assert made.model.weights == "shipped:fashion_mnist/dynamicvit.safetensors"
    assert made.prune.predictor == "shipped:fashion_mnist/dynamicvit_predictor.safetensors"


def test_large_weights_are_shipped_in_shards(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import save_file

    monkeypatch.setattr(ship, "HERE", tmp_path / "here")
    monkeypatch.setattr(ship, "LIMIT", 3000)
    (tmp_path / "here").mkdir()
    weights = {f"layer{number}": torch.full((20, 20), float(number)) for number in range(4)}
    save_file(weights, tmp_path / "model.safetensors")
    source = Recipe.load(FOLDER / "training" / "topk.yaml").to_dict()
    source["model"]["weights"] = "model.safetensors"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(source))
    for _ in range(2):  # the second time over the files of the first
        written = ship.ship(tmp_path, "topk")
    assert all(path.stat().st_size <= 3000 for path in written)
    index = tmp_path / "here" / "topk.safetensors.index.json"
    assert Recipe.load(tmp_path / "here" / "topk.yaml").model.weights == f"shipped:fashion_mnist/{index.name}"
    found = loading.read_weights(index)
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_half_types_are_compared_image_by_image():
    labels = np.array([0, 1, 1, 0])
    full = (np.array([[2.0, 1], [0, 3], [0, 2], [1, 0]]), [np.eye(4, dtype=bool), np.ones((4, 4), bool)])
    lists = np.eye(4, dtype=bool)
    lists[1] = [True, False, False, False]  # two decisions of image 1 flip at the first site
    later = np.ones((4, 4), bool)
    later[1:3, 0] = False  # what follows in image 1 is not counted again
    half = (np.array([[2.5, 1], [5.0, 0], [0, 2], [1, 0]]), [lists, later])
    found = precision.compared(full, half, labels, [3, 6])
    assert found["drop"][0] == pytest.approx(25.0)
    assert found["agreement"][0] == pytest.approx(75.0)
    assert [(site["images"], site["patches"], site["of"]) for site in found["sites"]] == [(1, 2, 4), (1, 1, 3)]
    assert found["logits_max_abs"] == pytest.approx(0.5)
    assert precision.listed_patches(np.array([[2, 0, -1], [-1, -1, -1]]), 3).tolist() == [[True, False, True], [False] * 3]


def test_a_drop_is_decided_by_its_interval():
    assert [types_report.verdict(drop, 0.1) for drop in ([0, -0.1, 0.05], [0.3, 0.2, 0.4], [0, -0.1, 0.2])] == [
        "below",
        "above",
        "undecided",
    ]


def test_every_method_of_the_half_types_has_a_recipe():
    assert all(precision.recipe_of(method).prune.method == method for method in precision.METHODS)
    assert len(precision.METHODS) >= 5


def outcome(name, agreement, spent, kind="calibrated", number=0):
    return {
        "number": number,
        "candidate": name,
        "kind": kind,
        "agreement": agreement,
        "error": 0.1,
        "macs": spent,
        "spent": spent,
    }


def test_a_search_is_told_with_its_rivals_and_what_a_kill_changed():
    chosen, rival = outcome("ward_merge", 0.96, 0.49, "searched", 7), outcome("tome", 0.95, 0.5, number=3)
    dear, other = outcome("ats.yaml", 0.99, 0.7, "recipe"), outcome("topk", 0.9, 0.48, "searched")
    whole = {
        "trials": 100, "images": 512, "evaluated": 4, "chosen": chosen, "why": "", "front": [rival, chosen],
        "outcomes": [rival, dear, other, chosen],
    }  # fmt: skip
    again = whole | {"front": [rival | {"number": 4}, chosen]}
    found = tuned.summary(whole, again, 41, [whole, whole])
    assert [one["candidate"] for one in found["rivals"]] == ["tome"], "too dear ones and searched ones are no rivals"
    text = report.tuned(found)
    assert "96.00 %" in text
    assert "tome (calibrated), has 95.00 % (holds)" in text
    assert "Killed at trial 41 and gone on with: the same front" in text
    worse = tuned.summary(whole | {"chosen": other}, whole | {"front": [rival]}, 41, [whole, whole | {"outcomes": []}])
    assert "(does not hold)" in report.tuned(worse)
    assert "ANOTHER front" in report.tuned(worse)
    assert "DIFFER" in report.tuned(worse)


def test_ward_merging_is_judged_against_the_best_schedule_of_tome():
    def pair(name, right):
        return run(name, right.count("1") * 100, 0.5, right=right)

    better, worse = "1" * 95 + "0" * 5, "0" * 15 + "1" * 80 + "0" * 5
    runs = [pair(f"ward_merge-untrained-{share}", worse) for share in (50, 40)]
    runs += [pair("tome_falling-untrained-50", better), pair("tome_falling-untrained-40", worse)]
    runs.append(pair("ward_merge-q0-untrained-50", better))
    text = report.ward_verdict({one["name"]: one for one in runs})
    assert "at .50 no, worse; at .40 no, inside the interval" in text
    assert "without the weighting by the CLS token it gains 15.00 [" in text
    assert "not measured" in report.ward_verdict({})


def test_exits_of_two_runs_are_compared_where_they_part_first():
    import precision_cascade

    found = precision_cascade.at_exits(np.array([1, 2, 3, 3, 1]), np.array([1, 1, 3, 2, 3]))
    assert found == [{"block": 1, "images": 2}, {"block": 2, "images": 1}]
