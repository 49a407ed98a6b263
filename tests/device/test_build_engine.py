"""build-engine for a device that is not this machine, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitprune import cli, console
from vitprune.bundle import Bundle, open_bundle
from vitprune.device import collect as collecting
from vitprune.device import preparing
from vitprune.device.build import PACKAGED, package_engine
from vitprune.device.collect import collect
from vitprune.device.package import read_manifest
from vitprune.engines.sites import require_sites
from vitprune.errors import BuildError, RecipeError, TargetError
from vitprune.support.hashing import sha256_of
from vitprune.targets import choose, load

TARGET = "jetson-orin"


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "settings", console.Settings())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(capsys: pytest.CaptureFixture[str], bundle: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    code = cli.run(["build-engine", str(bundle), "-t", TARGET, "--no-trials", "--json", *more])
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


def test_packaged(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, shown = run(capsys, bundle.path)
    assert (code, document["status"]) == (0, "packaged, engine to be built on the device")
    assert document["status"] == PACKAGED
    assert "to be built" in shown
    path = Path(document["package"]["path"])
    assert path == bundle.path / "engines" / TARGET / f"small-{TARGET}.tar"
    assert sha256_of(path) == document["package"]["package_sha256"]
    listed = open_bundle(bundle.path).manifest.files
    assert {name for name in listed if name.startswith("engines/")} == {
        f"engines/{TARGET}/small-{TARGET}.tar", f"engines/{TARGET}/package-report.json",
    }  # fmt: skip


def test_engine_required(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, _ = run(capsys, bundle.path, "--require-engine")
    assert (code, document["error"]["code"]) == (2, "VP232")
    assert "run.sh" in document["error"]["next_step"]
    assert (bundle.path / "engines" / TARGET / f"small-{TARGET}.tar").is_file()


def test_again_keeps_what_is_the_same_and_an_engine_in_any_case(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, bundle.path)[0] == 0
    engine = bundle.path / "engines" / TARGET / "model.engine"
    engine.write_bytes(b"built earlier")
    assert run(capsys, bundle.path)[0] == 0
    assert engine.is_file()
    open_bundle(bundle.path)
    code, document, _ = run(capsys, bundle.path, "--batch", "1")
    assert (code, document["error"]["code"]) == (2, "VP106")
    code, document, shown = run(capsys, bundle.path, "--batch", "1", "--force")
    assert (code, document["package"]["batch"]) == (0, [1, 1, 1])
    assert engine.read_bytes() == b"built earlier"
    assert "stays until the one of this package comes back" in shown
    assert f"engines/{TARGET}/model.engine" in open_bundle(bundle.path).manifest.files


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--rehearse"], "VP199"),
        (["--embed-plugin"], "VP199"),
        (["--plugin", "none"], "VP199"),
        (["--remote", "host:bad folder"], "VP199"),
        (["--remote", "host", "--ssh-option", "nonsense"], "VP199"),
        (["--batch", "4:1:8"], "VP108"),
    ],
)
def test_wrong_options(bundle: Bundle, capsys: pytest.CaptureFixture[str], options: list[str], code: str) -> None:
    assert run(capsys, bundle.path, *options)[1]["error"]["code"] == code
    assert not (bundle.path / "engines").exists()


def test_remote_is_for_devices(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["build-engine", str(bundle.path), "-t", "onnxruntime-cpu", "--remote", "host", "--json"])
    assert (code, json.loads(capsys.readouterr().out)["error"]["code"]) == (2, "VP199")


def test_full_disk_leaves_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitprune.device import package

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package, "_write_tar", full)
    with pytest.raises(RecipeError, match="VP107"):
        package_engine(bundle, choose(load(TARGET)), trials=False)
    assert not (bundle.path / "engines").exists()
    open_bundle(bundle.path)


def test_trials_inform(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a missing compiler nor a builder's refusal stops the packaging."""
    monkeypatch.setattr(preparing, "build_for", lambda *_, **__: {"built": False, "reason": "VP602: There is no CUDA compiler."})

    def refuse(*_: Any) -> dict[str, Any]:
        raise BuildError(510, "TensorRT-RTX refuses the graph", cause="UNSUPPORTED_NODE")

    monkeypatch.setattr(preparing.building, "run_child", refuse)
    monkeypatch.setattr(preparing.backends.get(preparing.STAND_IN), "missing", lambda: "")
    findings = package_engine(bundle, choose(load(TARGET)))["findings"]
    assert findings["plugin"] == {"status": "skipped", "detail": "VP602: There is no CUDA compiler."}
    assert findings["stand_in"]["status"] == "failed"
    assert "UNSUPPORTED_NODE" in findings["stand_in"]["detail"]
    monkeypatch.setattr(preparing, "build_for", lambda *_, **__: {"built": False, "reason": "VP604: Building failed"})
    assert preparing.compile_plugin(load(TARGET))["status"] == "failed"


