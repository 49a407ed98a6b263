"""Engines in bundles: found, checked before they are loaded, run in pieces, validated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import Engine

from vitprune import backends, targets
from vitprune.backends import tensorrt as backend
from vitprune.bundle import Bundle
from vitprune.cli import run as cli
from vitprune.engines import build_engine, building
from vitprune.errors import LoadError
from vitprune.pipelines import open_bundle, validate
from vitprune.support.gpus import Gpu

Fake = Callable[[str], Any]


@pytest.fixture
def built(fake: Fake, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bundle]:
    """Build into the bundle as build-engine does, with the builder in this process."""
    monkeypatch.setattr(building, "run_child", lambda request, report, timeout: backend.build(request, report))

    def build(version: str = "10.16.2.10", target: str = "jetson-orin", **options: Any) -> Bundle:
        fake(version)
        library = tmp_path / "libvitprune_plugin.so"
        library.write_text(json.dumps([["TokenSample", "1", "vitprune"]]))
        build_engine(bundle, targets.load(target), **{"plugin": str(library), "kept_outputs": True, "force": True, **options})
        return open_bundle(bundle.path)

    return build


def refused(code: str, bundle: Bundle, target: str | None = None) -> LoadError:
    with pytest.raises(LoadError) as caught:
        backends.session(bundle, "tensorrt", target)
    assert caught.value.code == code
    assert caught.value.cause
    assert caught.value.next_step
    return caught.value


def test_engine_gives_what_the_graph_gives(built: Callable[..., Bundle]) -> None:
    bundle = built()
    images = bundle.samples()["images"][:8]
    session = backends.session(bundle, "tensorrt")
    ours, theirs = session.run(images[:3]), bundle.run(images[:3])
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-6)
    for mine, other in zip(ours.kept, theirs.kept, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_batches_outside_the_profile_are_cut_and_filled(built: Callable[..., Bundle]) -> None:
    """The profile is 2:4:6: one image is filled up to two, eight are run as six and two."""
    bundle = built()
    images = bundle.samples()["images"][:8]
    session = backends.session(bundle, "tensorrt")
    for count in (1, 6, 7, 8):
        result = session.run(images[:count])
        assert result.logits.shape == (count, 10)
        assert all(len(kept) == count for kept in result.kept)
        np.testing.assert_allclose(result.logits, bundle.run(images[:count]).logits, atol=1e-6)


def test_buffers_are_used_again(built: Callable[..., Bundle]) -> None:
    bundle = built()
    session = backends.session(bundle, "tensorrt")
    session.run(bundle.samples()["images"][:6])
    before = session._memory.allocations
    session.run(bundle.samples()["images"][:2])
    assert session._memory.allocations == before


def test_validate_passes_and_says_what_it_ran(built: Callable[..., Bundle]) -> None:
    bundle = built()
    outcome = validate(bundle, backend="tensorrt", reference="stored")
    assert outcome.passed
    assert outcome.rung == "engine = reference on a GPU"
    assert {gate.name for gate in outcome.gates} >= {"decisions", "logits_max_abs"}
    digest = json.loads((bundle.engine_path("jetson-orin") / "engine.json").read_text())["engine_sha256"]
    assert outcome.comparison.evidence["engine_sha256"] == digest


def test_without_kept_outputs_no_gate_on_decisions_is_claimed(built: Callable[..., Bundle]) -> None:
    bundle = built(kept_outputs=False)
    outcome = validate(bundle, backend="tensorrt", reference="stored")
    assert outcome.passed
    assert "decisions" not in {gate.name for gate in outcome.gates}
    assert outcome.comparison.evidence["decisions_compared"] is False
    assert 0 < outcome.macs["ratio"] < 1


def test_no_engine_built(bundle: Bundle, fake: Fake) -> None:
    fake("10.16.2")
    assert "engines in it: none" in refused("VP630", bundle).cause


def test_several_engines_need_a_target(built: Callable[..., Bundle]) -> None:
    built()
    bundle = built(target="desktop")
    assert "desktop, jetson-orin" in refused("VP631", bundle).cause
    assert backends.session(bundle, "tensorrt", "desktop").run(bundle.samples()["images"][:2]).logits.shape == (2, 10)


def test_another_tensorrt_is_told_before_loading(built: Callable[..., Bundle], fake: Fake) -> None:
    bundle = built("10.3.0.30", plugin="none")
    module = fake("10.16.2")
    module.Runtime = None
    error = refused("VP632", bundle)
    assert "built by TensorRT 10.3.0.30, here is 10.16.2" in error.cause
    assert "--target jetson-orin" in error.next_step


def test_another_gpu_is_told_before_loading(built: Callable[..., Bundle], fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = built()
    module = fake("10.16.2.10")
    module.Runtime = None
    monkeypatch.setattr("vitprune.backends._tensorrt.session.local_gpus", lambda: [Gpu("Thor", "110", 1, True)])
    assert "built for SM 87, this GPU is SM 110" in refused("VP633", bundle).cause


def test_no_gpu(built: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = built()
    monkeypatch.setattr("vitprune.backends._tensorrt.session.local_gpus", list)
    refused("VP636", bundle)


def test_plugin_missing_or_another_one(built: Callable[..., Bundle], fake: Fake) -> None:
    bundle = built()
    fake("10.16.2.10")
    library = bundle.engine_path("jetson-orin") / "libvitprune_plugin.so"
    library.write_text(json.dumps([["TokenSample", "1", "vitprune"], ["Other", "1", ""]]))
    error = refused("VP634", bundle)
    assert "TokenSample version 1, namespace 'vitprune'" in error.message
    assert str(library) in error.cause
    assert error.cause.count("sha256") == 2, "found and wanted"
    wanted = error.cause[-16:]
    library.unlink()
    error = refused("VP634", open_bundle(bundle.path))
    assert error.message == "plugin TokenSample version 1, namespace 'vitprune' not found"
    assert str(library) in error.cause
    assert error.cause.endswith(wanted)


def test_embedded_plugin_needs_no_file(built: Callable[..., Bundle], fake: Fake) -> None:
    bundle = built(embed_plugin=True)
    fake("10.16.3")
    (bundle.engine_path("jetson-orin") / "libvitprune_plugin.so").unlink()
    session = backends.session(bundle, "tensorrt")
    assert session._runtime.engine_host_code_allowed is True


def test_refused_engine(built: Callable[..., Bundle]) -> None:
    bundle = built()
    (bundle.engine_path("jetson-orin") / "model.engine").write_bytes(b"something else")
    bundle.add_files(["engines/jetson-orin/model.engine"])
    assert refused("VP635", bundle).cause == "magicTag does not match"


def test_damaged_engine_is_told_and_can_be_built_again(built: Callable[..., Bundle]) -> None:
    file = built().engine_path("jetson-orin") / "model.engine"
    file.write_bytes(file.read_bytes()[:-1])
    error = refused("VP629", open_bundle(file.parents[2]))
    assert (error.message, error.cause) == (
        "the engine for 'jetson-orin' is damaged: engines/jetson-orin/model.engine",
        "its sha256 does not match the manifest",
    )
    file.unlink()
    assert refused("VP629", open_bundle(file.parents[2])).cause == "it is missing"
    assert "--force" in error.next_step
    bundle = built()
    assert backends.session(bundle, "tensorrt").run(bundle.samples()["images"][:2]).logits.shape == (2, 10)


def test_failing_engine(built: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    session = backends.session(built(), "tensorrt")
    monkeypatch.setattr(Engine, "broken", True)
    with pytest.raises(LoadError, match="VP637"):
        session.run(np.zeros((2, 3, 64, 64), np.float32))


def test_unreadable_facts(built: Callable[..., Bundle]) -> None:
    bundle = built()
    (bundle.engine_path("jetson-orin") / "engine.json").write_text("[1]")
    bundle.list_engine("jetson-orin")
    refused("VP638", bundle)


def test_engine_of_another_model(built: Callable[..., Bundle]) -> None:
    bundle = built()
    file = bundle.engine_path("jetson-orin") / "engine.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_sha256": "0"}))
    refused("VP629", bundle)
    bundle.list_engine("jetson-orin")
    refused("VP639", bundle)


def test_engine_file_without_facts_takes_the_library_beside_it(built: Callable[..., Bundle], fake: Fake) -> None:
    """What the device package does: it runs the engine before engine.json is written."""
    bundle = built()
    module = fake("10.16.2.10")
    folder = bundle.engine_path("jetson-orin")
    (folder / "engine.json").unlink()
    session = backend.Session(bundle, engine=folder / "model.engine")
    assert module.get_plugin_registry().loaded == [str((folder / "libvitprune_plugin.so").resolve())]
    assert session.run(bundle.samples()["images"][:2]).logits.shape == (2, 10)


def test_rebuild_keeps_the_timing_cache(built: Callable[..., Bundle]) -> None:
    bundle = built()
    built()
    facts = json.loads((bundle.engine_path("jetson-orin") / "engine.json").read_text())["facts"]
    assert facts["timing_cache"] == "reused"
    assert "engines/jetson-orin/timing.cache" in open_bundle(bundle.path).manifest.files


def test_command_line_reports_the_missing_engine(fake: Fake, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    fake("10.16.2")
    assert cli(["validate", str(bundle.path), "--backend", "tensorrt", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "VP630"
