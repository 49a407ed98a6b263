"""Where tokens stand and who reads them: understood and then right with pruning on, or refused by name.

Seen failing before the layout was read off the graph: registers behind patches passed `rewrite` and `validate` with wrong kept sets;
`transpose(1,2).mean(-1)`, `t[:,-P:].mean(1)`, `sum/P`, `t[:,5]` and `t[:,-1]` were rewritten without a word.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from small_vits import PATCHES, SIDE, SmallViT, masked

import vitprune
from helpers import images, legacy_onnx, run
from vitprune.errors import ExportError, LoadError, RecipeError
from vitprune.graph import surgery
from vitprune.graph.anatomy.find import find
from vitprune.graph.lowering.onnxruntime import specialise

STAGES = [1, 2]
HEADS = {
    "cls": lambda t: t[:, 0],
    "mean of all": lambda t: t.mean(1),
    "mean of patches": lambda t: t[:, 1:].mean(1),
    "mean behind a transpose": lambda t: t.transpose(1, 2).mean(-1),
    "cls and mean": lambda t: t[:, 0] + t[:, 1:].mean(1),
}
FROM_THE_END = {"last rows by a negative slice": lambda t: t[:, -PATCHES:].mean(1)}
DIVIDED = {"sum divided by the number": lambda t: t.sum(1) / (PATCHES + 1)}
REFUSED = {
    "a fixed patch": lambda t: t[:, 5],
    "the last patch": lambda t: t[:, -1],
    "every second patch": lambda t: t[:, 1::2].mean(1),
    "the largest value": lambda t: t.amax(1),
    "all rows side by side": lambda t: t.flatten(1)[:, :32],
}


def recipe(method="topk", **prune):
    defaults = {"topk": {"keep": [20, 12]}, "tome": {"r": 8}, "ats": {"num_samples": 20}}[method]
    return vitprune.Recipe.load({"prune": {"method": method, "stages": STAGES, **defaults, **prune}})


def written(model, tmp_path, opset=17, name="dense.onnx"):
    path = tmp_path / name
    legacy_onnx(model, torch.from_numpy(images(2, (3, SIDE, SIDE))), path, opset)
    return path


def kept_lists(result):
    return [[[int(p) for p in row if p >= 0] for row in site] for site in result.kept]


@pytest.mark.parametrize("head", [*HEADS, *FROM_THE_END, *DIVIDED])
def test_understood_heads_are_right_with_pruning_on(head, tmp_path):
    """The bundle equals a computation that hides keys instead of removing tokens; alone as in a batch."""
    read = {**HEADS, **FROM_THE_END, **DIVIDED}[head]
    model = SmallViT(read)
    wanted = recipe() if "cls" in head else recipe("tome", stages=None)
    bundle = vitprune.rewrite(written(model, tmp_path), wanted, tmp_path / "bundle")
    x = images(4, (3, SIDE, SIDE), seed=5)
    result = bundle.run(x)
    alone = np.concatenate([bundle.run(x[i : i + 1]).logits for i in range(4)])
    np.testing.assert_allclose(result.logits, alone, atol=1e-5)
    with torch.inference_mode():
        dense = model(torch.from_numpy(x)).numpy()
        if "cls" in head:
            kept_head = read  # on gathered rows the head's own indices still mean prefix and patches
            model.read = kept_head
            judged = masked(model, torch.from_numpy(x), kept_lists(result), STAGES, 1).numpy()
            np.testing.assert_allclose(result.logits, judged, atol=1e-4)
    assert np.abs(result.logits - dense).max() > 1e-3, "pruning must change something for equality to mean anything"


@pytest.mark.parametrize("head", REFUSED)
def test_other_readers_are_refused_by_name(head, tmp_path):
    with pytest.raises(ExportError) as error:
        vitprune.rewrite(written(SmallViT(REFUSED[head]), tmp_path), recipe("tome", stages=None), tmp_path / "bundle")
    assert error.value.code in ("VP327", "VP328")
    assert "node" in error.value.message or "output" in error.value.message
    assert not (tmp_path / "bundle").exists()


def test_registers_in_front_are_prefix_tokens(tmp_path):
    model = SmallViT(HEADS["cls"], registers=3)
    bundle = vitprune.rewrite(written(model, tmp_path), recipe(), tmp_path / "bundle")
    assert bundle.manifest.model["geometry"]["prefix"] == 4
    x = images(3, (3, SIDE, SIDE), seed=2)
    result = bundle.run(x)
    with torch.inference_mode():
        judged = masked(model, torch.from_numpy(x), kept_lists(result), STAGES, 4).numpy()
    np.testing.assert_allclose(result.logits, judged, atol=1e-4)


@pytest.mark.parametrize("head", ["cls", "mean of all"])
def test_registers_behind_the_patches_are_refused(head, tmp_path):
    path = written(SmallViT(HEADS[head], registers=3, behind=True), tmp_path)
    method = "topk" if head == "cls" else "tome"
    with pytest.raises(ExportError, match="VP326"):
        vitprune.rewrite(path, recipe(method), tmp_path / "bundle")


class TwoOutputs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = SmallViT(HEADS["cls"])

    def forward(self, image):
        x = self.net.tokens(image)
        for block in self.net.blocks:
            x = block(x)
        return self.net.norm(x), self.net.head(self.net.norm(x)[:, 0])


def two_outputs(tmp_path):
    path = tmp_path / "two.onnx"
    names = ["last_hidden_state", "scores"]
    axes = {name: {0: "batch"} for name in ["image", *names]}
    torch.onnx.export(
        TwoOutputs(), (torch.zeros(2, 3, SIDE, SIDE),), str(path), dynamo=False, opset_version=17, input_names=["image"],
        output_names=names, dynamic_axes=axes,
    )  # fmt: skip
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_output_is_asked_for(tmp_path):
    path = two_outputs(tmp_path)
    with pytest.raises(ExportError, match="VP333") as error:
        vitprune.rewrite(path, recipe(), tmp_path / "bundle")
    assert "last_hidden_state" in error.value.cause
    chosen = recipe().with_("graph.output", "scores")
    bundle = vitprune.rewrite(path, chosen, tmp_path / "bundle")
    x = images(2, (3, SIDE, SIDE), seed=4)
    assert bundle.run(x).logits.shape == (2, 5)
    notes = (bundle.path / "reports" / "export.json").read_text()
    assert "last_hidden_state" in notes, "what was dropped is reported"
    with pytest.raises(ExportError, match="VP328"):
        vitprune.rewrite(path, recipe().with_("graph.output", "last_hidden_state"), tmp_path / "other")
    with pytest.raises(ExportError, match="VP333"):
        vitprune.rewrite(path, recipe().with_("graph.output", "nothing"), tmp_path / "other")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return onnx.load(str(written(SmallViT(HEADS["cls"]), tmp_path_factory.mktemp("dense"))))


def saved(model, tmp_path):
    path = tmp_path / "changed.onnx"
    onnx.save(model, str(path))
    return path


def copied(model):
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def test_nodes_without_names(dense, tmp_path):
    nameless = copied(dense)
    for node in nameless.graph.node:
        node.name = ""
    x = images(2, (3, SIDE, SIDE), seed=7)
    for method in ("ats", "topk"):
        prune = {"ats": {"num_samples": [20, 12]}, "topk": {"keep": [20, 12]}}[method]
        one = vitprune.Recipe.load({"prune": {"method": method, "stages": STAGES, **prune}})
        plain = run(surgery.rewrite(dense, one)[0], x)[0]
        bundle = vitprune.rewrite(saved(nameless, tmp_path), one, tmp_path / method)
        np.testing.assert_allclose(bundle.run(x).logits, plain, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_baked_batch_is_taken_from_the_graph(tmp_path):
    path = tmp_path / "one.onnx"
    model = SmallViT(HEADS["cls"])
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, SIDE, SIDE),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["l"],
    )
    bundle = vitprune.rewrite(path, recipe(), tmp_path / "bundle")
    assert bundle.recipe.graph.static_batch == 1
    x = images(3, (3, SIDE, SIDE), seed=1)
    result = bundle.run(x)
    with torch.inference_mode():
        judged = masked(model, torch.from_numpy(x), kept_lists(result), STAGES, 1).numpy()
    np.testing.assert_allclose(result.logits, judged, atol=1e-4)
    with pytest.raises(RecipeError, match="VP108"):
        vitprune.rewrite(path, recipe().with_("graph.batch", "4"), tmp_path / "other")


def test_a_fixed_batch_for_an_open_graph(dense, tmp_path):
    bundle = vitprune.rewrite(saved(dense, tmp_path), recipe().with_("graph.batch", "4"), tmp_path / "bundle")
    assert bundle.manifest.io["inputs"][0]["shape"][0] == 4
    x = images(5, (3, SIDE, SIDE), seed=3)
    np.testing.assert_allclose(bundle.run(x).logits, run(surgery.rewrite(dense, recipe())[0], x)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("opset", "method"), [(11, "topk"), (12, "topk"), (14, "ats"), (18, "topk"), (20, "ats"), (21, "ats"), (21, "topk")]
)
def test_opsets(opset, method, tmp_path):
    model = SmallViT(HEADS["cls"])
    if opset <= 20:
        path = written(model, tmp_path, opset)
    else:
        path = saved(onnx.version_converter.convert_version(onnx.load(str(written(model, tmp_path, 18))), opset), tmp_path)
    x = images(2, (3, SIDE, SIDE), seed=9)
    bundle = vitprune.rewrite(path, recipe(method), tmp_path / "bundle")
    reference = vitprune.rewrite(written(model, tmp_path, 17, "plain.onnx"), recipe(method), tmp_path / "plain")
    np.testing.assert_allclose(bundle.run(x).logits, reference.run(x).logits, atol=1e-5)
    special, _ = specialise(onnx.load(str(bundle.model_path)), keep_outputs=False)
    np.testing.assert_allclose(run(special, x)[0], reference.run(x).logits, atol=1e-5)


def test_newer_ir_versions(dense, tmp_path):
    newer = copied(dense)
    newer.ir_version = 15
    assert vitprune.rewrite(saved(newer, tmp_path), recipe(), tmp_path / "bundle").run(
        images(1, (3, SIDE, SIDE))
    ).logits.shape == (1, 5)


def test_a_second_input_is_refused(dense, tmp_path):
    changed = copied(dense)
    changed.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1]))
    with pytest.raises(ExportError, match="VP332"):
        vitprune.rewrite(saved(changed, tmp_path), recipe(), tmp_path / "bundle")


def test_layout_is_found_for_every_family_member(dense):
    anatomy = find(dense)
    assert (anatomy.prefix, anatomy.patches, anatomy.reads_cls, anatomy.means) == (1, PATCHES, True, ())


def test_external_weights_are_read_and_their_want_is_named(dense, tmp_path):
    onnx.save(copied(dense), str(tmp_path / "big.onnx"), save_as_external_data=True, location="big.data", size_threshold=0)
    x = images(2, (3, SIDE, SIDE), seed=3)
    bundle = vitprune.rewrite(tmp_path / "big.onnx", recipe(), tmp_path / "bundle")
    np.testing.assert_allclose(bundle.run(x).logits, run(surgery.rewrite(dense, recipe())[0], x)[0], atol=1e-5)
    (tmp_path / "big.data").unlink()
    with pytest.raises(LoadError, match="VP604") as error:
        vitprune.rewrite(tmp_path / "big.onnx", recipe(), tmp_path / "other")
    assert "'big.data', which is not there" in error.value.cause
