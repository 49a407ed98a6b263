import numpy as np
import onnx_graphsurgeon as gs
import pytest
import torch
from onnx import numpy_helper
from reduction_support import (
    TOLERANCE,
    deit_small,
    giga_macs,
    golden,
    golden_dense,
    golden_kept,
    golden_model,
    images,
    listed,
    pruned,
    recipe,
    run_graph,
    run_reference,
    small_dense,
    small_model,
)

from vitprune import methods
from vitprune.errors import RecipeError
from vitprune.methods.asvit import reference as reference_rule
from vitprune.methods.asvit import rule as asvit
from vitprune.methods.cost import dense_blocks, model_macs
from vitprune.vit.blocks import attention, attention_output, feed_forward, merge_heads, project, run_block
from vitprune.vit.tokens import TokenState

NAME = "asvit_threshold"


def golden_recipe(shapes="dynamic", **prune):
    thresholds = [float(golden(NAME)[f"w/score_predictor.{i}.keep_threshold"]) for i in range(3)]
    return recipe({"method": "asvit", "thresholds": thresholds, **prune}, shapes)


def agree(kind, rules, x):
    """Logits and kept lists on which reference and graph agree."""
    logits, kept, judge = run_reference(small_model(kind), rules, x)
    found, rows = run_graph(pruned(small_dense(kind), rules, True), x)
    np.testing.assert_allclose(found, logits, atol=TOLERANCE, rtol=0)
    assert [listed(stage) for stage in rows] == [listed(stage) for stage in kept]
    return logits, kept, judge


@pytest.mark.parametrize(
    ("infer", "suffix", "shapes"),
    [("per_image", "", "dynamic"), ("per_image", "", "padded"), ("batch_topk", "_batch", "dynamic")],
)
def test_golden_is_reproduced_by_reference_and_graph(infer, suffix, shapes):
    data, rules = golden(NAME), golden_recipe(shapes, infer=infer)
    expected = [golden_kept(stage) for stage in data[f"kept{suffix}"]]
    logits, kept, judge = run_reference(golden_model(NAME), rules, data["x"])
    assert np.abs(logits - data[f"logits{suffix}"]).max() < TOLERANCE
    assert [listed(stage) for stage in kept] == expected
    for margin, official in zip(judge.margin, data[f"margin{suffix}"], strict=True):
        np.testing.assert_allclose(margin.numpy().min(axis=1), official, atol=1e-6)
    logits, kept = run_graph(pruned(golden_dense(NAME), rules), data["x"])
    assert np.abs(logits - data[f"logits{suffix}"]).max() < TOLERANCE
    assert [listed(stage) for stage in kept] == expected


def test_oracle_of_the_score():
    row = torch.tensor([[[0.4, 0.1, 0.1], [0.1, 0.3, 0.2]]])
    context = torch.tensor([[[3.0, 1, 1], [1, 3, 1]]])[..., None] * torch.tensor([0.6, 0.8])
    assert asvit.score(row, context, True)[0].tolist() == pytest.approx([0.325, 0.25, 0.15], abs=1e-6)
    assert asvit.score(row, context, False)[0].tolist() == pytest.approx([0.25, 0.2, 0.15], abs=1e-6)
    keep, _ = asvit.select(asvit.score(row, context, True), torch.ones(1, 3, dtype=torch.bool), 0.2)
    assert keep.tolist() == [[True, True, False]]
    one_head = torch.rand(2, 1, 5)
    torch.testing.assert_close(asvit.score(one_head, torch.rand(2, 1, 5, 4), True), one_head[:, 0], atol=1e-6, rtol=0)


def test_comparison_is_strict_and_ignores_pads():
    score = torch.tensor([[0.25, 0.5, 0.75, 0.9]])
    valid = torch.tensor([[True, True, True, False]])
    keep, margin = asvit.select(score, valid, 0.5)
    assert keep.tolist() == [[False, False, True, False]]
    assert margin.tolist() == [[0.25, 0.0, 0.25, float("inf")]]


