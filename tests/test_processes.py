"""Processes: what a command does when it is interrupted, killed, starved, or fed what is no file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vitprune import cli, console, engines, targets
from vitprune.bundle import folder_in_place, open_bundle, write_atomic
from vitprune.engines import building
from vitprune.errors import RecipeError, TargetError
from vitprune.recipe import Recipe
from vitprune.support import interrupts, processes, temporary
from vitprune.support.yaml_text import parse

ROOT = str(Path(engines.__file__).parents[2])
ENVIRONMENT = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr(console, "settings", console.Settings(console=Console(stderr=True, highlight=False, width=300)))


def failing(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, str]:
    code = cli.run([*map(str, arguments), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 2, document
    assert document["error"]["code"] != "VP198"
    return dict(document["error"])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    file.write_text(
        yaml.safe_dump(
            {
                "model": {"name": "vit_tiny_patch16_224", "args": sizes},
                "prune": {"method": "ats", "stages": [1], "num_samples": 8},
            }
        )
    )
    return file


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 5000, "a: 1\na: 2", "? [x]\n: y", "a: !!int x", "a: !!timestamp 2024-13-45", "a: &x [*x]", "a: !!python/name:os.system",
     "\n".join([f"k0: &k0 {['x'] * 9}", *(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]" for n in range(1, 9))]),
     "b0: &b0 {x: 1}\n" + "\n".join(f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 9)}]}}" for n in range(1, 9)), "a" * (2 << 20)],
)  # fmt: skip
def test_yaml_that_is_none_or_swells_is_refused_at_once(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(yaml.YAMLError):
        parse(text)
    assert time.monotonic() - began < 10


def test_dates_are_text_and_anchors_work() -> None:
    assert parse("a: 2024-13-45\nb: 2024-01-02\nbase: &x {k: 1}\nc: {<<: *x, k: 2}") == {
        "a": "2024-13-45", "b": "2024-01-02", "base": {"k": 1}, "c": {"k": 2},
    }  # fmt: skip


def test_pipes_are_not_waited_for(tmp_path: Path, recipe: Path, bundle_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    with pytest.raises(RecipeError, match="VP101"):
        Recipe.load(str(pipe))
    with pytest.raises(TargetError, match="VP203"):
        targets.load(str(pipe))
    assert failing(capsys, "validate", bundle_copy, "--data", pipe)["code"] == "VP194"
    assert failing(capsys, "rewrite", pipe, "-r", recipe, "-o", tmp_path / "out")["code"] == "VP194"
    for name in ("samples.npz", "recipe.yaml", "model.onnx"):
        kept = (bundle_copy / name).read_bytes()
        (bundle_copy / name).unlink()
        os.mkfifo(bundle_copy / name)
        assert failing(capsys, "inspect", bundle_copy)["code"] == "VP601"
        (bundle_copy / name).unlink()
        (bundle_copy / name).write_bytes(kept)


def test_an_empty_npz_is_not_an_interrupt(tmp_path: Path, made_bundle: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.npz").write_bytes(b"")
    assert failing(capsys, "validate", made_bundle.path, "--data", tmp_path / "empty.npz")["code"] in ("VP607", "VP621")


@pytest.mark.parametrize("text", ["inf", "nan", "-1", "0", "1e300"])
def test_a_timeout_is_a_time(bundle_copy: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    error = failing(capsys, "build-engine", bundle_copy, "--target", "onnxruntime-cpu", "--timeout", text)
    assert error["code"] in ("VP192", "VP194")
    with pytest.raises(RecipeError, match="VP192"):
        building.run_child({}, print, float(text))
    from vitprune.device.entry import arguments

    with pytest.raises(SystemExit):
        arguments(["--timeout", text])


@pytest.mark.parametrize(
    "options", [["-o", "[/bold]"], ["-o", "x" * 300], ["-o", "a/" * 3000], ["-o", "\x1b[31m"], ["--set", "graph.batch=\u00b2"]]
)
def test_odd_words_on_the_command_line(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = cli.run(
        ["rewrite", "nowhere.onnx", "-r", str(recipe), *(options if "-o" in options else ["-o", "out", *options]), "--json"]
    )
    shown = capsys.readouterr()
    assert code == 2
    assert "VP198" not in shown.out
    assert "\x1b" not in shown.err


@pytest.mark.parametrize("where", ["closed pipe", "full disk"])
def test_output_that_cannot_be_written_is_no_failed_gate(where: str) -> None:
    command = [sys.executable, "-m", "vitprune", "methods", "--json"]
    if where == "full disk":
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=60, check=False
            )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=60, check=False)
    os.close(write)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def _signals_count() -> None:
    """In a child: signals that nohup, or a shell in the background, let it ignore mean what they mean on a terminal."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("after", [0.25, 1.2])
