from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitprune import backends, targets
from vitprune.cli import run as cli
from vitprune.errors import TargetError
from vitprune.support.resources import shipped_targets
from vitprune.support.versions import Version

SHIPPED = sorted(shipped_targets())


def refused(code: str, *arguments: object, **options: str) -> TargetError:
    with pytest.raises(TargetError) as caught:
        targets.choose(targets.load(str(arguments[0])), **options)
    assert caught.value.code == code
    assert caught.value.cause
    assert caught.value.next_step
    return caught.value


def test_what_is_shipped() -> None:
    assert SHIPPED == ["desktop", "jetson-orin", "jetson-thor", "onnxruntime-cpu", "onnxruntime-cuda", "rtx", "server"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_target_loads(name: str) -> None:
    target = targets.load(name)
    assert target.name == name
    assert target.backend in backends.names()
    assert target.runtime_source
    assert target.summary
    versions = [Version.parse(release.tensorrt) for release in target.releases]
    assert versions == sorted(versions), "the first release is the oldest, which is what is assumed"
    if target.backend == "tensorrt":
        assert versions
        assert all(Version.parse(target.runtime_min) <= version < Version.parse(target.runtime_below) for version in versions)
        assert target.power.query
    for release in target.releases:
        assert set(release.modules) <= set(target.modules)
    for module in target.modules.values():
        assert module.architecture is None or module.architecture in target.architectures


def test_modules_of_orin_and_their_scratch_memory() -> None:
    target = targets.load("jetson-orin")
    assert {name: module.memory_gib for name, module in target.modules.items()} == {
        "nano-4": 4, "nano-8": 8, "nx-8": 8, "nx-16": 16, "agx-32": 32, "agx-64": 64,
    }  # fmt: skip
    assert target.workspace_for(target.modules["nano-8"]) == 2048
    assert target.workspace_for(None) is None
    assert (target.compute_capability, target.machine, target.builds_on) == ("87", "aarch64", "device")


@pytest.mark.parametrize(
    ("jetpack", "tensorrt"),
    [("6.2", "10.3.0"), ("6.2.2", "10.3.0"), ("7.2", "10.16.2"), ("7.2.1", "10.16.2"), ("7.2.2", "11.4.1"), ("7.2.9", "11.4.1")],
)
def test_tensorrt_of_a_jetpack(jetpack: str, tensorrt: str) -> None:
    choice = targets.choose(targets.load("jetson-orin"), jetpack=jetpack)
    assert choice.release is not None
    assert choice.release.tensorrt == tensorrt


def test_without_a_release_the_oldest_is_assumed() -> None:
    choice = targets.choose(targets.load("jetson-orin"), module="agx-64")
    assert str(choice.runtime_version) == "10.3"
    assert choice.module is not None
    assert choice.module.memory_gib == 64


def test_card_decides_the_compute_capability() -> None:
    server = targets.load("server")
    assert targets.choose(server, module="h100").architectures == ["90"]
    assert targets.choose(server).architectures == ["80", "86", "89", "90", "100"]
    assert targets.choose(targets.load("desktop")).architectures == []


def test_narrowed_to_the_device_that_is_meant() -> None:
    orin, server = targets.load("jetson-orin"), targets.load("server")
    assert targets.choose(orin).narrowed() == orin
    assert targets.choose(orin).stated() == {}
    assert targets.choose(orin, module="agx-64").narrowed("87").workspace_mib == 16384
    assert targets.choose(orin, module="agx-64", jetpack="6.2.2").stated("87") == {
        "module": "agx-64", "jetpack": "6.2", "tensorrt": "10.3.0", "sm": "87",
    }  # fmt: skip
    h100 = targets.choose(server, module="h100")
    assert (h100.narrowed().architectures, h100.narrowed().workspace_mib) == (["90"], None)
    assert targets.choose(targets.load("desktop")).narrowed("89").architectures == ["89"]
    with pytest.raises(TargetError, match="VP225") as wrong:
        h100.narrowed("80")
    assert wrong.value.cause == "its engines are for SM 90"
    assert [targets.capability(text) for text in ("", "8.7", "120")] == ["", "87", "120"]
    with pytest.raises(TargetError, match="VP224"):
        targets.capability("8")


def test_wrong_choices() -> None:
    assert refused("VP220", "jetson-orin", module="agx64").cause == "did you mean 'agx-64'?"
    assert "6.2 (TensorRT 10.3.0)" in refused("VP221", "jetson-orin", jetpack="5.1.6").cause
    refused("VP221", "jetson-orin", jetpack="7.1")
    refused("VP221", "jetson-orin", jetpack="new")
    refused("VP222", "rtx", jetpack="6.2")
    refused("VP222", "desktop", module="agx-64")
    refused("VP222", "onnxruntime-cpu", tensorrt="10.3")
    refused("VP223", "desktop", tensorrt="10.3")
    refused("VP223", "jetson-thor", tensorrt="12.0")
    refused("VP223", "jetson-thor", tensorrt="ten")


def test_unknown_target_and_unknown_key(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="VP202") as unknown:
        targets.load("jetson-orion")
    assert unknown.value.cause == "did you mean 'jetson-orin'?"
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nsummary: s\nbackend: tensorrt\nmax_opsets: 18\n")
    with pytest.raises(TargetError, match="VP203") as key:
        targets.load(str(file))
    assert key.value.cause == "unknown key 'max_opsets': did you mean 'max_opset'?"
    file.write_text("name: mine\nsummary: s\nbackend: tensorrt\nreleases: [{tensorrt: newest}]\n")
    with pytest.raises(TargetError, match="VP203") as version:
        targets.load(str(file))
    assert "'newest' is not a version" in version.value.cause


def test_targets_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["targets", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["targets"]}
    assert sorted(listed) == SHIPPED
    assert listed["jetson-thor"]["releases"][0]["tensorrt"] == "10.13.3"
    assert listed["onnxruntime-cpu"]["state"] == "can be built here"


@pytest.mark.parametrize(("one", "other"), [("10.3", "10.3.0"), ("10.16.2.10", "10.16.2.10")])
def test_equal_versions(one: str, other: str) -> None:
    assert Version.parse(one) == Version.parse(other)


def test_versions_are_numbers_not_text() -> None:
    assert Version.parse("10.3") < Version.parse("10.10") < Version.parse("11")
    assert (str(Version.parse("11")), str(Version.parse("10.3.0.30").minor())) == ("11.0", "10.3")
    assert Version.find("unknown") is None
    with pytest.raises(ValueError, match="not a version"):
        Version.parse("")


def test_engines_of_nvidia_are_recommended_in_fp16():
    for name in ("jetson-orin", "jetson-thor", "rtx", "desktop", "server"):
        target = targets.load(name)
        assert target.recommended_precision == "fp16"
        assert target.recommended_precision in target.precisions
