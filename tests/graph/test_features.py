"""Dense features: reference and graph put every patch back in its place, whatever stands behind the blocks."""

import json
from dataclasses import replace as altered

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from helpers import images, legacy_onnx, tiny
from vitprune import methods
from vitprune.errors import ExportError, RecipeError
from vitprune.exporting import parity
from vitprune.exporting.dense_twin import dense_of
from vitprune.graph import surgery
from vitprune.graph.passes import unmerge
from vitprune.pipelines import open_bundle, rewrite, validate
from vitprune.recipe import Recipe
from vitprune.vit.features import DenseFeatures
from vitprune.vit.pruned import PrunedViT

SMALL = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
OUTPUT = {"kind": "features", "blocks": [1, 2, 3], "layout": "map", "prefix": True}
MERGING = {
    "ward_merge": {"mu": 0.8},
    "tome": {"r": 6},
    "tome_threshold": {"tau": 0.3, "r_max": 8},
    "ats_merge": {"stages": [1, 2], "num_samples": 16},
}
DROPPING = {
    "ats": {"stages": [1, 2], "num_samples": 16},
    "topk": {"stages": [0, 2], "keep_rate": 0.5},
    "evit": {"stages": [1, 2], "keep_rate": 0.5},
    "pomt": {"stages": [1], "remove": 12},
}


def recipe(method, keys, shapes="dynamic", **output):
    return Recipe.load({"prune": {"method": method, **keys}, "graph": {"shapes": shapes}, "output": {**OUTPUT, **output}})


@pytest.fixture(scope="module")
def model():
    return tiny("vit_small_patch14_reg4_dinov2", init_values=0.5, **SMALL)


@pytest.fixture(scope="module")
def pixels():
    made = images(3, (3, 48, 48))
    made[1] *= 6
    made[2, :, :, 20:] = 0
    return made


@pytest.fixture(scope="module")
def dense(model, pixels, tmp_path_factory):
    """The graph of timm's own features."""
    path = tmp_path_factory.mktemp("dense") / "features.onnx"
    taken = DenseFeatures(model, recipe("tome", {}).output)
    return named(legacy_onnx(First(taken), torch.from_numpy(pixels), path, 18), taken.names)


