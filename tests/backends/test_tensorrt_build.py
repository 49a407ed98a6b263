from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from fake_tensorrt import FakeState

from vitprune.backends import tensorrt as backend
from vitprune.bundle import Bundle
from vitprune.errors import BuildError
from vitprune.support.gpus import Gpu

Fake = Callable[[str], Any]


def plugin_file(folder: Path, name: str = "TokenSample", version: str = "1", namespace: str = "vitprune") -> Path:
    file = folder / "libvitprune_plugin.so"
    file.write_text(json.dumps([[name, version, namespace]]))
    return file


def request(bundle: Bundle, folder: Path, **more: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {
        "backend": "tensorrt", "model": str(bundle.model_path), "output": str(folder / "model.engine"), "log": str(folder / "build.log"),
        "batch": [2, 4, 6], "workspace_mib": None, "plugin": "none", **more,
    }  # fmt: skip


def refusal(code: str, bundle: Bundle, folder: Path, **more: Any) -> BuildError:
    with pytest.raises(BuildError) as caught:
        backend.build(request(bundle, folder, **more), lambda text: None)
    assert caught.value.code == code
    assert caught.value.cause
    assert caught.value.next_step
    return caught.value


def test_facts_of_a_build_with_the_plugin(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    module = fake("10.16.2.10")
    library, said = plugin_file(tmp_path), []
    facts = backend.build(request(bundle, tmp_path / "e", plugin=str(library), architectures=["87"]), said.append)
    assert facts["tensorrt"] == "10.16.2.10"
    assert (facts["architecture"], facts["graph"], facts["tf32"]) == ("87", "plugin or function", False)
    assert facts["plugin"] == {
        "file": "libvitprune_plugin.so", "sha256": hashlib.sha256(library.read_bytes()).hexdigest(), "name": "TokenSample",
        "version": "1", "namespace": "vitprune", "embedded": False,
    }  # fmt: skip
    assert (tmp_path / "e" / "libvitprune_plugin.so").read_bytes() == library.read_bytes()
    assert module.get_plugin_registry().loaded == [str(library)]
    assert facts["precision_audit"] == "ok"
    assert facts["layers_by_precision"] == {"fp32": facts["layers"]}
    assert facts["heavy_layers_by_precision"]["fp32"] > 20
    assert facts["outputs"] == ["logits", "kept_1", "kept_2"]
    assert "building 1/2" in said
    assert (tmp_path / "e" / "build.log").is_file()


def test_configuration_of_the_builder(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    facts = backend.build(
        request(bundle, tmp_path / "e", plugin=str(plugin_file(tmp_path)), embed_plugin=True), lambda text: None
    )
    config = FakeState.config
    assert FakeState.network.flags == 2, "strongly typed"
    assert config.pools == {"workspace": 2048 << 20}, "a quarter of an integrated GPU's memory"
    assert config.cleared == ["tf32"]
    assert config.profiling_verbosity == "detailed"
    assert config.profiles[0].shapes == ("image", (2, 3, 64, 64), (4, 3, 64, 64), (6, 3, 64, 64))
    assert config.flags == ["compatible"]
    assert config.plugins_to_serialize == [str(tmp_path / "e" / "libvitprune_plugin.so")]
    assert facts["version_compatible"] is True


def test_discrete_gpu_has_tensorrts_own_default_of_scratch_memory(
    fake: Fake, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("10.16.2")
    monkeypatch.setattr(backend, "local_gpus", lambda: [Gpu("NVIDIA L4", "89", 23034, False)])
    library = str(plugin_file(tmp_path))
    assert backend.build(request(bundle, tmp_path / "e", plugin=library), lambda text: None)["workspace_mib"] is None
    assert FakeState.config.pools == {}
    backend.build(request(bundle, tmp_path / "f", plugin=library, workspace_mib=512), lambda text: None)
    assert FakeState.config.pools == {"workspace": 512 << 20}


def test_tensorrt_11_needs_no_flag_for_strong_typing(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("11.4.1")
    facts = backend.build(request(bundle, tmp_path / "e"), lambda text: None)
    assert FakeState.network.flags == 0
    assert "--stronglyTyped" not in facts["trtexec"]


@pytest.mark.parametrize(
    ("version", "plugin", "form", "functions"),
    [
        ("10.3.0.30", True, "plugin", False),
        ("10.6.0", True, "plugin", False),
        ("10.7.0", True, "plugin or function", True),
        ("10.3.0.30", False, "inlined", False),
        ("10.8.0", False, "function", True),
    ],
)
def test_form_of_the_graph(
    fake: Fake,
    bundle: Bundle,
    tmp_path: Path,
    version: str,
    plugin: bool,
    form: str,
    functions: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake(version)
    seen: list[onnx.ModelProto] = []
    monkeypatch.setattr(
        backend, "_network", lambda builder, logger, model, version: seen.append(onnx.load_from_string(model)) or 1 / 0
    )
    wanted = str(plugin_file(tmp_path)) if plugin else "none"
    with pytest.raises(ZeroDivisionError):
        backend.build(request(bundle, tmp_path / "e", plugin=wanted), lambda text: None)
    nodes = [node for node in seen[0].graph.node if node.op_type == "TokenSample"]
    assert bool(seen[0].functions) is functions
    assert bool(nodes) is (form != "inlined")
    assert all(any(a.name == "plugin_namespace" and a.s == b"vitprune" for a in node.attribute) for node in nodes)


def test_timing_cache_is_kept_and_used_again(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    asked, cache = request(bundle, tmp_path / "e"), tmp_path / "e" / "timing.cache"
    assert backend.build(asked, lambda text: None)["timing_cache"] == "new"
    assert cache.read_bytes() == b"t"
    assert backend.build(asked, lambda text: None)["timing_cache"] == "reused"
    assert cache.read_bytes() == b"tt"
    cache.write_bytes(b"other device")
    assert backend.build(asked, lambda text: None)["timing_cache"].startswith("started anew")
    assert cache.read_bytes() == b"t"


def test_parser_refuses(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    FakeState.refuse_parse = "no importer for Unique"
    assert refusal("VP520", bundle, tmp_path / "e").cause == "no importer for Unique"


def test_no_engine_and_no_memory_are_told_apart(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    FakeState.fail_build = "Could not find any implementation for node"
    assert "implementation" in refusal("VP521", bundle, tmp_path / "e").cause
    FakeState.fail_build = "[defaultAllocator.cpp] Requested amount of GPU memory (2147483648 bytes) could not be allocated."
    assert "--workspace" in refusal("VP524", bundle, tmp_path / "e").next_step
    assert "2147483648" in (tmp_path / "e" / "build.log").read_text()


def test_memory_is_looked_at_before_the_build(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    FakeState.network = None
    assert "6144 MiB are free" in refusal("VP524", bundle, tmp_path / "e", workspace_mib=8000).cause
    assert FakeState.network is None, "TensorRT was not asked"


def test_plugin_that_is_not_there(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    assert "nowhere.so" in refusal("VP522", bundle, tmp_path / "e", plugin="nowhere.so").cause


def test_library_without_the_operator(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    error = refusal("VP522", bundle, tmp_path / "e", plugin=str(plugin_file(tmp_path, namespace="elsewhere")))
    assert "namespace 'vitprune'" in error.message
    assert "registers TokenSample version 1, namespace 'elsewhere'" in error.cause


@pytest.mark.parametrize("version", ["10.3.0.30", "10.16.2"])
def test_sites_as_plugin_nodes(fake: Fake, bundle: Bundle, tmp_path: Path, version: str) -> None:
    fake(version)
    library = plugin_file(tmp_path)
    library.write_text(json.dumps([["TokenSample", "1", "vitprune"], ["PruneSite", "1", "vitprune"]]))
    facts = backend.build(request(bundle, tmp_path / "e", plugin=str(library), sites="plugin"), lambda text: None)
    assert facts["graph"] == "plugin"
    assert facts["plugin"]["file"] == library.name
    parsed = onnx.load(str(tmp_path / "e" / "model.parsed.onnx"))
    assert [node.op_type for node in parsed.graph.node if node.domain == "vitprune"] == ["PruneSite", "PruneSite"]
    assert not parsed.functions
    assert facts["outputs"] == ["logits", "kept_1", "kept_2"]


def test_sites_as_plugin_nodes_need_a_library_that_has_them(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    assert "need the plugin library" in refusal("VP522", bundle, tmp_path / "e", sites="plugin").message
    old = str(plugin_file(tmp_path))
    assert "plugin PruneSite version 1" in refusal("VP522", bundle, tmp_path / "e", plugin=old, sites="plugin").message


def test_merging_sites_as_plugin_nodes(fake: Fake, merging_bundle: Bundle, tmp_path: Path) -> None:
    """A library is asked for the operators that the graph has nodes of."""
    fake("10.16.2")
    bundle, library = merging_bundle, plugin_file(tmp_path)
    library.write_text(json.dumps([["TokenSample", "1", "vitprune"], ["PruneSite", "1", "vitprune"]]))
    assert "plugin PairMerge version 1" in refusal("VP522", bundle, tmp_path / "e", plugin=str(library), sites="plugin").message
    library.write_text(json.dumps([["TokenSample", "1", "vitprune"], ["PairMerge", "1", "vitprune"]]))
    facts = backend.build(request(bundle, tmp_path / "e", plugin=str(library), sites="plugin"), lambda text: None)
    parsed = onnx.load(str(tmp_path / "e" / "model.parsed.onnx"))
    assert facts["graph"] == "plugin"
    assert {node.op_type for node in parsed.graph.node if node.domain == "vitprune"} == {"PairMerge"}


def test_no_site_can_be_a_plugin_node(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    model = onnx.load(str(bundle.model_path))
    del model.metadata_props[:]
    onnx.save(model, str(bundle.model_path))
    refusal("VP537", bundle, tmp_path / "e", plugin=str(plugin_file(tmp_path)), sites="plugin")


def test_sites_as_plugin_nodes_without_onnx(fake: Fake, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("10.16.2")
    monkeypatch.setitem(sys.modules, "vitprune.graph.lowering.plugin_sites", None)
    refusal("VP528", bundle, tmp_path / "e", plugin=str(plugin_file(tmp_path)), sites="plugin")


def test_library_that_cannot_be_loaded(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    file = plugin_file(tmp_path)
    file.write_text("not a library")
    error = refusal("VP522", bundle, tmp_path / "e", plugin=str(file))
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:16] in error.cause


def test_old_tensorrt_wants_the_plugin_unless_told_otherwise(
    fake: Fake, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("10.3.0.30")
    monkeypatch.setattr("vitprune.backends._tensorrt.plugins.obtain", lambda wanted, *_: (None, "no nvcc"))
    error = refusal("VP522", bundle, tmp_path / "e", plugin="auto")
    assert "no nvcc" in error.cause
    assert "--plugin none" in error.next_step


def test_new_tensorrt_goes_on_without_the_plugin_and_says_why(
    fake: Fake, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("10.16.2")
    monkeypatch.setattr("vitprune.backends._tensorrt.plugins.obtain", lambda wanted, *_: (None, "no nvcc"))
    facts = backend.build(request(bundle, tmp_path / "e", plugin="auto"), lambda text: None)
    assert (facts["plugin"], facts["plugin_reason"], facts["graph"]) == (None, "no nvcc", "function")


@pytest.mark.parametrize("version", ["10.2.0", "12.0", "8.6.2"])
def test_tensorrt_outside_the_range(fake: Fake, bundle: Bundle, tmp_path: Path, version: str) -> None:
    fake(version)
    assert backend.missing()
    refusal("VP523", bundle, tmp_path / "e")


def test_wrong_gpu(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    assert "SM 110" in refusal("VP525", bundle, tmp_path / "e", architectures=["110"]).message


def test_no_gpu() -> None:
    with pytest.raises(BuildError, match="VP525"):
        backend.check_gpu([], ["87"])
    assert backend.check_gpu([Gpu("a", "89", 1, False)], []).architecture == "89"


def test_asked_for_fp16_and_got_fp32(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    error = refusal("VP526", bundle, tmp_path / "e", precision="fp16")
    assert "asked for fp16" in error.message
    assert "(fp32)" in error.cause
    FakeState.layer_type = "Half"
    facts = backend.build(request(bundle, tmp_path / "e", precision="fp16"), lambda text: None)
    assert facts["precision_audit"] == "ok"


def test_trtexec_command(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.3.0.30")
    facts = backend.build(
        request(bundle, tmp_path / "e", plugin=str(plugin_file(tmp_path)), workspace_mib=1024), lambda text: None
    )
    parsed = onnx.load(str(tmp_path / "e" / "model.parsed.onnx"))
    assert len(onnx.load(str(bundle.model_path)).functions) > len(parsed.functions) == 0, "10.3 would prefer the function"
    assert shlex.split(facts["trtexec"]) == [
        "trtexec", "--onnx=model.parsed.onnx", "--saveEngine=model.engine", "--stronglyTyped", "--minShapes=image:2x3x64x64",
        "--optShapes=image:4x3x64x64", "--maxShapes=image:6x3x64x64", "--memPoolSize=workspace:1024",
        "--staticPlugins=libvitprune_plugin.so", "--timingCacheFile=timing.cache", "--noTF32", "--profilingVerbosity=detailed",
    ]  # fmt: skip


def test_a_jetson_without_the_onnx_package(fake: Fake, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("10.3.0.30")
    for name in ("onnx", "onnx.inliner"):
        monkeypatch.setitem(sys.modules, name, None)
    facts = backend.build(request(bundle, tmp_path / "e", plugin=str(plugin_file(tmp_path))), lambda text: None)
    assert facts["graph"] == "plugin"
    assert "plugins build" in refusal("VP528", bundle, tmp_path / "e").next_step


def test_not_an_onnx_file(fake: Fake, bundle: Bundle, tmp_path: Path) -> None:
    fake("10.16.2")
    bundle.model_path.write_bytes(b"not a model")
    assert "protobuf" in refusal("VP529", bundle, tmp_path / "e").cause


def test_backend_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "JetPack" in backend.missing()


_REAL = """
import json, sys
import tensorrt_rtx
tensorrt_rtx.__version__ = "10.16.2"
sys.modules["tensorrt"] = tensorrt_rtx
from vitprune.backends import tensorrt as backend
from vitprune.errors import BuildError
from vitprune.support.gpus import Gpu
backend.local_gpus = lambda: [Gpu("none", "86", 8192, False)]
backend.free_memory = lambda: None
seen = []
try:
    backend.build(json.loads(sys.stdin.read()), seen.append)
except BuildError as error:
    print(json.dumps({"code": error.code, "cause": error.cause, "seen": seen}))
"""


@pytest.mark.rtx
def test_nvidias_own_library_runs_the_build_up_to_the_gpu(bundle: Bundle, tmp_path: Path) -> None:
    """TensorRT-RTX has the same Python interface and builds without a GPU; only reading the engine back needs one."""
    pytest.importorskip("tensorrt_rtx")
    done = subprocess.run(
        [sys.executable, "-c", _REAL],
        input=json.dumps(request(bundle, tmp_path / "e")),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "inspecting the engine" in answer["seen"]
    assert answer["code"] == "VP527"
    assert "deserializeCudaEngine" in answer["cause"]
    assert (tmp_path / "e" / "model.engine").stat().st_size > 100_000
    assert (tmp_path / "e" / "timing.cache").stat().st_size > 0