def test_batch_path_of_two_and_six_survivors_keeps_four_each():
    score = torch.zeros(2, 8)
    score[0, [1, 4]], score[1, 2:] = torch.tensor([0.9, 0.8]), torch.arange(6) * 0.1 + 0.4
    score[0, [0, 7]] = torch.tensor([0.2, 0.1])
    chosen, _ = asvit.select_batch(score, torch.ones(2, 8, dtype=torch.bool), 0.3)
    assert chosen.nonzero().tolist() == [[0, 0], [0, 1], [0, 4], [0, 7], [1, 4], [1, 5], [1, 6], [1, 7]]
    score[0, 1] = 0.95
    chosen, _ = asvit.select_batch(score, torch.ones(2, 8, dtype=torch.bool), 0.85)
    assert chosen.nonzero().tolist() == [[0, 1], [1, 7]]
    chosen, _ = asvit.select_batch(score, torch.ones(2, 8, dtype=torch.bool), 0.92)
    assert not chosen.any()  # one in two images is none each


def test_modes_of_accumulation():
    old, new = torch.tensor([[0.5, 0.25]]), torch.tensor([[0.25, 0.75]])
    assert asvit.accumulate(None, new, "accu") is new
    assert asvit.accumulate(old, new, "last") is new
    assert asvit.accumulate(old, new, "accu").tolist() == [[0.75, 1.0]]
    torch.testing.assert_close(asvit.accumulate(old, new, "ema"), torch.tensor([[0.4975, 0.255]]))
    params = recipe({"method": "asvit", "score_mode": "ema"}).prune
    assert params.scored_blocks() == set(range(2, 10))
    assert recipe({"method": "asvit"}).prune.scored_blocks() == {3, 6, 9}


@pytest.mark.parametrize("mode", ["last", "accu", "ema"])
@pytest.mark.parametrize("head_weight", [True, False])
def test_score_modes_agree_with_a_walk_block_by_block(mode, head_weight):
    """The whole rule once more on one image at a time, with explicit removal."""
    theta = {"last": 0.05, "accu": 0.12, "ema": 0.05}[mode]
    rules = recipe({"method": "asvit", "stages": [3, 5], "thresholds": theta, "score_mode": mode, "head_weight": head_weight})
    x = images(3, seed=5)
    logits, kept, _ = agree("plain", rules, x)
    model = small_model()
    with torch.no_grad():
        for image in range(3):
            rows = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x[image : image + 1]))))
            left, running = torch.arange(16), None
            for index, block in enumerate(model.blocks):
                if index in (3, 5):
                    stay = (running > theta).nonzero().flatten()
                    left, running = left[stay], running[stay]
                    rows = torch.cat([rows[:, :1], rows[:, 1:][:, stay]], 1)
                    assert listed(kept[(3, 5).index(index)])[image] == left.tolist()
                query, key, value = project(block.attn, block.norm1(rows))
                weights = attention(query, key, None)
                context = weights @ value
                rows = feed_forward(block, rows + attention_output(block, merge_heads(context)))
                norm = context[0, :, 1:].norm(dim=-1)
                share = norm / norm.sum(0) if head_weight else torch.full_like(norm, 0.25)
                new = (weights[0, :, 0, 1:] * share).sum(0)
                if index >= 2:
                    running = (
                        new
                        if mode == "last" or running is None
                        else running + new
                        if mode == "accu"
                        else 0.99 * running + 0.01 * new
                    )
            np.testing.assert_allclose(model.forward_head(model.norm(rows))[0].numpy(), logits[image], atol=TOLERANCE)
    assert 0 < sum(len(row) for row in listed(kept[0])) < 48


@pytest.mark.parametrize(("shapes", "batch"), [("dynamic", "1:4:8"), ("padded", "1:4:8"), ("dynamic", "1")])
def test_no_patch_left_is_survived(shapes, batch):
    rules = recipe({"method": "asvit", "stages": [3, 4], "thresholds": 1.0}, shapes, batch)
    x = images(1 if batch == "1" else 3)
    logits, kept, _ = agree("registers", rules, x)
    assert all((stage == -1).all() for stage in kept)
    model = small_model("registers")
    with torch.no_grad():
        rows = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        for index, block in enumerate(model.blocks):
            rows = run_block(block, rows[:, :2] if index >= 3 else rows, None)
        np.testing.assert_allclose(model.forward_head(model.norm(rows)).numpy(), logits, atol=TOLERANCE)


