from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tuning_support import pixels, saved

from vitprune import methods
from vitprune.calibration.bench import Bench
from vitprune.cli import run as cli
from vitprune.errors import RecipeError
from vitprune.recipe import Recipe
from vitprune.tuning import evaluating, study, trial
from vitprune.tuning.budget import Budget, budget_of, macs_share, with_capacity
from vitprune.tuning.candidates import chosen_methods, of_methods, starts
from vitprune.tuning.outcome import Outcome, best, front, leaders
from vitprune.tuning.tune import Confirmed, Options, _why, tune
from vitprune.vit.dense import geometry

QUICK = ["tome", "pomt"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Images, and a recipe of a model with uneven attention."""
    return saved(tmp_path_factory.mktemp("model"))


def options(model, folder, **changes):
    plain = {
        "source": str(model[0]),
        "data": model[1],
        "output": folder,
        "budget": Budget(macs=0.7),
        "trials": 14,
        "methods": QUICK,
    }
    return Options(**(plain | changes))


def silent(done, total, text):
    pass


def found_in(document):
    """What was found, without the numbers of trials: a trial that was killed has one."""
    return [{key: value for key, value in one.items() if key != "number"} for one in document["outcomes"]]


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "whole"
    return tune(options(model, folder, recipes=[str(model[0])]), silent), folder


def test_the_choice_is_within_the_budget_and_no_worse_than_anything_given_or_calibrated(model, undisturbed):
    tuned, folder = undisturbed
    assert tuned.chosen is not None
    kinds = {one.kind for one in tuned.outcomes}
    assert {"recipe", "calibrated", "searched", "front"} <= kinds
    for one in tuned.outcomes:
        if one.spent <= 0.7:
            assert tuned.chosen.rank <= one.rank
    made = Recipe.load(folder / "recipe.yaml")
    images = pixels(160, seed=1)
    bench = Bench(model[2], made, images)
    assert bench.measure({}).macs == pytest.approx(tuned.chosen.spent)
    assert tuned.chosen.spent <= 0.7
    agreement, cosine = bench.agreement({})
    assert agreement == pytest.approx(tuned.chosen.agreement)
    assert 1 - cosine == pytest.approx(tuned.chosen.error, abs=1e-5)
    document = json.loads((folder / "tune.json").read_text())
    assert document["chosen"]["candidate"] in document["why"]
    assert len(list((folder / "front").glob("*.yaml"))) == len(document["front"])
    for path in (folder / "front").glob("*.yaml"):
        Recipe.load(path)


def test_a_search_that_was_killed_goes_on_to_the_same_end(model, undisturbed, tmp_path, monkeypatch):
    real = trial.carry_out

    def killed(search, found, one, proposal):
        if study.place(found, one.number) == 7:
            raise SystemExit
        return real(search, found, one, proposal)

    monkeypatch.setattr(trial, "carry_out", killed)
    monkeypatch.setattr(optuna.Study, "tell", _dead_tell(optuna.Study.tell))
    monkeypatch.setattr(study, "worker", lambda: f"{study.socket.gethostname()}/4194304/1")  # of no process
    call = options(model, tmp_path / "out", recipes=[str(model[0])])
    with pytest.raises(SystemExit):
        tune(call, silent)
    monkeypatch.undo()
    tuned = tune(call, silent)
    assert found_in(tuned.document) == found_in(undisturbed[0].document)
    assert [one.number for one in tuned.outcomes] != [one.number for one in undisturbed[0].outcomes]
    again = tune(call, silent)  # nothing is left to do
    assert again.document == tuned.document


def _dead_tell(real):
    """A process that is killed tells nothing."""

    def tell(self, number, values=None, state=None, **rest):
        if state != optuna.trial.TrialState.FAIL:
            return real(self, number, values, state=state, **rest)
        return None

    return tell


def test_two_workers_share_one_study(model, tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    calls = [options(model, tmp_path / name, storage=url, trials=8, methods=["tome"]) for name in ("a", "b")]
    done: list[object] = []
    workers = [threading.Thread(target=lambda call=call: done.append(tune(call, silent))) for call in calls]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert len(done) == 2
    every = tune(calls[0], silent)
    finished = optuna.load_study(study_name="vitprune", storage=url).get_trials(deepcopy=False)
    real = [one for one in finished if one.state != optuna.trial.TrialState.FAIL]
    assert len(real) == 8
    began = [(one.candidate, one.start) for one in every.outcomes if one.kind == "calibrated"]
    assert len(began) == len(set(began)) == 5, "no start is tried twice, none is left out"


def test_a_study_of_something_else_is_refused(model, tmp_path, undisturbed):
    with pytest.raises(RecipeError, match="VP178") as error:
        tune(options(model, undisturbed[1], recipes=[str(model[0])], budget=Budget(macs=0.6)), silent)
    assert "budget" in error.value.cause


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--budget-macs", "0"], "VP170"), (["--budget-macs", "1.5"], "VP170"), (["--budget-macs", "nan"], "VP194"), ([], "VP170"),
        (["--budget-macs", "0.5", "--method", "tomme"], "VP104"), (["--budget-macs", "0.5", "--method", "asvit"], "VP175"),
        (["--budget-macs", "0.5", "--method", "dvt"], "VP175"), (["--budget-macs", "0.5", "--data", "/nowhere"], "VP620"),
        (["--budget-macs", "0.5", "--storage", "nosql://x:secret@y/z"], "VP177"), (["--budget-macs", "0.5", "--storage", "x"], "VP177"),
        (["--budget-macs", "0.5", "--storage", "sqlite:////nowhere/x.db"], "VP177"), (["--budget-macs", "0.5", "-r", "ats_deit_small"], "VP179"),
        (["--budget-macs", "0.5", "-r", "dvt_deit_small"], "VP176"), (["--budget-macs", "0.5", "--set", "model.name=resnet18"], "VP3"),
        (["--budget-latency", "0"], "VP170"), (["--budget-latency", "0.5", "--budget-macs", "0.5"], "VP170"),
        (["--budget-macs", "0.5", "--target", "rtx"], "VP182"), (["--budget-latency", "0.5", "--target", "rtx"], "VP180"),
        (["--budget-latency", "0.5", "--target", "toaster"], "VP2"), (["--budget-latency", "0.5", "--batch", "64"], "VP181"),
    ],
)  # fmt: skip
def test_bad_input(model, tmp_path, capsys, arguments, code):
    call = ["tune", str(model[0]), "--data", str(model[1]), "-o", str(tmp_path / "out"), "--no-pretrained", "--trials", "2"]
    assert cli([*call, *arguments]) == 2
    told = capsys.readouterr().err
    assert code in told
    assert "secret" not in told


def test_damaged_storage_and_foreign_folders(model, tmp_path, capsys):
    call = ["tune", str(model[0]), "--data", str(model[1]), "--budget-macs", "0.7", "-o"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "study.db").write_bytes(b"no database " * 100)
    assert cli([*call, str(tmp_path / "broken")]) == 2
    assert "VP177" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    assert cli([*call, str(tmp_path / "other")]) == 2
    assert "VP106" in capsys.readouterr().err


def test_command_and_report(model, tmp_path, capsys):
    call = ["tune", str(model[0]), "--data", str(model[1]), "--method", "tome", "--trials", "6", "-o", str(tmp_path / "out")]
    assert cli([*call, "--budget-macs", "0.75", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["chosen"]["spent"] <= 0.75
    page = (tmp_path / "out" / "report.html").read_text()
    assert document["why"].split(";")[0] in page
    assert page.count("<circle") >= document["evaluated"]
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert (tmp_path / "out" / "front.svg").read_text().startswith("<svg")


def test_nothing_within_reach_is_exit_1(model, tmp_path, capsys):
    call = ["tune", str(model[0]), "--data", str(model[1]), "--method", "tome", "--trials", "5", "-o", str(tmp_path / "out")]
    assert cli([*call, "--budget-macs", "0.05", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["chosen"]) == ("failed", None)
    assert "nothing meets 0.05" in document["why"]
    assert not (tmp_path / "out" / "recipe.yaml").exists()


@pytest.mark.parametrize("name", chosen_methods(()))
def test_every_shape_of_a_method_is_a_recipe_that_meets_budgets(model, name):
    base, sizes = Recipe.load(model[0]), geometry(model[2])
    (candidate,) = of_methods(base, model[2], [name], sizes)
    images = pixels(8)
    rng, met = np.random.default_rng(3), 0
    for _ in range(4):
        shape = {}
        for one in candidate.dimensions(sizes):
            if one.values:
                shape[one.name] = one.values[rng.integers(len(one.values))]
            else:
                value = rng.uniform(one.low, one.high)
                shape[one.name] = int(round(value)) if one.integer else value
        keys, knob = candidate.knob.shaped(shape, sizes)
        bench = Bench(model[2], candidate.with_keys(keys), images)
        low, high = knob.bounds(bench)
        costs = [bench.measure(knob.settings(bench, value)).macs for value in (low, high)]
        met += max(costs) <= 1.05 and (costs[0] < costs[1]) == knob.rising
    assert met == 4


def outcome(number, spent, agreement, error=0.1, candidate="tome", kind="searched"):
    return Outcome(number, candidate, kind, {"method": candidate}, None, None, spent, spent, agreement, error, [])


def test_front_and_choice():
    every = [outcome(0, 0.5, 0.9), outcome(1, 0.4, 0.9), outcome(2, 0.6, 0.95), outcome(3, 0.5, 0.9, 0.08), outcome(4, 0.7, 0.94)]
    assert [one.number for one in front(every)] == [1, 3, 2]
    assert best(every, 0.5).number == 3
    assert best(every, 0.3) is None
    assert best([*every, outcome(9, 0.5, 0.9, 0.08)], 0.5).number == 3, "the earlier of two equals"
    given = [outcome(5, 0.4, 0.99, kind="recipe"), outcome(6, 0.4, 0.8, candidate="topk")]
    assert [one.number for one in leaders([*every, *given], 3)] == [2, 4, 6]


def test_the_reason_leaves_out_what_a_fresh_run_did_not_confirm():
    every = [
        outcome(0, 0.7, 0.97, candidate="pomt"),
        outcome(1, 0.7, 0.9, candidate="evit"),
        outcome(2, 0.7, 0.8, candidate="topk"),
    ]
    text = _why(every[1], every, Budget(latency=0.8), 50, Confirmed(every[1], {0: 0.83, 1: 0.77}))
    assert "evit agrees best of 2 settings" in text
    assert "took 0.770 of it in a fresh interleaved run (1 better ones did not meet the budget again)" in text
    assert "the best of another method was topk" in text
    assert "pomt" not in text


def test_fidelity_sees_a_difference():
    dense = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    same = evaluating.fidelity(dense + 3, dense, True)
    assert (same.agreement, same.error) == (1.0, pytest.approx(0, abs=1e-7))
    swapped = evaluating.fidelity(dense[::-1], dense, True)
    assert swapped.agreement < 0.5
    assert swapped.error > 0.5
    assert evaluating.fidelity(dense, dense, False).agreement is None
    assert evaluating.fidelity(-dense, dense, False).loss == pytest.approx(2)


def test_dense_outputs_are_kept_and_never_those_of_another_model(model, tmp_path):
    images = pixels(6)
    cache = tmp_path / "dense.npz"
    logits, digest = evaluating.dense_logits(model[2], images, cache)
    stored = cache.stat().st_mtime_ns
    assert np.array_equal(evaluating.dense_logits(model[2], images, cache)[0], logits)
    assert cache.stat().st_mtime_ns == stored
    other, another = evaluating.dense_logits(model[2], images[::-1].copy(), cache)
    assert another != digest
    assert np.allclose(other, logits[::-1], atol=1e-5)
    cache.write_bytes(b"PK")
    assert np.allclose(evaluating.dense_logits(model[2], images, cache)[0], logits)


def test_padded_shapes_are_charged_for_what_capacities_hold(model):
    base = Recipe.load(model[0]).with_("graph.shapes", "padded")
    (candidate,) = of_methods(base, model[2], ["ward_merge"], geometry(model[2]))
    images = pixels(40)
    bench = Bench(model[2], candidate.recipe, images)
    counts = bench.measure({"mu": 0.3}).counts
    assert len(np.unique(counts[:, -1])) > 1
    prune = with_capacity(bench, {"mu": 0.3}, counts)
    assert prune["capacity"] == [int(np.ceil(value)) for value in np.quantile(counts, 0.99, axis=0)]
    assert macs_share(bench, prune, counts) == pytest.approx(macs_share(bench, {"mu": 0.3}, counts))
    dynamic = Bench(model[2], candidate.recipe.with_("graph.shapes", "dynamic"), images)
    assert macs_share(dynamic, {"mu": 0.3}, counts) < macs_share(bench, prune, counts)


def test_places_leave_out_what_failed():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    one = optuna.create_study(sampler=study.ByPlace(1))
    drawn = []
    for number in range(3):
        asked = one.ask()
        drawn.append(asked.suggest_float("x", 0, 1))
        one.tell(asked, state=optuna.trial.TrialState.FAIL if number == 0 else None, values=None if number == 0 else 1.0)
    assert drawn[0] == drawn[1] != drawn[2]
    assert [study.place(one, number) for number in range(3)] == [0, 0, 1]


def test_budgets_and_starts(model):
    assert budget_of(0.5, None) == Budget(macs=0.5)
    assert budget_of(None, 1.0).what == "dense latency"
    with pytest.raises(RecipeError, match="VP170"):
        budget_of(0.5, 0.5)
    made = of_methods(Recipe.load(model[0]), model[2], ["tome", "ward_merge"], geometry(model[2]))
    begun = starts(made)
    assert [one.keys.get("counts") for one in begun if one.candidate.name == "ward_merge"] == [None, "fixed"]
    assert sum(one.candidate.name == "tome" for one in begun) == 5
    assert all(methods.get(name).training_need != "required" for name in chosen_methods(()))


def test_methods_that_need_a_cls_token_are_left_out_without_one(model):
    sizes = replace(geometry(model[2]), has_cls=False)
    assert [one.name for one in of_methods(Recipe.load(model[0]), model[2], ["topk", "tome"], sizes)] == ["tome"]
    from vitprune.errors import ExportError

    with pytest.raises(ExportError, match="VP312"):
        of_methods(Recipe.load(model[0]), model[2], ["topk"], sizes)


class Slow:
    """Stands for the runs: whatever is measured takes what the test says."""

    slack, direct = 0.07, False

    def __init__(self, factor, fresh=None):
        self.factor, self.fresh, self.asked = factor, fresh or factor, []

    def scouted(self, bench, prune, counts):
        return macs_share(bench, prune, counts)

    def exact(self, bench, prune, counts):
        return self.factor * macs_share(bench, prune, counts)

    def ratio(self, module, recipe, rounds):
        self.asked.append(rounds)
        images = pixels(8)
        return self.fresh * Bench(module, recipe, images).measure({}).macs


@pytest.mark.parametrize(("factor", "fresh", "met"), [(1.2, 1.2, True), (1.2, 2.0, False), (3.0, 3.0, False)])
def test_a_latency_is_met_in_a_fresh_run_or_nothing_is_written(model, tmp_path, monkeypatch, factor, fresh, met):
    from vitprune.tuning import latency

    slow = Slow(factor, fresh)
    monkeypatch.setattr(latency, "CpuLatency", lambda images, batch: slow)
    call = options(model, tmp_path / "out", budget=Budget(latency=0.8), trials=5, methods=["tome"])
    tuned = tune(call, silent)
    assert (tuned.chosen is not None) == met
    assert (tmp_path / "out" / "recipe.yaml").exists() == met
    assert all(one.spent < 1 for one in tuned.front)
    if met:
        assert set(slow.asked) == {latency.FRESH_ROUNDS}
        assert 0.6 < tuned.chosen.spent <= 0.8, "turned up and down until most of the budget is used"
        assert "in a fresh interleaved run" in tuned.why
    elif factor == 3.0:
        assert "nothing is faster than the dense model here" in tuned.why
    else:
        assert "in a fresh run" in tuned.why


def test_latency_is_measured_on_the_graphs_that_would_be_built(model):
    from vitprune.tuning.latency import CpuLatency

    images = pixels(12)
    timer = CpuLatency(images, batch=2)
    dense, pruned = timer.timings(model[2], Recipe.load(model[0]), rounds=2)
    assert (dense.name, pruned.name, dense.images) == ("dense", "pruned", 12)
    assert pruned.ratio > 0
    assert len(timer._dense) == 1
    timer.timings(model[2], Recipe.load(model[0]).with_("prune.r", 1), rounds=1)
    assert len(timer._dense) == 1, "the dense graph is exported once"
