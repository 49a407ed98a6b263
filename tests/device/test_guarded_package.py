"""A device package before it is trusted, and what comes back from a device."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vitprune.bundle import Bundle, open_bundle
from vitprune.device.collect import collect
from vitprune.device.entry import Refused, verify
from vitprune.errors import RecipeError, TargetError
from vitprune.support.hashing import sha256_of

MODULES = ("json", "argparse", "__future__", "platform", "contextlib", "importlib", "numpy", "sitecustomize")


def pythons() -> list[str]:
    """This interpreter, and the oldest one that packages run on where it is installed: it has no -P."""
    found = [sys.executable]
    for name in ("python3.10",):
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            found.append(path)
    return found


@pytest.mark.parametrize("python", pythons())
@pytest.mark.parametrize("place", ["package", "current folder"])
def test_nothing_that_lies_around_is_imported(unpacked: Path, tmp_path: Path, python: str, place: str) -> None:
    here = unpacked if place == "package" else tmp_path / "here"
    here.mkdir(exist_ok=True)
    for name in MODULES:
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'a').write('{name} ')\n")
    environment = {"PATH": "/usr/bin:/bin", "VITPRUNE_PYTHON": python, "PYTHONPATH": ":"}
    commands = [[str(unpacked / "run.sh"), "--verify"], [python, str(unpacked / "run.py"), "--verify"]]
    for command in commands:
        env = environment if command[0].endswith("run.sh") else {"PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert not (tmp_path / "RAN").exists(), (tmp_path / "RAN").read_text()
        assert done.returncode == (2 if place == "package" else 0), done.stderr
        assert ("VP642" in done.stderr) == (place == "package")


@pytest.mark.parametrize("name", ["json.py", "lib/extra.py", "bundle/x", "new/deep/file"])
def test_files_that_nobody_lists_are_refused_wherever_they_lie(unpacked: Path, name: str) -> None:
    verify(unpacked)
    (unpacked / "out").mkdir()
    (unpacked / "out" / "result.json").write_text("{}")
    verify(unpacked)
    (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
    (unpacked / name).write_text("x")
    with pytest.raises(Refused, match="VP642"):
        verify(unpacked)


@pytest.mark.parametrize("name", ["lib", "out", "plugin-cache"])
def test_linked_folders_are_refused(unpacked: Path, tmp_path: Path, name: str) -> None:
    if (unpacked / name).exists():
        shutil.move(unpacked / name, tmp_path / "aside")
    else:
        (tmp_path / "aside").mkdir()
    (unpacked / name).symlink_to(tmp_path / "aside")
    with pytest.raises(Refused):
        verify(unpacked)


def output(bundle: Bundle, **changes: object) -> Path:
    """A run's output as it was copied."""
    incoming = bundle.path / "engines" / ".jetson-orin.incoming"
    (incoming / "engine").mkdir(parents=True)
    (incoming / "engine" / "model.engine").write_bytes(b"engine")
    (incoming / "validate.json").write_text("{}")
    files = {name: sha256_of(incoming / name) for name in ("engine/model.engine", "validate.json")}
    result = {"mode": "device", "exit_code": 0, "status": "passed", "package_sha256": "p", "files": files, **changes}
    (incoming / "result.json").write_text(json.dumps(result))
    return incoming


@pytest.mark.parametrize("planted", ["engine/libvitprune_plugin.so", "extra.json", "engine/link"])
def test_what_the_run_did_not_write_is_not_taken(bundle: Bundle, planted: str) -> None:
    incoming = output(bundle)
    if planted.endswith("link"):
        (incoming / planted).symlink_to("/etc/passwd")
    else:
        (incoming / planted).write_text("planted")
    with pytest.raises(TargetError, match="VP238") as error:
        collect(bundle, "jetson-orin", incoming, {"sha256": "p"})
    assert planted in error.value.cause
    assert not bundle.engine_path("jetson-orin").exists()


@pytest.mark.parametrize("changes", [{"mode": "x"}, {"exit_code": "0"}, {"files": []}, {"files": {"../x": "0"}}])
def test_a_result_of_another_form_is_refused(bundle: Bundle, changes: dict[str, object]) -> None:
    with pytest.raises(TargetError, match="VP238"):
        collect(bundle, "jetson-orin", output(bundle, **changes), {"sha256": "p"})


def test_reports_go_into_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (bundle.path / "reports" / "jetson-orin").symlink_to(tmp_path / "outside")
    with pytest.raises(RecipeError, match="VP107"):
        collect(bundle, "jetson-orin", output(bundle), {"sha256": "p"})
    assert not list((tmp_path / "outside").iterdir())
    open_bundle(bundle.path)