def test_some_images_empty_others_not():
    """The threshold lies between the largest score of one image and that of another."""
    rules, x = recipe({"method": "asvit", "stages": [3], "thresholds": 0.0}), images(6, seed=2)
    state = TokenState.full(6, 1, 16, x.device)
    model = small_model()
    with torch.no_grad():
        rows = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        rule = reference_rule.AsvitReference(methods.get("asvit"), rules.prune, [], False)
        for index in range(3):
            rows = rule.block(index, model.blocks[index], rows, state)
    tops = state.extra["score"].amax(1).sort().values
    middle = float(tops[2] + tops[3]) / 2
    _, kept, _ = agree("plain", recipe({"method": "asvit", "stages": [3], "thresholds": middle}), x)
    assert sorted(len(row) > 0 for row in listed(kept[0])) == [False] * 3 + [True] * 3


def test_batch_topk_with_nothing_above_the_threshold():
    rules = recipe({"method": "asvit", "stages": [3, 4], "thresholds": 1.0, "infer": "batch_topk"})
    _, kept, _ = agree("plain", rules, images(2))
    assert all((stage == -1).all() for stage in kept)


def test_threshold_can_be_changed_in_the_finished_model():
    low = recipe({"method": "asvit", "stages": [3, 4], "thresholds": [0.01, 0.02]})
    high = recipe({"method": "asvit", "stages": [3, 4], "thresholds": [0.05, 0.06]})
    model, x = pruned(small_dense(), low), images(3)
    before = run_graph(model, x)[1]
    for tensor in model.graph.initializer:
        if tensor.name in ("prune.threshold.block3", "prune.threshold.block4"):
            value = {"prune.threshold.block3": 0.05, "prune.threshold.block4": 0.06}[tensor.name]
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), tensor.name))
    logits, after = run_graph(model, x)
    expected, kept, _ = run_reference(small_model(), high, x)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
    assert [listed(stage) for stage in after] == [listed(stage) for stage in kept]
    assert listed(before[0]) != listed(after[0])