class First(nn.Module):
    """As a tuple, for the exporter."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, image):
        return tuple(self.inner(image))


def named(model, names):
    """A graph with other names of its outputs."""
    for output, name in zip(model.graph.output, names, strict=True):
        model.graph.node.append(onnx.helper.make_node("Identity", [output.name], [name], name=f"named/{name}"))
        output.name = name
    return model


def answers(graph, pixels):
    from vitprune.backends.onnxruntime import make_session

    return parity.run(make_session(graph.SerializeToString()), pixels, None)


def reference(model, chosen, pixels):
    oracle = PrunedViT(model, chosen).eval()
    with torch.inference_mode():
        return oracle(torch.from_numpy(pixels)).numpy()


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
@pytest.mark.parametrize("method", [*MERGING, *DROPPING])
def test_reference_and_graph_agree(model, dense, pixels, method, shapes):
    drops = method in DROPPING
    chosen = recipe(method, (DROPPING if drops else MERGING)[method], shapes, **({"fill": "last"} if drops else {}))
    expected = reference(model, chosen, pixels)
    graph, anatomy, _ = surgery.rewrite(dense, chosen, has_cls=True)
    found, *kept = answers(graph, pixels)
    assert anatomy.taps == (0, 1, 2)
    assert min((rows >= 0).sum(axis=1).min() for rows in kept) < 36
    assert np.abs(found - expected).max() < 1e-4
    whole = parity.module_logits(DenseFeatures(model, chosen.output).eval(), pixels)
    assert np.abs(found - whole).max() > 1e-2
    alone = answers(graph, pixels[:1])[0]
    assert np.abs(alone[0] - found[0]).max() < 1e-5 * max(1, np.abs(found[0]).max())


@pytest.mark.parametrize(("method", "keys"), [("ward_merge", {"mu": 0.0}), ("tome", {"r": 0})])
def test_nothing_merged_is_dense(model, dense, pixels, method, keys):
    chosen = recipe(method, keys)
    whole = parity.module_logits(DenseFeatures(model, chosen.output).eval(), pixels)
    graph, _, _ = surgery.rewrite(dense, chosen, has_cls=True)
    assert np.abs(reference(model, chosen, pixels) - whole).max() < 1e-5
    assert np.abs(answers(graph, pixels)[0] - whole).max() < 1e-5


def test_rows_of_members_are_those_of_their_group(model, pixels):
    chosen = recipe("ward_merge", {"mu": 0.8}, layout="tokens", prefix=False, blocks=[3], norm=False)
    oracle = PrunedViT(model, chosen).eval()
    with torch.inference_mode():
        oracle(torch.from_numpy(pixels))
    features, group = oracle.features[0], oracle.extra["groups"][-1]
    assert features.shape == (3, 36, 32)
    stands = features.gather(1, group[:, :, None].expand_as(features))
    assert torch.equal(features, stands)
    assert len(torch.unique(features[1], dim=0)) < 36


def test_a_dropped_place_keeps_the_row_that_entered_the_block(model, pixels):
    chosen = recipe("topk", {"stages": [1], "keep_rate": 0.5}, fill="last", layout="tokens", prefix=False, norm=False)
    oracle = PrunedViT(model, chosen).eval()
    with torch.inference_mode():
        oracle(torch.from_numpy(pixels))
        first = DenseFeatures(model, altered_output(chosen)).eval()(torch.from_numpy(pixels))[0]
    gone = torch.ones(3, 36, dtype=torch.bool).scatter(1, oracle.kept[0], False)
    for behind in oracle.features[1:]:
        assert (behind[gone] - first[gone]).abs().max() < 1e-5
        assert (behind[~gone] - first[~gone]).abs().max() > 0.01


def altered_output(chosen):
    return chosen.output.model_copy(update={"blocks": [1]})


def test_what_a_capacity_loses_is_refused_or_filled(model, dense, pixels):
    keys = {"mu": 0.2, "capacity": 20}
    with pytest.raises(RecipeError, match="loses rows") as caught:
        PrunedViT(model, recipe("ward_merge", keys))
    assert caught.value.code == "VP119"
    chosen = recipe("ward_merge", keys, "padded", fill="last")
    graph, _, _ = surgery.rewrite(dense, chosen, has_cls=True)
    oracle = PrunedViT(model, chosen).eval()
    with torch.inference_mode():
        expected = oracle(torch.from_numpy(pixels)).numpy()
    assert max(int(lost.max()) for lost in oracle.overflow) > 0
    assert np.abs(answers(graph, pixels)[0] - expected).max() < 1e-4


@pytest.mark.parametrize("method", ["ats", "topk", "evit"])
def test_methods_that_drop_are_refused_without_a_fill(method):
    with pytest.raises(RecipeError, match="drops tokens") as caught:
        recipe(method, DROPPING[method])
    assert caught.value.code == "VP119"
    assert "output.fill=last" in caught.value.next_step


def test_every_method_says_what_becomes_of_places():
    found = {name: methods.get(name).places for name in methods.names()}
    assert {name for name, places in found.items() if places == "map"} == set(MERGING)
    assert not found["avit"]
    assert not found["dvt"]
    with pytest.raises(RecipeError, match="gives no features"):
        recipe("avit", {"gate_scale": 10, "gate_center": 30}, fill="last")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layout": "map"}, "is a key of features"),
        ({"kind": "features", "blocks": [2, 1]}, "ascend"),
        ({"kind": "features", "blocks": [0]}, "count from 1"),
    ],
)
def test_output_keys_that_contradict_each_other(keys, message):
    with pytest.raises(RecipeError) as caught:
        Recipe.load({"prune": {"method": "tome"}, "output": keys})
    assert message in caught.value.cause


def test_blocks_beyond_the_model_and_accuracy_gates_are_refused(model):
    with pytest.raises(RecipeError, match="behind block 12") as caught:
        PrunedViT(model, recipe("tome", {}, blocks=[3, 12]))
    assert caught.value.code == "VP118"
    with pytest.raises(RecipeError, match="no accuracy"):
        Recipe.load({"prune": {"method": "tome"}, "output": {"kind": "features"}, "validate": {"gates": {"top1_drop": 1}}})


def test_recipes_of_logits_keep_their_digest():
    plain = Recipe.load({"prune": {"method": "tome"}}).to_dict()
    assert "output" not in plain
    assert "cosine_mean" not in plain["validate"]["gates"]


class Decoder(nn.Module):
    """A map of all patches, a convolution over it, twice as large; and the tokens themselves."""

    def __init__(self, backbone, inside=False):
        super().__init__()
        torch.manual_seed(5)
        self.backbone, self.inside = backbone, inside
        self.first, self.up, self.last = nn.Conv2d(64, 8, 3, padding=1), nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 3, 1)

    def forward(self, image):
        x = self.backbone._pos_embed(self.backbone.patch_embed(image))
        early = x
        for number, block in enumerate(self.backbone.blocks):
            x = block(x)
            early = x if number == 1 else early
        tokens = self.backbone.norm(x)
        batch, count, width = x.shape
        side = round((int(count) - 5) ** 0.5)
        both = torch.cat([tokens, early], dim=2)[:, 5:]
        grid = both.transpose(1, 2).reshape(batch, 2 * width, side, side)
        small = self.last(torch.relu(self.up(torch.relu(self.first(grid)))))
        scores = nn.functional.interpolate(small, size=image.shape[2:], mode="bilinear").softmax(dim=1)
        return (scores, self.backbone.blocks[2].norm1(x)) if self.inside else (scores, tokens)


@pytest.fixture(scope="module")
def decoder(model, pixels, tmp_path_factory):
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    onnx.save(
        named(legacy_onnx(Decoder(model).eval(), torch.from_numpy(pixels), path, 17), ["scores", "last_hidden_state"]), path
    )
    return path


@pytest.fixture(scope="module")
def rewritten(decoder, tmp_path_factory):
    chosen = Recipe.load({"prune": {"method": "ward_merge", "mu": 0.6}, "output": {"kind": "features"}})
    return rewrite(decoder, chosen, tmp_path_factory.mktemp("bundle") / "b")


def test_a_graph_with_a_decoder_is_rewritten_and_validates(rewritten):
    check = json.loads((rewritten.path / "reports" / "export.json").read_text())["check"]
    assert [(one["name"], one["rows"]) for one in check["features"]] == [("scores", 48 * 48), ("last_hidden_state", 41)]
    assert max(one["max_abs"] for one in check["features"]) < 1e-4
    assert max(one["dense_cosine_mean"] for one in check["features"]) < 1
    assert check["sites"][-1]["kept_mean"] < 30
    outcome = validate(rewritten)
    assert outcome.passed
    assert {gate.name for gate in outcome.gates} == {"decisions", "features_max_abs", "cosine_mean", "cosine_p1"}
    assert outcome.document()["comparison"]["top1_agreement"] is None
    result = open_bundle(rewritten.path).run(rewritten.samples()["images"][:2])
    assert {name: value.shape for name, value in result.features.items()} == {
        "scores": (2, 3, 48, 48),
        "last_hidden_state": (2, 41, 32),
    }


def test_samples_that_are_a_little_off_fail_the_gates(rewritten, tmp_path):
    """A planted defect: one patch of one image is another one's."""
    samples = rewritten.samples()
    rows = samples["logits"][:, -41 * 32 :].reshape(-1, 41, 32)
    rows[0, 7] = rows[0, 30]
    outcome = compared(rewritten, samples)
    failed = {gate.name for gate in outcome if not gate.passed}
    assert "features_max_abs" in failed


