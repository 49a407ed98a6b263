"""A-ViT: the halting rule, the golden file of the official code, and the invariants of methods.md §6 and §9."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from avit_support import (
    GATE,
    builds_on_rtx,
    export,
    golden_model,
    recipe,
    run_graph,
    run_reference,
    session,
    sets,
    unusual_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vitprune import methods
from vitprune.errors import ExportError, RecipeError
from vitprune.methods.avit import rule as avit
from vitprune.methods.base import Geometry
from vitprune.methods.cost import dense_blocks, model_macs
from vitprune.recipe import Recipe

GOLDEN = Path(__file__).parents[1] / "golden" / "avit_masked.npz"
EVERY = list(range(1, 12))
SMALL = Geometry(depth=12, patches=196, prefix=1, width=384, heads=6, mlp_hidden=1536, embed_macs=196 * 768 * 384)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def golden():
    return np.load(GOLDEN)


@pytest.fixture(scope="session")
def model(golden):
    return golden_model(golden)


@pytest.fixture(scope="session")
def dense(model):
    return export(model, (3, 64, 64))


@pytest.fixture(scope="session")
def unusual():
    return unusual_model()


@pytest.fixture(scope="session")
def unusual_dense(unusual):
    return export(unusual, (3, 32, 32))


# ---- the rule alone


def steps(scores, eps=0.01):
    """Weights, active flags and ponder remainder of one token whose scores are given; the last one is replaced by 1."""
    total, rest, active = torch.zeros(1), torch.ones(1), torch.ones(1, dtype=torch.bool)
    weights, flags = [], []
    for h in [*scores[:-1], 1.0]:
        flags.append(bool(active))
        total, rest, active, weight = avit.accumulate(torch.tensor([h]), total, rest, active, eps)
        weights.append(float(weight))
    return weights, flags


def test_oracle_of_the_specification():
    weights, flags = steps([0.2, 0.5, 0.4, 0.7])
    assert weights == pytest.approx([0.2, 0.5, 0.3, 0.0])
    assert flags == [True, True, True, False]


def test_certain_token_halts_in_the_first_block():
    assert steps([1.0, 0.3, 0.3])[0] == [1.0, 0.0, 0.0]


def test_token_that_never_wants_to_halt_is_taken_from_the_last_block():
    assert steps([0.0, 0.0, 0.0])[0] == [0.0, 0.0, 1.0]


def test_exactly_at_the_limit_the_weight_is_lost_as_in_the_official_rule():
    weights, flags = steps([0.25, 0.5, 0.5], eps=0.25)
    assert weights == [0.25, 0.0, 0.0]
    assert flags == [True, True, False]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0, 1.0, width=32), min_size=2, max_size=12))
def test_weights_sum_to_one(scores):
    running = np.cumsum(np.asarray(scores, np.float32), dtype=np.float32)
    if np.any(running == np.float32(0.99)):
        return
    assert sum(steps(scores)[0]) == pytest.approx(1.0, abs=1e-5)


def test_score_is_positive_exactly_where_a_token_goes_on():
    limit = np.float32(0.99)
    around = torch.tensor([np.nextafter(limit, np.float32(0)), limit, np.nextafter(limit, np.float32(1))])
    assert (avit.score(around, 0.01) > 0).tolist() == [True, False, False]


# ---- the golden file


@pytest.mark.parametrize("at", [[], [3, 6, 9], EVERY])
def test_reference_reproduces_the_golden_file(golden, model, at):
    module, logits = run_reference(model, recipe(compact_at=at, cls_exit=False), golden["x"])
    assert np.abs(logits - golden["logits"]).max() <= 1e-4
    rule = module.steps
    assert np.array_equal(rule.active.numpy(), golden["active"] == 1)
    assert np.array_equal(np.isnan(rule.halting.numpy()), np.isnan(golden["halting"]))
    assert np.nanmax(np.abs(rule.halting.numpy() - golden["halting"])) <= 1e-4
    assert np.array_equal(rule.depth.numpy(), golden["counter"].astype(np.int64))
    assert np.abs(rule.ponder.numpy() - golden["rho"]).max() <= 1e-4
    assert np.abs(rule.ponder.numpy().mean(1) - golden["ponder_mean"]).max() <= 1e-4


def test_reference_reproduces_the_golden_file_one_image_at_a_time(golden, model):
    for image in range(4):
        module, logits = run_reference(model, recipe(compact_at=EVERY, cls_exit=False), golden["x"][image : image + 1])
        assert np.abs(logits - golden["logits"][image]).max() <= 1e-4
        assert np.array_equal(module.steps.active[:, 0].numpy(), golden["active"][:, image] == 1)


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_graph_reproduces_the_golden_file(golden, dense, shapes):
    outputs = run_graph(dense, recipe({"shapes": shapes}, compact_at=EVERY, cls_exit=False), golden["x"])
    assert np.abs(outputs[0] - golden["logits"]).max() <= 1e-4
    for block, kept in zip(EVERY, outputs[1:], strict=True):
        expected = [tuple(np.flatnonzero(golden["active"][block, image, 1:])) for image in range(4)]
        assert sets(kept) == expected, f"before block {block}"


def test_graph_with_a_fixed_batch_of_one_reproduces_the_golden_file(golden, dense):
    runner = session(dense, recipe({"batch": "1"}, compact_at=EVERY))
    for image in range(4):
        logits = runner.run(None, {"image": golden["x"][image : image + 1]})[0]
        assert np.abs(logits - golden["logits"][image]).max() <= 1e-4


def test_margin_is_the_golden_margin(golden, model):
    """With `cls_exit` a patch's decision hangs on CLS too, so the smallest margin of an image covers all its active tokens."""
    module, _ = run_reference(model, recipe(compact_at=EVERY), golden["x"])
    for block, margin in zip(EVERY, module.margin, strict=True):
        for image in range(4):
            if golden["active"][block - 1, image, 0]:
                assert float(margin[image].min()) == pytest.approx(golden["margin"][block - 1, image], abs=1e-5)