@pytest.mark.rtx
def test_another_nvidia_builder_takes_the_graph(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx")
    finding = preparing.stand_in_build(bundle, (1, 4, 8), 300)
    assert finding["status"] == "passed", finding
    assert finding["facts"]["outputs"] == ["logits"]


def incoming(bundle: Bundle, package: Path, mode: str, spoil: str = "", code: int = 0, plan: bytes = b"plan") -> Path:
    """What a device would send."""
    folder = bundle.path / "engines" / ".in"
    (folder / "engine").mkdir(parents=True)
    (folder / "validate.json").write_text("{}\n")
    (folder / "engine" / "model.engine").write_bytes(plan)
    (folder / "engine" / "engine.json").write_text('{"engine": "model.engine"}\n')
    files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}
    result = {
        "mode": mode,
        "status": "failed" if code else "passed",
        "exit_code": code,
        "package_sha256": read_manifest(package)["sha256"],
        "files": files,
    }
    if spoil == "package":
        result["package_sha256"] = "0"
    if spoil == "outside":
        files["../x"] = "0"
    (folder / "result.json").write_text(json.dumps(result))
    if spoil == "engine":
        (folder / "engine" / "model.engine").write_bytes(b"pla")
    if spoil == "result":
        (folder / "result.json").write_text("{")
    return folder


def test_engine_joins_the_package(bundle: Bundle) -> None:
    package = Path(package_engine(bundle, choose(load(TARGET)), trials=False)["path"])
    collect(bundle, TARGET, incoming(bundle, package, "device"), read_manifest(package))
    names = sorted(path.name for path in (bundle.path / "engines" / TARGET).iterdir())
    assert names == ["engine.json", "model.engine", "package-report.json", f"small-{TARGET}.tar"]
    assert f"engines/{TARGET}/model.engine" in open_bundle(bundle.path).manifest.files
    assert (bundle.path / "reports" / TARGET / "validate.json").is_file()
    assert not list((bundle.path / "engines").glob(".*"))


@pytest.mark.parametrize("spoil", ["engine", "package", "outside", "result"])
def test_spoilt_results_stay_out(bundle: Bundle, spoil: str) -> None:
    package = Path(package_engine(bundle, choose(load(TARGET)), trials=False)["path"])
    with pytest.raises(TargetError, match="VP238"):
        collect(bundle, TARGET, incoming(bundle, package, "device", spoil), read_manifest(package))
    assert not list((bundle.path / "engines" / TARGET).glob("*.engine"))
    assert not (bundle.path / "reports" / TARGET).exists()
    open_bundle(bundle.path)


def test_new_engine_leaves_nothing_of_the_old(bundle: Bundle) -> None:
    package = Path(package_engine(bundle, choose(load(TARGET)), trials=False)["path"])
    collect(bundle, TARGET, incoming(bundle, package, "device"), read_manifest(package))
    old = bundle.path / "engines" / TARGET
    (old / "libold_plugin.so").write_bytes(b"")
    (old / "model.engine").write_bytes(b"old")
    package = Path(package_engine(bundle, choose(load(TARGET)), batch=(1, 1, 1), trials=False, force=True)["path"])
    assert (old / "model.engine").read_bytes() == b"old"
    collect(bundle, TARGET, incoming(bundle, package, "device"), read_manifest(package))
    assert (old / "model.engine").read_bytes() == b"plan"
    assert not (old / "libold_plugin.so").exists()
    assert package.is_file()


def test_failed_gates_do_not_replace_an_engine(bundle: Bundle) -> None:
    package = Path(package_engine(bundle, choose(load(TARGET)), trials=False)["path"])
    manifest, place = read_manifest(package), bundle.path / "engines" / TARGET / "model.engine"
    assert collect(bundle, TARGET, incoming(bundle, package, "device", code=1, plan=b"first"), manifest)["engine_stored"]
    assert collect(bundle, TARGET, incoming(bundle, package, "device"), manifest)["engine_stored"]
    assert not collect(bundle, TARGET, incoming(bundle, package, "device", code=1, plan=b"worse"), manifest)["engine_stored"]
    assert place.read_bytes() == b"plan"
    open_bundle(bundle.path)


def test_full_disk_keeps_the_old_engine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(package_engine(bundle, choose(load(TARGET)), trials=False)["path"])
    manifest = read_manifest(package)
    collect(bundle, TARGET, incoming(bundle, package, "device"), manifest)
    new = incoming(bundle, package, "device")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(collecting.shutil, "copytree", full)
    with pytest.raises(RecipeError, match="VP107"):
        collect(bundle, TARGET, new, manifest)
    assert (bundle.path / "engines" / TARGET / "model.engine").read_bytes() == b"plan"
    open_bundle(bundle.path)


@pytest.mark.parametrize(
    ("target", "sites", "plugin", "code"),
    [
        (TARGET, "operators", "auto", "VP147"),
        ("rtx", "plugin", "auto", "VP199"),
        ("onnxruntime-cpu", "plugin", "auto", "VP199"),
        (TARGET, "plugin", "none", "VP199"),
    ],
)
def test_sites_that_a_builder_does_not_take(target: str, sites: str, plugin: str, code: str) -> None:
    require_sites(load(target), "nodes", plugin)
    with pytest.raises(RecipeError) as caught:
        require_sites(load(target), sites, plugin)
    assert caught.value.code == code
    assert caught.value.cause
    assert caught.value.next_step


def test_sites_as_plugin_nodes_have_no_latency_table(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["build-engine", str(bundle.path), "-t", TARGET, "--sites", "plugin", "--profile-tokens"])
    assert (code, "VP199" in capsys.readouterr().err) == (2, True)