def compared(bundle, samples):
    from vitprune.support.answers import shapes_of
    from vitprune.validation.compare import compare, gate_list

    gates = bundle.recipe.validation.gates
    result = bundle.run(samples["images"])
    blocks = [site["block"] for site in bundle.manifest.sites]
    return gate_list(compare(result, samples, blocks, gates, heads=shapes_of(bundle.manifest.io["outputs"])), gates)


def test_rows_in_wrong_places_are_noticed(decoder, tmp_path, monkeypatch):
    """A planted defect in the graph's unmerge: patches keep their own slot number instead of their group's."""
    whole = unmerge.Unmerge._patches
    monkeypatch.setattr(
        unmerge.Unmerge,
        "_patches",
        lambda self, operated, emit, rows, now, before: whole(
            self, operated, emit, rows, None if now is None else altered(now, group=None), before
        ),
    )
    chosen = Recipe.load({"prune": {"method": "tome", "r": 6}, "output": {"kind": "features"}})
    with pytest.raises(ExportError) as caught:
        rewrite(decoder, chosen, tmp_path / "b")
    assert caught.value.code == "VP330"
    assert "features_max_abs" in caught.value.cause


def test_a_head_that_reads_inside_a_block_is_refused(model, pixels, tmp_path):
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image):
            x = self.model._pos_embed(self.model.patch_embed(image))
            for block in self.model.blocks[:2]:
                x = block(x)
            last = self.model.blocks[2]
            attended = x + last.ls1(last.attn(last.norm1(x)))
            return (attended + last.ls2(last.mlp(last.norm2(attended)))) * attended.mean(dim=1, keepdim=True)

    dense = legacy_onnx(Inside().eval(), torch.from_numpy(pixels), tmp_path / "inside.onnx", 17)
    with pytest.raises(ExportError) as caught:
        surgery.rewrite(dense, Recipe.load({"prune": {"method": "tome"}, "output": {"kind": "features"}}))
    assert caught.value.code == "VP338"