# ---- compaction, masking, early exit


@settings(max_examples=4, deadline=None)
@given(st.sets(st.integers(1, 11)), st.sampled_from(["dynamic", "padded"]), st.integers(1, 4), st.booleans())
def test_compaction_anywhere_gives_the_same_logits(golden, model, dense, at, shapes, batch, leave):
    chosen = recipe({"shapes": shapes}, compact_at=sorted(at), cls_exit=leave)
    x = golden["x"][:batch]
    module, logits = run_reference(model, chosen, x)
    outputs = run_graph(dense, chosen, x)
    for found in (logits, outputs[0]):
        assert np.abs(found - golden["logits"][:batch]).max() <= 1e-5
    assert [sets(kept) for kept in outputs[1:]] == [sets(kept) for kept in module.kept]


def test_images_whose_cls_has_halted_leave_as_a_whole(golden, model, dense):
    chosen = recipe(compact_at=EVERY)
    module, logits = run_reference(model, chosen, golden["x"])
    outputs = run_graph(dense, chosen, golden["x"])
    assert np.abs(logits - golden["logits"]).max() <= 1e-5
    assert np.abs(outputs[0] - golden["logits"]).max() <= 1e-5
    exits = 0
    for block, from_graph, from_reference in zip(EVERY, outputs[1:], module.kept, strict=True):
        assert sets(from_graph) == sets(from_reference)
        for image, patches in enumerate(sets(from_graph)):
            alive = golden["active"][block, image, 0] == 1
            exits += not alive
            assert patches == (tuple(np.flatnonzero(golden["active"][block, image, 1:])) if alive else ())
    assert exits == 6  # CLS of images 1, 2, 3 is gone before blocks 11; 10, 11; 9, 10, 11


def test_everything_halted_after_the_first_block(golden, model, dense):
    """H = 1 in block 0: the head reads CLS after block 0, no patch is left and no softmax row is empty."""
    x = torch.tensor(golden["x"])
    with torch.no_grad():
        first = model.blocks[0](model._pos_embed(model.patch_embed(x)))
        expected = model.head(model.norm(first)[:, 0]).numpy()
    for leave, at in ((False, []), (False, [1, 5]), (True, [5])):
        chosen = recipe(compact_at=at, gate_center=-1000.0, cls_exit=leave)
        module, logits = run_reference(model, chosen, x)
        outputs = run_graph(dense, chosen, x)
        assert np.abs(logits - expected).max() <= 1e-5
        assert np.abs(outputs[0] - expected).max() <= 1e-5
        assert module.steps.depth.max() == 1
        assert all(not row for kept in outputs[1:] for row in sets(kept))


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_gate_that_never_opens_gives_the_dense_logits(golden, model, dense, shapes):
    chosen = recipe({"shapes": shapes}, gate_center=1.0e4)
    module, logits = run_reference(model, chosen, golden["x"])
    outputs = run_graph(dense, chosen, golden["x"])
    assert np.abs(logits - golden["dense_logits"]).max() <= 1e-4
    assert np.abs(outputs[0] - golden["dense_logits"]).max() <= 1e-4
    assert len(outputs) == 4
    assert all(len(row) == 64 for kept in outputs[1:] for row in sets(kept))


