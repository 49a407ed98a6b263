from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tuning_support import pixels, saved

from vitprune.calibration.bench import Bench
from vitprune.cli import run as cli
from vitprune.recipe import Recipe
from vitprune.tuning.knees import knees, on_knee, snapped
from vitprune.tuning.table import Curve
from vitprune.vit.dense import geometry

# 17 tokens in tiles of 6: flat up to 6 and 12, then up at once
STAIRS = Curve(tokens=[2, 4, 6, 7, 10, 12, 13, 17], milliseconds=[1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0])
SLOPE = Curve(tokens=[2, 4, 6, 7, 10, 12, 13, 17], milliseconds=[2.0, 4.0, 6.0, 7.1, 10.0, 12.0, 12.9, 17.0])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"))


def test_a_knee_is_where_time_jumps():
    assert knees(STAIRS) == [6, 12]
    assert knees(SLOPE) == [], "a straight line has none, nor has noise on it"


def test_counts_go_up_where_tokens_are_free_and_down_where_a_few_cost_a_tile():
    assert [on_knee(STAIRS, tokens, 17) for tokens in (3, 6, 8, 12, 17)] == [6, 6, 12, 12, 17]
    assert on_knee(STAIRS, 7, 10) == 6, "12 do not enter, and the seventh token costs half of the time"
    assert on_knee(STAIRS, 13, 17) == 12
    assert [on_knee(SLOPE, tokens, 17) for tokens in (3, 8, 13)] == [3, 8, 13]


CASES = [
    ({"method": "topk", "stages": [1, 2], "keep_rate": 0.5}, [11, 5]),
    ({"method": "evit", "stages": [1, 2], "keep_rate": [0.5, 0.3], "fuse": True}, [11, 5]),
    ({"method": "pomt", "stages": [1], "remove": 8}, [11]),
    ({"method": "tome", "r": [4, 3, 2, 1]}, [11, 11, 11, 11]),
    ({"method": "ward_merge", "counts": "fixed", "r": [4, 3, 6]}, [11, 11, 5]),
    ({"method": "tome_threshold", "tau": 0.5, "r_max": 5, "capacity": [12, 12, 11, 10]}, [11, 11, 11, 11]),
]


@pytest.mark.parametrize(("prune", "rows"), CASES, ids=[case[0]["method"] for case in CASES])
def test_padded_counts_of_every_kind_lie_on_knees(model, prune, rows):
    """Rows behind the one CLS token: 5 and 11 are 6 and 12 tokens."""
    plain = Recipe.load(model[0]).to_dict() | {"prune": prune, "graph": {"shapes": "padded", "batch": "1:4:8"}}
    bench = Bench(model[2], Recipe.load(plain), pixels(4))
    changed = bench.with_prune(snapped(bench, prune, STAIRS))
    sites = bench.method.sites(changed.prune, bench.geometry)
    blocks = bench.method.block_tokens(sites, bench.geometry, [float(site.limit) for site in sites])
    assert [blocks[site.block].mlp - 1 for site in sites] == rows
    bench.measure({key: value for key, value in changed.to_dict()["prune"].items() if key != "method"}, padded=True)
    straight = bench.method.sites(bench.with_prune(snapped(bench, prune, SLOPE)).prune, bench.geometry)
    before = bench.method.sites(bench.recipe.prune, bench.geometry)
    assert [site.limit for site in straight] == [site.limit for site in before]


def test_counts_that_cannot_be_reached_stay(model):
    """Six rows would go down to four, which three merges cannot reach from nine."""
    cliff = Curve(tokens=[2, 5, 6, 17], milliseconds=[1.0, 1.0, 3.0, 3.01])
    assert on_knee(cliff, 7, 10) == 5
    prune = {"method": "tome_threshold", "tau": 0.5, "r_max": 3, "capacity": [13, 10, 9, 6]}
    bench = Bench(model[2], Recipe.load(Recipe.load(model[0]).to_dict() | {"prune": prune}), pixels(2))
    assert snapped(bench, prune, cliff) == prune


def test_adaptive_counts_without_capacities_stay(model):
    prune = {"method": "ward_merge", "mu": 0.3}
    bench = Bench(model[2], Recipe.load(Recipe.load(model[0]).to_dict() | {"prune": prune}), pixels(2))
    assert snapped(bench, prune, STAIRS) == prune


def test_a_search_in_padded_shapes_writes_counts_on_knees(model, tmp_path):
    """With a table of stairs the rows that the recipe keeps are 5 or 11 behind the CLS token."""
    stairs = {"tokens": STAIRS.tokens, "milliseconds": STAIRS.milliseconds}
    nothing = {"tokens": [2, 17], "milliseconds": [0.0, 0.0]}
    sizes = geometry(model[2])
    own = {"width": sizes.width, "heads": sizes.heads, "mlp_hidden": sizes.mlp_hidden, "prefix": sizes.prefix}
    part = {"rest": nothing, "block": stairs, "sites": {"topk": nothing}}
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"schema_version": 1, "device": {}, "model": own, "batches": {"1": part}}))
    call = ["tune", str(model[0]), "--data", str(model[1]), "--set", "graph.shapes=padded", "--method", "topk", "--trials", "3"]
    call += ["--budget-latency", "0.8", "--latency-table", str(table), "-o", str(tmp_path / "s"), "--samples", "16", "--quiet"]
    assert cli(call) == 0
    made = Recipe.load(tmp_path / "s" / "recipe.yaml")
    assert made.prune.keep
    assert set(made.prune.keep) <= {5, 11, 16}, "16: all patches, where the curve ends"
    assert set(made.prune.keep) & {5, 11}
