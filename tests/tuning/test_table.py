from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tuning_support import pixels, saved

from vitprune.calibration.bench import Bench
from vitprune.cli import run as cli
from vitprune.errors import LoadError, RecipeError
from vitprune.methods.base import BlockTokens
from vitprune.methods.cost import block_macs
from vitprune.recipe import Recipe
from vitprune.tuning.profile import token_counts
from vitprune.tuning.table import Curve, LatencyTable, TableLatency, read_table, table_for
from vitprune.vit.dense import geometry


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"))


def by_macs(sizes, sites=None, batches=(1,)):
    """A device whose time is the MACs, to the last token."""
    tokens = list(range(1, sizes.tokens + 1))
    times = [block_macs(BlockTokens(n, n, n), sizes.width, sizes.mlp_hidden) for n in tokens]
    rest = {"tokens": tokens, "milliseconds": [float(sizes.embed_macs)] * len(tokens)}
    part = {"rest": rest, "block": {"tokens": tokens, "milliseconds": times}, "sites": sites or {}}
    own = {"width": sizes.width, "heads": sizes.heads, "mlp_hidden": sizes.mlp_hidden, "prefix": sizes.prefix}
    return {"schema_version": 1, "device": {"name": "made up"}, "model": own, "batches": {str(one): part for one in batches}}


def nothing(sizes, *names):
    return {name: {"tokens": [1, sizes.tokens], "milliseconds": [0.0, 0.0]} for name in names}


@pytest.mark.parametrize("prune", [{"method": "tome", "r": [3, 2, 2, 1]}, {"method": "topk", "stages": [1, 3]}])
def test_a_device_whose_time_is_its_macs_gives_the_share_of_the_macs(model, prune):
    sizes = geometry(model[2])
    table = LatencyTable.model_validate(by_macs(sizes, nothing(sizes, "tome", "topk")))
    bench = Bench(model[2], Recipe.load(Recipe.load(model[0]).to_dict() | {"prune": prune}), pixels(6))
    measured = bench.measure({})
    assert TableLatency(table, 1, sizes).exact(bench, {}, measured.counts) == pytest.approx(measured.macs, rel=1e-9)


def test_a_site_costs_what_the_table_says_and_must_be_in_it(model):
    sizes = geometry(model[2])
    bench = Bench(model[2], Recipe.load(model[0]), pixels(4))
    counts = bench.measure({}).counts
    free = TableLatency(LatencyTable.model_validate(by_macs(sizes, nothing(sizes, "tome"))), 1, sizes)
    dear = by_macs(sizes, {"tome": {"tokens": [1, sizes.tokens], "milliseconds": [1000.0, 1000.0]}})
    charged = TableLatency(LatencyTable.model_validate(dear), 1, sizes)
    more = (charged.exact(bench, {}, counts) - free.exact(bench, {}, counts)) * free.dense()
    assert more == pytest.approx(4 * 1000)
    assert charged.exact(bench, {"r": 0}, np.full((4, 4), sizes.patches)) == pytest.approx(1), (
        "sites where nothing merges are free"
    )
    with pytest.raises(RecipeError, match="VP184"):
        TableLatency(LatencyTable.model_validate(by_macs(sizes)), 1, sizes).exact(bench, {}, counts)


def test_an_image_waits_for_the_fullest_of_its_batch(model):
    sizes = geometry(model[2])
    table = LatencyTable.model_validate(by_macs(sizes, nothing(sizes, "tome"), (1, 2)))
    bench = Bench(model[2], Recipe.load(model[0]), pixels(4))
    counts = np.array([[16, 12, 8, 4], [12, 10, 6, 4], [16, 12, 8, 4], [12, 10, 6, 4]])
    alone, pairs = (TableLatency(table, batch, sizes).exact(bench, {}, counts) for batch in (1, 2))
    fullest = TableLatency(table, 1, sizes).exact(bench, {}, counts[:1])
    assert alone < pairs == pytest.approx(fullest)


def test_curves_and_counts(model):
    curve = Curve(tokens=[2, 4, 8], milliseconds=[1, 2, 6])
    assert [curve.at(n) for n in (1, 2, 3, 6, 8, 9)] == [1, 1, 1.5, 4, 6, 7]
    counts = token_counts(geometry(model[2]), 4)
    assert counts[-1] == 17
    assert counts == sorted(set(counts))
    from dataclasses import replace

    assert {64, 65, 128, 129, 192, 193, 197} <= set(token_counts(replace(geometry(model[2]), patches=196), 3))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"schema_version": 2}, "VP648"), ({"batches": {}}, "VP648"), ({"extra": 1}, "VP648"), ({"model": {"width": 3}}, "VP648"),
        ({"batches": {"2": None}}, "VP648"),
    ],
)  # fmt: skip
def test_tables_that_are_none(model, tmp_path, change, code):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(by_macs(geometry(model[2])) | change))
    with pytest.raises(LoadError, match=code):
        read_table(path)


def test_damaged_missing_and_unfitting_tables(model, tmp_path):
    sizes, path = geometry(model[2]), tmp_path / "table.json"
    with pytest.raises(LoadError, match="VP647"):
        read_table(path)
    for text in ("", "{", "[1]", '{"a": NaN}', json.dumps(by_macs(sizes)).replace("8192.0", "-8192.0")):
        path.write_text(text)
        with pytest.raises(LoadError, match="VP648"):
            read_table(path)
    plain = by_macs(sizes)
    path.write_text(json.dumps(plain))
    assert table_for(path, 1, sizes).dense() > 0
    with pytest.raises(RecipeError, match="VP185"):
        table_for(path, 8, sizes)
    path.write_text(json.dumps(plain | {"model": plain["model"] | {"width": 64}}))
    with pytest.raises(RecipeError, match="VP185"):
        table_for(path, 1, sizes)
    plain["batches"]["1"]["block"] = {"tokens": [1, 5], "milliseconds": [1, 5]}
    path.write_text(json.dumps(plain))
    with pytest.raises(RecipeError, match="VP185") as error:
        table_for(path, 1, sizes)
    assert "ends at 5 tokens" in error.value.cause


def test_a_table_is_measured_and_a_search_uses_it(model, tmp_path, capsys):
    table = tmp_path / "table.json"
    call = ["benchmark", str(model[0]), "-o", str(table), "--counts", "2", "--rounds", "3", "--method", "tome"]
    assert cli(call) == 2
    assert "VP600" in capsys.readouterr().err, "a recipe is no bundle to time"
    assert cli([*call, "--profile-tokens"]) == 0
    part = read_table(table).batches[1]
    assert part.block.tokens == [3, 17]
    assert set(part.sites) == {"tome"}
    assert all(value > 0 for value in part.rest.milliseconds)
    assert cli([*call, "--profile-tokens"]) == 2
    assert "VP106" in capsys.readouterr().err
    sizes = geometry(model[2])
    table.write_text(json.dumps(by_macs(sizes, nothing(sizes, "tome"))))  # what was measured in microseconds decides nothing
    tune = ["tune", str(model[0]), "--data", str(model[1]), "--method", "tome", "--trials", "6", "-o", str(tmp_path / "out")]
    assert cli([*tune, "--budget-macs", "0.7", "--latency-table", str(table)]) == 2
    assert "VP182" in capsys.readouterr().err
    assert cli([*tune, "--budget-latency", "0.75", "--latency-table", str(table), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    chosen = document["chosen"]
    assert chosen["spent"] <= 0.75
    assert chosen["spent"] == pytest.approx(chosen["macs"])
    assert "fresh_ratios" not in document
