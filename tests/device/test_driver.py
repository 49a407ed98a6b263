"""What a package does where it is unpacked: rehearsed with ONNX Runtime, and with a stand-in for TensorRT."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from device_package import run_sh

from vitprune.backends import Result
from vitprune.benchmarking import comparing
from vitprune.bundle import Bundle
from vitprune.device import driver, entry
from vitprune.device.build import package_engine
from vitprune.device.job import Job
from vitprune.errors import BuildError
from vitprune.support.resources import schemas_folder
from vitprune.targets import choose
from vitprune.targets import load as load_target

FORBIDDEN = "torch timm pydantic yaml typer rich click onnx_graphsurgeon safetensors"


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_rehearsal_needs_numpy_and_onnxruntime_alone(unpacked: Path, tmp_path: Path) -> None:
    """Every other third-party package the toolchain uses is made impossible to import."""
    block = tmp_path / "block"
    block.mkdir()
    (block / "sitecustomize.py").write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {FORBIDDEN.split()!r}:\n"
        "            raise ModuleNotFoundError(f'{name} is blocked', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    done = run_sh(unpacked, "--rehearse", "--rounds", "3", PYTHONPATH=str(block))
    assert done.returncode == 0, done.stderr
    out = unpacked / "out-rehearsal"
    result = load(out / "result.json")
    assert result["status"] == "passed"
    assert result["mode"] == "rehearsal"
    assert result["engine"] is None
    assert set(result["files"]) == {"environment.json", "validate.json", "benchmark.json"}
    assert all(entry.sha256_of(out / name) == digest for name, digest in result["files"].items())
    assert load(out / "environment.json")["packages"]["torch"] is None
    verdict = load(out / "validate.json")
    assert verdict["decisions_compared"] is True
    assert {gate["name"] for gate in verdict["gates"]} >= {"decisions", "logits_max_abs", "top1_agreement"}
    timed = load(out / "benchmark.json")
    schema = json.loads((schemas_folder() / "benchmark.json").read_text())
    measured = {**timed, "command": "benchmark", "status": "ok", "exit_code": 0, "benchmark_schema": timed["schema_version"]}
    jsonschema.Draft202012Validator(schema).validate(measured)
    comparing.compare(comparing.read(out / "benchmark.json"), timed)
    assert [(entry["batch"], entry["against"], entry["ratio"]) for entry in timed["results"]] == [
        (1, "onnxruntime", 1.0),
        (4, "onnxruntime", 1.0),
    ]
    assert set(timed["clocks"]["before"]["power"]) == {
        "nvpmodel",
        "jetson_clocks",
        "tegrastats",
        "nvidia_smi",
        "nv_tegra_release",
    }
    assert [path for path in unpacked.iterdir() if path.name.startswith(".")] == []
    assert not list((unpacked / "lib").rglob("*.pyc"))
    entry.verify(unpacked)


def test_failed_gate_is_exit_1(unpacked: Path) -> None:
    path = unpacked / "package.json"
    manifest = load(path)
    manifest["job"]["gates"]["logits_max_abs"] = 1e-30
    manifest["sha256"] = entry.seal(manifest)
    path.write_text(json.dumps(manifest))
    samples = dict(np.load(unpacked / "bundle" / "samples.npz"))
    samples["logits"] = samples["logits"] + np.float32(1e-3)
    assert run_here(unpacked, manifest, samples, "--rehearse", "--rounds", "1") == 1
    assert load(unpacked / "out-rehearsal" / "result.json")["status"] == "failed"
    assert load(unpacked / "out-rehearsal" / "validate.json")["exit_code"] == 1


def run_here(root: Path, manifest: dict[str, Any], samples: dict[str, Any], *options: str) -> int:
    """Run the driver in this process, with other samples."""
    np.savez(root / "bundle" / "samples.npz", **samples)
    return driver.run(root, manifest, entry.arguments(list(options)), entry.show)


class StandIn:
    """A backend that 'builds' by copying and runs on ONNX Runtime without kept outputs; records what it was given."""

    def __init__(self, folder: Path, spoil: float = 0.0) -> None:
        self.spoil = spoil

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return "10.3.0"

    def Session(self, job: Job, engine: Path | None = None) -> Any:  # noqa: N802
        from vitprune.backends.onnxruntime import make_session

        assert engine is not None
        assert (engine.parent / "engine.json").is_file()
        session, spoil = make_session(engine), self.spoil

        class Session:
            def run(self, x: Any) -> Result:
                (logits,) = session.run(None, {"image": np.ascontiguousarray(x)})
                return Result(logits + np.float32(spoil), [])

        return Session()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """`tensorrt` is a stand-in; its build requests are recorded."""
    from vitprune import backends
    from vitprune.engines import building

    seen: dict[str, Any] = {"backend": StandIn(tmp_path)}
    get, names = backends.get, backends.names

    def build(request: dict[str, Any], report: Any, timeout: float) -> dict[str, Any]:
        seen["request"] = request
        shutil.copyfile(request["model"], request["output"])
        Path(request["log"]).write_text("a line\n")
        return {"runtime": "stand-in"}

    monkeypatch.setattr(backends, "get", lambda name: seen["backend"] if name == "tensorrt" else get(name))
    monkeypatch.setattr(backends, "names", lambda: sorted({*names(), "tensorrt"}))
    monkeypatch.setattr(building, "run_child", build)
    return seen


def test_device_run_writes_engine_and_reports(unpacked: Path, stand_in: dict[str, Any]) -> None:
    manifest = entry.verify(unpacked)
    options = entry.arguments(["--plugin", "skip", "--rounds", "2"])
    assert driver.run(unpacked, manifest, options, entry.show) == 0
    out = unpacked / "out"
    request = stand_in["request"]
    assert (request["backend"], tuple(request["batch"]), request["plugin"]) == ("tensorrt", (1, 4, 8), "none")
    engine = load(out / "engine" / "engine.json")
    assert engine["validated"] == "passed"
    assert engine["engine_sha256"] == entry.sha256_of(out / "engine" / "model.engine")
    assert engine["model_sha256"] == manifest["files"]["bundle/model.onnx"]
    verdict = load(out / "validate.json")
    assert verdict["decisions_compared"] is False
    assert "decisions" not in [gate["name"] for gate in verdict["gates"]]
    assert verdict["evidence"] == "engine = reference on a GPU"
    timed = load(out / "benchmark.json")
    assert timed["runtime"]["backend"] == "tensorrt"
    assert [(entry["batch"], entry["against"], entry["other"]["name"]) for entry in timed["results"]] == [
        (1, "onnxruntime", "onnxruntime"),
        (4, "onnxruntime", "onnxruntime"),
    ]
    assert sorted(path.name for path in (out / "engine").iterdir()) == ["build.log", "engine.json", "model.engine"]


def test_engine_is_built_from_the_graph_whose_sites_are_plugin_nodes(
    bundle: Bundle, stand_in: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitprune.engines import building

    seen: list[onnx.ModelProto] = []

    def build(request: dict[str, Any], report: Any, timeout: float) -> dict[str, Any]:
        seen.append(onnx.load(request["model"]))
        raise BuildError(522, "seen", cause="the stand-in runs no plugins", next_step="none")

    monkeypatch.setattr(building, "run_child", build)
    made = package_engine(bundle, choose(load_target("jetson-orin")), trials=False, sites="plugin")
    with tarfile.open(made["path"]) as archive:
        archive.extractall(tmp_path / "there", filter="data")
    (root,) = (tmp_path / "there").iterdir()
    manifest = entry.verify(root)
    assert manifest["job"]["sites"] == "plugin"
    assert driver.run(root, manifest, entry.arguments(["--plugin", "skip", "--rounds", "1"]), entry.show) == 2
    assert [node.op_type for node in seen[0].graph.node if node.domain == "vitprune"] == ["PruneSite"] * 3
    assert [output.name for output in seen[0].graph.output] == ["logits"]
    assert driver.run(root, manifest, entry.arguments(["--rehearse", "--rounds", "1"]), entry.show) == 0


def test_another_tensorrt_than_stated_is_said(
    unpacked: Path, stand_in: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in is 10.3.0."""
    manifest = entry.verify(unpacked)
    options = entry.arguments(["--plugin", "skip", "--rounds", "1"])
    for stated, differs in (("10.3.0", False), ("10.16.2", True)):
        manifest["job"]["stated"] = {"tensorrt": stated}
        assert driver.run(unpacked, manifest, options, entry.show) == 0
        said = load(unpacked / "out" / "result.json")["differs"]
        assert bool(said) == differs
        assert (f"note: {said}" in capsys.readouterr().err) == differs