# ---- per image


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_result_of_an_image_does_not_depend_on_its_batch(golden, model, dense, shapes):
    chosen = recipe({"shapes": shapes}, compact_at=[4, 8])
    runner = session(dense, chosen)
    whole = runner.run(None, {"image": golden["x"]})
    module, logits = run_reference(model, chosen, golden["x"])
    for picked in ([0], [3], [3, 0], [2, 2, 2, 1]):
        part = runner.run(None, {"image": golden["x"][picked]})
        assert np.abs(part[0] - whole[0][picked]).max() <= 1e-5
        for few, many in zip(part[1:], whole[1:], strict=True):
            assert sets(few) == [sets(many)[image] for image in picked]
        alone, found = run_reference(model, chosen, golden["x"][picked])
        assert np.abs(found - logits[picked]).max() <= 1e-5
        for few, many in zip(alone.kept, module.kept, strict=True):
            assert sets(few) == [sets(many)[image] for image in picked]


def test_content_of_pad_slots_is_irrelevant(golden, model, monkeypatch):
    from vitprune.methods.avit import reference as halting

    chosen = recipe({"shapes": "padded"}, compact_at=[6, 9])
    _, expected = run_reference(model, chosen, golden["x"])
    plain = halting.AvitReference._compact
    filled = []

    def noisy(self, site, x, state):
        rows = plain(self, site, x, state)
        pads = torch.cat([torch.zeros_like(state.valid[:, :1]), ~state.valid], dim=1)
        filled.append(int(pads.sum()))
        return torch.where(pads[:, :, None], 1e3 * torch.randn_like(rows), rows)

    monkeypatch.setattr(halting.AvitReference, "_compact", noisy)
    _, logits = run_reference(model, chosen, golden["x"])
    assert all(filled)
    assert np.abs(logits - expected).max() <= 1e-5


def test_kept_sets_are_ascending_and_nested(golden, dense):
    outputs = run_graph(dense, recipe(compact_at=EVERY), golden["x"])
    for image in range(4):
        before = set(range(64))
        for kept in outputs[1:]:
            now = sets(kept)[image]
            assert list(now) == sorted(set(now))
            assert set(now) <= before
            before = set(now)


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_capacity_keeps_the_tokens_that_are_furthest_from_halting(golden, model, dense, shapes):
    chosen = recipe({"shapes": shapes}, compact_at=[8, 9], capacity=[30, None], cls_exit=False)
    module, logits = run_reference(model, chosen, golden["x"])
    outputs = run_graph(dense, chosen, golden["x"])
    assert np.abs(logits - outputs[0]).max() <= 1e-4
    assert [sets(kept) for kept in module.kept] == [sets(kept) for kept in outputs[1:]]
    cumulated = np.nansum(golden["halting"][:8], axis=0)[:, 1:]
    for image in range(4):
        active = np.flatnonzero(golden["active"][8, image, 1:])
        best = active[np.argsort(cumulated[image][active], kind="stable")[:30]]
        assert sets(outputs[1])[image] == tuple(sorted(best))
        assert int(module.overflow[0][image]) == max(len(active) - 30, 0)
    assert int(module.overflow[0].max()) > 0


# ---- other shapes of model


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
@pytest.mark.parametrize("at", [[], [1, 2, 3], [2]])
def test_layer_scale_registers_and_qk_norm(unusual, unusual_dense, shapes, at):
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)).numpy()
    chosen = recipe({"shapes": shapes}, compact_at=at, gate_scale=3.0, gate_center=1.0)
    module, logits = run_reference(unusual, chosen, x)
    outputs = run_graph(unusual_dense, chosen, x)
    assert np.abs(logits - outputs[0]).max() <= 1e-4
    assert [sets(kept) for kept in module.kept] == [sets(kept) for kept in outputs[1:]]
    depth = module.steps.depth
    assert depth.shape == (5, 18)
    assert depth.min() < 4
    assert depth.max() == 4
    dense = unusual(torch.tensor(x)).detach().numpy()
    assert np.abs(logits - dense).max() > 1e-3
    still = recipe({"shapes": shapes}, compact_at=at, gate_center=1.0e4)
    assert np.abs(run_graph(unusual_dense, still, x)[0] - dense).max() <= 1e-5