def test_raising_a_threshold_never_adds_patches():
    x, last = images(4), None
    for theta in (-1.0, 0.02, 0.04, 0.06, 0.1, 1.0):
        _, kept, _ = run_reference(small_model(), recipe({"method": "asvit", "stages": [3], "thresholds": theta}), x)
        sets = [set(row) for row in listed(kept[0])]
        assert last is None or all(now <= then for now, then in zip(sets, last, strict=True))
        last = sets


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_capacity_keeps_the_highest_scores(shapes):
    prune = {"method": "asvit", "stages": [3, 4], "thresholds": [0.02, 0.03]}
    x = images(4)
    _, free, _ = run_reference(small_model(), recipe(prune), x)
    _, kept, judge = agree("plain", recipe({**prune, "capacity": [7, 5]}, shapes), x)
    assert kept[0].shape == (4, 7)
    assert kept[1].shape[1] <= 5
    assert judge.overflow[0].tolist() == [max(0, len(row) - 7) for row in listed(free[0])]
    assert judge.overflow[0].sum() > 0


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_content_of_pad_slots_is_irrelevant(shapes, monkeypatch):
    rules = recipe({"method": "asvit", "stages": [3, 4], "thresholds": [0.05, 0.06]}, shapes)
    x = images(4)
    logits, kept, _ = agree("plain", rules, x)
    assert (kept[0] == -1).any()

    model = gs.import_onnx(pruned(small_dense(), rules))
    for block, name in ((3, "kept_3"), (4, "kept_4")):
        numbers = next(t for t in model.outputs if t.name == name)
        rows = next(node.outputs[0] for node in model.nodes if node.name == f"vitprune/block{block}/prune/x/kept")
        readers = list(rows.outputs)
        flag, spread = gs.Variable(f"flag{block}", np.float32), gs.Variable(f"spread{block}", np.float32)
        wide, noisy = gs.Variable(f"wide{block}", np.float32), gs.Variable(f"noisy{block}", np.float32)
        missing, front = gs.Variable(f"missing{block}", bool), gs.Variable(f"front{block}", np.float32)
        zero = gs.Constant(f"zero{block}", np.asarray(0, np.int64))
        noise = np.random.default_rng(0).normal(0, 1e3, 32).astype(np.float32)
        model.nodes += [
            gs.Node("Less", inputs=[numbers, zero], outputs=[missing]),
            gs.Node("Cast", attrs={"to": 1}, inputs=[missing], outputs=[flag]),
            gs.Node("Pad", inputs=[flag, gs.Constant(f"pads{block}", np.asarray([0, 1, 0, 0]))], outputs=[front]),
            gs.Node("Unsqueeze", inputs=[front, gs.Constant(f"axis{block}", np.asarray([2]))], outputs=[spread]),
            gs.Node("Mul", inputs=[spread, gs.Constant(f"noise{block}", noise)], outputs=[wide]),
            gs.Node("Add", inputs=[rows, wide], outputs=[noisy]),
        ]
        for node in readers:
            node.inputs = [noisy if tensor is rows else tensor for tensor in node.inputs]
    model.toposort()
    found, lists = run_graph(gs.export_onnx(model, do_type_check=False), x)
    np.testing.assert_allclose(found, logits, atol=TOLERANCE)
    assert [listed(stage) for stage in lists] == [listed(stage) for stage in kept]

    plain = reference_rule.take_rows
    calls = []

    def noisy_rows(tokens, rows):
        taken = plain(tokens, rows)
        number = kept[len(calls)]
        calls.append(number)
        pad = torch.from_numpy(np.pad(number < 0, ((0, 0), (1, 0))))
        return taken + pad[..., None] * torch.randn(32, generator=torch.Generator().manual_seed(0)) * 1e3

    monkeypatch.setattr(reference_rule, "take_rows", noisy_rows)
    again, lists, _ = run_reference(small_model(), rules, x)
    assert len(calls) == 2
    np.testing.assert_allclose(again, logits, atol=TOLERANCE)
    assert [listed(stage) for stage in lists] == [listed(stage) for stage in kept]


def test_cost_follows_the_kept_counts():
    method, geometry = methods.get("asvit"), deit_small()
    sites = method.sites(recipe({"method": "asvit"}).prune, geometry)
    assert giga_macs({"method": "asvit"}, geometry) == pytest.approx(4.599, abs=1e-3)  # no capacity: the bound is the dense model
    assert model_macs(geometry, method.block_tokens(sites, geometry, [196] * 3)) == model_macs(geometry, dense_blocks(geometry))
    blocks = method.block_tokens(sites, geometry, [137, 96, 67])
    assert [b.entering for b in blocks] == [197] * 4 + [138] * 3 + [97] * 3 + [68] * 2
    assert model_macs(geometry, blocks) / 1e9 == pytest.approx(3.133, abs=1e-3)


@pytest.mark.parametrize(
    ("prune", "code"),
    [
        ({"stages": [2, 5]}, "VP121"),
        ({"stages": [4, 12]}, "VP110"),
        ({"thresholds": [0.1, 0.2]}, "VP111"),
        ({"thresholds": float("nan")}, "VP102"),
        ({"score_mode": "sum"}, "VP102"),
        ({"infer": "batch_topk", "capacity": 9}, "VP122"),
    ],
)
def test_bad_parameters_say_what_to_do(prune, code):
    with pytest.raises(RecipeError) as error:
        methods.get("asvit").sites(recipe({"method": "asvit", **prune}).prune, deit_small())
    assert error.value.code == code
    assert error.value.cause
    assert error.value.next_step


def test_batch_topk_has_no_static_size():
    rules = recipe({"method": "asvit", "stages": [3], "thresholds": 0.1, "infer": "batch_topk"}, "padded")
    with pytest.raises(RecipeError, match="VP122"):
        run_reference(small_model(), rules, images(1))
    with pytest.raises(RecipeError, match="VP122"):
        pruned(small_dense(), rules)