def test_wrong_engine_fails_its_gates_and_says_so(unpacked: Path, stand_in: dict[str, Any], tmp_path: Path) -> None:
    stand_in["backend"] = StandIn(tmp_path, spoil=0.5)
    assert driver.run(unpacked, entry.verify(unpacked), entry.arguments(["--plugin", "skip", "--rounds", "1"]), entry.show) == 1
    assert load(unpacked / "out" / "engine" / "engine.json")["validated"] == "failed"


def test_failed_build_leaves_the_error_and_no_engine(
    unpacked: Path, stand_in: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitprune.engines import building
    from vitprune.errors import BuildError

    def fail(request: dict[str, Any], report: Any, timeout: float) -> dict[str, Any]:
        Path(request["log"]).write_text("the parser's words\n")
        raise BuildError(502, "the builder was killed by SIGKILL", cause="memory", next_step="lower --workspace")

    monkeypatch.setattr(building, "run_child", fail)
    assert driver.run(unpacked, entry.verify(unpacked), entry.arguments(["--plugin", "skip"]), entry.show) == 2
    result = load(unpacked / "out" / "result.json")
    assert result["error"]["code"] == "VP502"
    assert set(result["files"]) == {"environment.json", "engine/build.log"}


def test_without_the_runtime(unpacked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from types import SimpleNamespace

    from vitprune import backends

    get, names = backends.get, backends.names
    absent = SimpleNamespace(missing=lambda: "TensorRT is not installed")
    monkeypatch.setattr(backends, "get", lambda name: absent if name == "tensorrt" else get(name))
    monkeypatch.setattr(backends, "names", lambda: sorted({*names(), "tensorrt"}))
    assert driver.run(unpacked, entry.verify(unpacked), entry.arguments([]), entry.show) == 2
    assert load(unpacked / "out" / "result.json")["error"]["code"] == "VP241"
    assert "VITPRUNE_PYTHON" in capsys.readouterr().err


def test_python_without_numpy(unpacked: Path, tmp_path: Path) -> None:
    """An interpreter of last resort says what it lacks; its site-packages are left out with -S."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    done = run_sh(unpacked, "--rehearse", VITPRUNE_PYTHON=str(bare))
    assert done.returncode == 2
    assert "error VP241 this Python has no numpy" in done.stderr
    assert "apt install python3-numpy" in done.stderr
    assert "Traceback" not in done.stderr


def test_new_output_replaces_the_old(unpacked: Path, stand_in: dict[str, Any]) -> None:
    (unpacked / "out").mkdir()
    (unpacked / "out" / "stale").write_text("")
    assert driver.run(unpacked, entry.verify(unpacked), entry.arguments(["--plugin", "skip", "--rounds", "1"]), entry.show) == 0
    assert not (unpacked / "out" / "stale").exists()


def test_unwritable_place(unpacked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(driver.temporary, "folder", full)
    assert driver.run(unpacked, entry.verify(unpacked), entry.arguments(["--rehearse"]), entry.show) == 2
    assert "VP245" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--rounds", "0"], ["--timeout", "-1"], ["--what"]])
def test_wrong_options_are_exit_2(unpacked: Path, given: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        entry.arguments(given)
    assert caught.value.code == 2


def test_undecided_gate_is_neither_passed_nor_failed(unpacked: Path) -> None:
    """Eight images cannot hold a limit of two points, and none of them breaks it."""
    path = unpacked / "package.json"
    manifest = load(path)
    manifest["job"]["gates"]["top1_drop"] = 2.0
    manifest["sha256"] = entry.seal(manifest)
    path.write_text(json.dumps(manifest))
    samples = dict(np.load(unpacked / "bundle" / "samples.npz"))
    samples["labels"] = samples["logits"].argmax(axis=1)
    samples["dense_logits"] = samples["logits"]
    assert run_here(unpacked, manifest, samples, "--rehearse", "--rounds", "1") == 1
    assert load(unpacked / "out-rehearsal" / "result.json")["status"] == "undecided"
    gates = {gate["name"]: gate for gate in load(unpacked / "out-rehearsal" / "validate.json")["gates"]}
    assert gates["top1_drop"]["undecided"]
    assert not gates["top1_drop"]["passed"]