def test_heads_that_average_patches_are_refused(golden):
    from vitprune.graph.surgery import rewrite
    from vitprune.pipelines import reference

    pooled = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, global_pool="avg"
    ).eval()
    with pytest.raises(RecipeError) as error:
        reference(pooled, recipe(compact_at=[1]))
    assert error.value.code == "VP143"
    with pytest.raises(ExportError, match="averages or pools over patches"):
        rewrite(export(pooled, (3, 32, 32)), recipe(compact_at=[1]), has_cls=True)


# ---- recipe


@pytest.mark.parametrize("missing", ["gate_scale", "gate_center"])
@pytest.mark.parametrize("blank", [{}, {"null": None}])
def test_gate_is_never_guessed(missing, blank):
    keys = {key: value for key, value in GATE.items() if key != missing}
    if blank:
        keys[missing] = None
    with pytest.raises(RecipeError) as error:
        Recipe.load({"prune": {"method": "avit", **keys}})
    assert error.value.code == "VP140"
    assert missing in error.value.message
    assert "file name" in error.value.cause
    assert "--set prune.gate_scale" in error.value.next_step


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"compact_at": [0, 3]}, "VP141"),
        ({"compact_at": [3, 12]}, "VP110"),
        ({"channel": 384}, "VP142"),
        ({"capacity": [5]}, "VP111"),
    ],
)
def test_recipes_that_do_not_fit_the_model(keys, code):
    with pytest.raises(RecipeError) as error:
        methods.get("avit").sites(recipe(**keys).prune, SMALL)
    assert error.value.code == code
    assert error.value.cause
    assert error.value.next_step


@pytest.mark.parametrize(
    "keys",
    [{"stages": [3]}, {"compact_at": [6, 3]}, {"compact_at": [3, 3]}, {"eps": 0}, {"eps": 1}, {"gate_scale": 0},
     {"channel": -1}, {"capacity": 0}, {"gate_center": float("inf")}],
)  # fmt: skip
def test_wrong_values_are_refused(keys):
    with pytest.raises(RecipeError) as error:
        recipe(**keys)
    assert error.value.code == "VP102"


def test_resolved_recipe_can_be_read_again():
    chosen = recipe(compact_at=[2, 5], capacity=100)
    assert Recipe.load(chosen.to_dict()) == chosen
    assert chosen.to_dict()["prune"]["compact_at"] == [2, 5]
    assert chosen.with_("prune.compact_at", []).prune.stages == []


def test_shipped_recipe_holds_the_published_gate():
    chosen = Recipe.load(Path(__file__).parents[2] / "recipes" / "avit_deit_small.yaml")
    assert (chosen.prune.gate_scale, chosen.prune.gate_center, chosen.prune.eps, chosen.prune.channel) == (10, 75, 0.01, 0)
    assert methods.get("avit").sites(chosen.prune, SMALL)


# ---- cost


def test_cost():
    method, chosen = methods.get("avit"), recipe(compact_at=[3, 6, 9]).prune
    sites = method.sites(chosen, SMALL)
    full = method.block_tokens(sites, SMALL, [196] * 3)
    assert full == dense_blocks(SMALL)
    assert model_macs(SMALL, full) / 1e9 == pytest.approx(4.599, abs=1e-3)
    # rows leave before a block, as in DynamicViT: its check value with the same counts
    assert model_macs(SMALL, method.block_tokens(sites, SMALL, [137, 96, 67])) / 1e9 == pytest.approx(2.878, abs=1e-3)
    none = method.block_tokens(sites, SMALL, [0, 0, 0])
    assert [block.mlp for block in none] == [197] * 3 + [1] * 9


# ---- TensorRT-RTX


@pytest.mark.rtx
@pytest.mark.parametrize(("shapes", "at", "batch"), [("dynamic", [1, 2, 3], "1:2:4"), ("padded", [2], "1:2:4")])
def test_builds_on_tensorrt_rtx(unusual_dense, shapes, at, batch):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    from vitprune.graph.surgery import rewrite

    chosen = recipe({"shapes": shapes, "batch": batch}, compact_at=at, capacity=12 if shapes == "padded" else None)
    assert builds_on_rtx(rewrite(unusual_dense, chosen)[0], (3, 32, 32)) is True
