"""The onnxruntime-cpu engine with operators of the native library in place of the graph's functions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from vitprune import backends, cli, engines, targets
from vitprune.errors import BuildError, LoadError
from vitprune.pipelines import open_bundle, validate
from vitprune.support import trust

TARGET = "onnxruntime-cpu"


@pytest.fixture
def built(bundle_copy: Path, ort_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engines.build_engine(open_bundle(bundle_copy), targets.load(TARGET), plugin=str(ort_library))
    return bundle_copy


def nodes(bundle: Path) -> Counter[str]:
    model = onnx.load(str(bundle / "engines" / TARGET / "model.onnx"))
    assert not model.functions
    return Counter(node.op_type for node in model.graph.node)


def test_it_has_one_node_a_site_and_takes_the_same_decisions(built: Path) -> None:
    document = json.loads((built / "engines" / TARGET / "engine.json").read_text())
    bundle = open_bundle(built)
    assert document["facts"]["sites"] == nodes(built)["PruneSite"] == 3
    assert document["facts"]["native"] == 3 + nodes(built)["KeyBiasAttention"] == 5
    assert nodes(built)["TokenSample"] == 0
    assert document["facts"]["plugin"]["sha256"] == bundle.manifest.files[f"engines/{TARGET}/libvitprune_plugin.so"]
    images = bundle.samples()["images"]
    for size in (1, 5):
        native = backends.get("onnxruntime").Session(bundle, target=TARGET).run(images[:size])
        plain = bundle.run(images[:size])
        assert np.abs(native.logits - plain.logits).max() < 1e-5
        assert all(np.array_equal(a, b) for a, b in zip(native.kept, plain.kept, strict=True))
    assert validate(bundle, target=TARGET).passed


def test_without_the_library_the_function_is_written_out(bundle_copy: Path) -> None:
    document = engines.build_engine(open_bundle(bundle_copy), targets.load(TARGET), plugin="none")
    assert document["facts"]["plugin"] is None
    assert nodes(bundle_copy)["TokenSample"] == 0
    assert nodes(bundle_copy)["CumSum"] == 3


def test_another_library_is_not_loaded(built: Path, tmp_path: Path) -> None:
    library = built / "engines" / TARGET / "libvitprune_plugin.so"
    library.write_bytes(library.read_bytes() + b"\0")
    with pytest.raises(LoadError, match="VP634"):
        backends.get("onnxruntime").Session(open_bundle(built), target=TARGET)


def test_a_library_from_elsewhere_needs_a_word(built: Path) -> None:
    for note in trust.folder().iterdir():
        note.unlink()
    with pytest.raises(LoadError, match="VP646"):
        backends.get("onnxruntime").Session(open_bundle(built), target=TARGET)
    foreign = open_bundle(built, foreign_code=True)
    assert len(backends.get("onnxruntime").Session(foreign, target=TARGET).run(foreign.samples()["images"][:2]).logits) == 2


def test_what_is_no_library_is_refused(bundle_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "library.so"
    text.write_text("no library")
    for wanted in (text, tmp_path / "missing.so"):
        with pytest.raises(BuildError, match="VP522"):
            engines.build_engine(open_bundle(bundle_copy), targets.load(TARGET), plugin=str(wanted))
    assert cli.run(["build-engine", str(bundle_copy), "--target", TARGET, "--plugin", str(text)]) == 2
    assert "VP522" in capsys.readouterr().err
    assert not (bundle_copy / "engines").exists()