def test_keys_that_the_graph_decides_are_refused(decoder, tmp_path):
    with pytest.raises(RecipeError, match="does not go with a given graph"):
        rewrite(decoder, recipe("tome", {}), tmp_path / "b")


def test_commands_that_compare_classes_refuse_features():
    with pytest.raises(RecipeError, match="tune works on logits") as caught:
        recipe("tome", {}).require_logits("tune")
    assert caught.value.code == "VP118"


def test_calibration_meets_its_budget_on_features(model, pixels):
    from vitprune.calibration.bench import Bench
    from vitprune.calibration.calibrating import calibrate

    bench = Bench(model, recipe("tome", {}, blocks=[2], layout="tokens"), pixels)
    found = calibrate(bench, macs=0.8, tokens=None, quantile=None, report=lambda text: None)
    assert 0.7 < found.measured.macs <= 0.8
    assert bench.geometry.depth == 2
    nothing, cosine = bench.agreement({"r": 0})
    assert nothing == 0
    assert cosine == pytest.approx(1, abs=1e-5)


def test_a_timm_model_is_exported_and_validates(model, tmp_path):
    from vitprune.pipelines import export

    bundle = export(model, recipe("ward_merge", {"mu": 0.8}), tmp_path / "b")
    notes = json.loads((bundle.path / "reports" / "export.json").read_text())
    assert notes["features"]["places"] == "map"
    assert [one["name"] for one in notes["check"]["features"]] == [
        f"{kind}_{n}" for kind in ("features", "prefix") for n in (1, 2, 3)
    ]
    assert max(one["max_abs"] for one in notes["check"]["features"]) < 1e-4
    assert validate(bundle).passed
    assert "no_dense_graph" not in notes
    twin = dense_of(bundle)  # proved by the stored features of the dense model
    assert [output.name for output in twin.graph.output] == [f"{kind}_{n}" for kind in ("features", "prefix") for n in (1, 2, 3)]


def test_rtx_builds_a_graph_with_a_decoder(rewritten):
    from vitprune import engines, targets

    assert engines.build_engine(rewritten, targets.load("rtx"))["engine_bytes"] > 0
    assert validate(rewritten).passed