def test_a_signal_during_imports_ends_at_once_and_quietly(
    recipe: Path, tmp_path: Path, number: signal.Signals, after: float
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "vitprune", "export", "--no-pretrained", "-r", str(recipe), "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, preexec_fn=_signals_count,
    )  # fmt: skip
    time.sleep(after)
    ready = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(next(line for line in ready.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    while not caught >> (signal.SIGHUP - 1) & 1 and process.poll() is None:  # a loaded machine: Python itself is still starting
        time.sleep(0.05)
        ready = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(next(line for line in ready.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert time.monotonic() - began < 15
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_signal_inside_an_import_leaves_without_unwinding(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(interrupts.os, "_exit", left.append)

    class Code:
        co_filename = "<frozen importlib._bootstrap>"

    class Frame:
        f_code, f_back = Code, None

    with pytest.raises(KeyboardInterrupt):
        interrupts.arrived(signal.SIGINT, Frame)  # type: ignore[arg-type]
    assert left == [130]
    with pytest.raises(KeyboardInterrupt):
        interrupts.arrived(signal.SIGINT, None)
    assert left == [130]


def test_the_builder_dies_with_its_parent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model")
    request = {"backend": "onnxruntime", "model": str(tmp_path / "model"), "output": "e", "log": "l", "batch": [1, 1, 1]}
    code = f"from vitprune.engines.building import run_child; run_child({request!r}, print, 100)"
    parent = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT)
    child = 0
    until = time.monotonic() + 60
    while not child and time.monotonic() < until:
        listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        child = int(listed[0]) if listed else 0
        time.sleep(0.05)
    assert child
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    while os.path.exists(f"/proc/{child}") and time.monotonic() < until:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}")


def test_a_child_without_its_parent_does_not_start() -> None:
    command = processes.isolated("vitprune.engines.building", "child")
    pid = os.getpid()
    orphan = [*command[:-1], command[-1].replace(f"[{pid},", f"[{pid + 1},", 1)]
    assert subprocess.run(orphan, stdin=subprocess.DEVNULL, timeout=60, check=False).returncode == 1


def test_the_next_run_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    code = (
        "import os, signal, pathlib; from vitprune.support import temporary\n"
        f"with temporary.folder(pathlib.Path({str(tmp_path)!r}) / 'out') as f, temporary.file(pathlib.Path({str(tmp_path)!r}) / 'x'):\n"
        "    (f / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, timeout=60, check=False)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".mine.tmp").write_text("of another program")
    with temporary.folder(tmp_path / "alive") as alive:
        write_atomic(tmp_path / "y", b"new")
        assert alive.is_dir(), "that of a living process stays"
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".mine.tmp", alive.name, "y"])
    assert not temporary.held


def test_the_umask_has_its_say(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"x")
        with temporary.folder(tmp_path / "under way") as new:
            mode = new.stat().st_mode & 0o777
    finally:
        os.umask(before)
    assert ((tmp_path / "file").stat().st_mode & 0o777, mode) == (0o640, 0o750)


def test_a_bundle_that_cannot_be_written_can_be_validated(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("vitprune.bundle.write_atomic", refuse)
    assert cli.run(["validate", str(bundle_copy), "--reference", "stored"]) == 0
    assert "Read-only file system" in capsys.readouterr().err


def test_calibrate_learns_first_that_its_output_has_no_place(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("vitprune.pipelines.calibrate.opened", never)
    monkeypatch.setattr("vitprune.pipelines.calibrate.require_torch", never)
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 3, 32, 32), np.uint8))
    data = ["--data", tmp_path / "images.npz", "--mean-tokens", 6]
    for place in (tmp_path / "nowhere" / "new.yaml", recipe / "new.yaml", tmp_path):
        assert failing(capsys, "calibrate", recipe, *data, "-o", place)["code"] in ("VP106", "VP107")


def test_memory_and_the_system_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def raises(error: Exception) -> Any:
        def run(*_: object, **__: object) -> None:
            raise error

        return run

    for error, code in ((MemoryError(), "VP191"), (OSError(5, "Input/output error", "x"), "VP190"), (EOFError(), "VP607")):
        monkeypatch.setattr("vitprune.support.resources.shipped_recipes", raises(error))
        monkeypatch.setattr("vitprune.cli.recipes.shipped_recipes", raises(error), raising=False)
        assert failing(capsys, "recipes")["code"] == code


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    kept = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        interrupts.install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is interrupts.arrived
    finally:
        signal.signal(signal.SIGHUP, before)
        for number, handler in kept:
            signal.signal(number, handler)


def test_a_killed_replacement_keeps_the_old_bundle(bundle_copy: Path) -> None:
    """Killed at the last moment before the new one takes its place."""
    code = (
        "import os, signal; from pathlib import Path; from vitprune.bundle_parts import output as b\n"
        "b.replace_folder = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"with b.folder_in_place(Path({str(bundle_copy)!r}), True) as new: (new / 'x').write_text('x')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    open_bundle(bundle_copy)
    with folder_in_place(bundle_copy.parent / "other") as new:
        (new / "x").write_text("x")
    assert sorted(path.name for path in bundle_copy.parent.iterdir()) == ["bundle", "other"]
