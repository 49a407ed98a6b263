"""The package: one set of bytes, everything listed, nothing foreign taken."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from device_package import run_sh

from vitprune import targets
from vitprune.bundle import Bundle, open_bundle
from vitprune.device import entry
from vitprune.device.hardware import capability_of, is_device, machine_of, why_no_device
from vitprune.device.package import job_of, package_name, read_manifest, write_package
from vitprune.errors import LoadError
from vitprune.support.hashing import sha256_of

TARGET = "jetson-orin"


def test_same_bytes_wherever_the_bundle_lies(bundle: Bundle, tmp_path: Path) -> None:
    target = targets.load(TARGET)
    first, second = tmp_path / "1.tar", tmp_path / "2.tar"
    write_package(bundle, target, job_of(bundle, target, (1, 4, 8), None), first)
    copied = open_bundle(shutil.copytree(bundle.path, tmp_path / "copy" / bundle.path.name))
    for file in copied.path.rglob("*"):
        os.utime(file, (1, 1))
    write_package(copied, target, job_of(copied, target, (1, 4, 8), None), second)
    assert sha256_of(first) == sha256_of(second)
    with tarfile.open(first) as archive:
        members = archive.getmembers()
    assert [m.name for m in members] == sorted(m.name for m in members)
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 315532800)}
    assert {m.name for m in members if m.mode == 0o755} == {f"{package_name(bundle, target)}/run.sh"}


def test_what_is_in_it(unpacked: Path, bundle: Bundle) -> None:
    manifest = entry.verify(unpacked)
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert files == {*manifest["files"], "package.json"}
    wanted = {
        "run.sh", "run.py", "bundle/model.onnx", "bundle/samples.npz", "bundle/recipe.yaml", "bundle/manifest.json",
        "plugins/CMakeLists.txt", "lib/vitprune/device/driver.py", "lib/vitprune/plugins/build.py",
    }  # fmt: skip
    assert wanted <= files
    assert not [name for name in files if name.endswith((".pyc", ".engine"))]
    assert str(bundle.path.parent) not in json.dumps(manifest)
    inside = open_bundle(unpacked / "bundle")
    assert inside.recipe == bundle.recipe


def test_engines_of_other_targets_stay_out(bundle: Bundle, tmp_path: Path) -> None:
    target = targets.load(TARGET)
    before, after = tmp_path / "before.tar", tmp_path / "after.tar"
    write_package(bundle, target, job_of(bundle, target, (1, 4, 8), None), before)
    (bundle.path / "engines" / "other").mkdir(parents=True)
    (bundle.path / "engines" / "other" / "model.engine").write_bytes(b"x")
    bundle.add_files(["engines/other/model.engine"])
    write_package(bundle, target, job_of(bundle, target, (1, 4, 8), None), after)
    assert sha256_of(before) == sha256_of(after)


@pytest.mark.parametrize("name", ["bundle/model.onnx", "lib/vitprune/device/driver.py", "plugins/CMakeLists.txt", "run.sh"])
def test_changed_file_is_refused(unpacked: Path, name: str) -> None:
    with (unpacked / name).open("ab") as stream:
        stream.write(b"\n")
    done = run_sh(unpacked, "--rehearse")
    assert done.returncode == 2
    assert "error VP641" in done.stderr
    assert name in done.stderr
    assert "cause its sha256" in done.stderr
    assert "next" in done.stderr
    assert not (unpacked / "out-rehearsal").exists()


def test_missing_foreign_and_linked_files_are_refused(unpacked: Path) -> None:
    (unpacked / "lib" / "vitprune" / "sneaked.py").write_text("")
    with pytest.raises(entry.Refused, match="VP642"):
        entry.verify(unpacked)
    (unpacked / "lib" / "vitprune" / "sneaked.py").unlink()
    entry.verify(unpacked)
    (unpacked / "bundle" / "samples.npz").rename(unpacked / "moved")
    with pytest.raises(entry.Refused, match="VP641"):
        entry.verify(unpacked)
    (unpacked / "bundle" / "samples.npz").symlink_to(unpacked / "moved")
    with pytest.raises(entry.Refused, match="VP641"):
        entry.verify(unpacked)


def test_changed_manifest_is_refused(unpacked: Path) -> None:
    path = unpacked / "package.json"
    manifest = json.loads(path.read_text())
    manifest["job"]["gates"]["logits_max_abs"] = 1e9
    path.write_text(json.dumps(manifest))
    with pytest.raises(entry.Refused, match="VP641"):
        entry.verify(unpacked)
    path.write_text("{")
    with pytest.raises(entry.Refused, match="VP641"):
        entry.verify(unpacked)
    path.write_text("{}")
    with pytest.raises(entry.Refused, match="VP640"):
        entry.verify(unpacked)
    path.unlink()
    with pytest.raises(entry.Refused, match="VP640"):
        entry.verify(unpacked)


def test_newer_schema_is_refused(unpacked: Path) -> None:
    path = unpacked / "package.json"
    manifest = json.loads(path.read_text())
    manifest["schema_version"] = 99
    path.write_text(json.dumps(manifest))
    with pytest.raises(entry.Refused, match="VP643"):
        entry.verify(unpacked)


@pytest.mark.parametrize(("wanted", "here"), [("aarch64", "x86_64"), ("x86_64", "aarch64")])
def test_other_processor_is_refused_both_ways(unpacked: Path, wanted: str, here: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = unpacked / "package.json"
    manifest = json.loads(path.read_text())
    manifest["machine"] = wanted
    manifest["sha256"] = entry.seal(manifest)
    path.write_text(json.dumps(manifest))
    assert entry.main(unpacked, [], machine=here) == 2
    said = capsys.readouterr().err
    assert "error VP644" in said
    assert f"processor {wanted} and this machine is {here}" in said
    assert "--rehearse" in said


def test_hashes_alone(unpacked: Path) -> None:
    done = run_sh(unpacked, "--verify")
    assert (done.returncode, "files verified" in done.stderr) == (0, True)


def test_no_python(unpacked: Path) -> None:
    done = run_sh(unpacked, "--rehearse", VITPRUNE_PYTHON="/no such/python 3")
    assert done.returncode == 2
    assert "error VP237" in done.stderr
    assert "/no such/python 3" in done.stderr


def test_manifest_of_a_tar(bundle: Bundle, tmp_path: Path) -> None:
    target = targets.load(TARGET)
    tar = tmp_path / "p.tar"
    written = write_package(bundle, target, job_of(bundle, target, (1, 4, 8), 512), tar)
    assert read_manifest(tar) == written
    assert written["job"]["target"]["workspace_mib"] == 512
    tar.write_bytes(b"nothing")
    with pytest.raises(LoadError, match="VP640"):
        read_manifest(tar)


def test_targets_and_devices(tmp_path: Path) -> None:
    orin, thor = targets.load("jetson-orin"), targets.load("jetson-thor")
    assert (machine_of(orin), capability_of(orin), capability_of(thor)) == ("aarch64", "87", "110")
    assert not is_device(orin, tmp_path, "aarch64")
    tree = tmp_path / "proc" / "device-tree"
    tree.mkdir(parents=True)
    (tree / "compatible").write_bytes(b"nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0")
    assert is_device(orin, tmp_path, "aarch64")
    assert not is_device(orin, tmp_path, "x86_64")
    assert not is_device(thor, tmp_path, "aarch64")
    assert why_no_device(orin, tmp_path, "x86_64") == "the device is aarch64, this machine is x86_64"
    assert "Orin" in why_no_device(thor, tmp_path, "aarch64")
