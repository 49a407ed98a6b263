"""--remote over a real sshd on the loopback interface, in rehearsal mode, with connections that are cut in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from device_server import Sshd

from vitprune import targets
from vitprune.bundle import Bundle
from vitprune.device.build import package_engine, run_remotely
from vitprune.device.remote import parse_remote, run_script
from vitprune.device.remote_run import run_package
from vitprune.errors import RecipeError, TargetError
from vitprune.pipelines import open_bundle

TARGET = "jetson-orin"


def cli(bundle: Path, sshd: Sshd, *more: str) -> list[str]:
    head = [sys.executable, "-m", "vitprune", "build-engine", str(bundle), "-t", TARGET, "--no-trials", "--json"]
    return [*head, *sshd.cli_options(), *more]


def run(command: list[str]) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


def children(pid: int) -> list[tuple[int, str]]:
    """(pid, program) of the direct children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, rest = (entry / "stat").read_text().rsplit(")", 1)
            except OSError:
                continue
            if int(rest.split()[1]) == pid:
                found.append((int(entry.name), name.split("(", 1)[1]))
    return found


def test_rehearsal_there_brings_the_reports_back_and_is_not_repeated(bundle: Bundle, sshd: Sshd) -> None:
    code, document, complaints = run(cli(bundle.path, sshd, "--rehearse"))
    assert code == 0, complaints
    assert document["status"] == "rehearsed, engine to be built on the device"
    assert document["result"]["status"] == "passed"
    assert document["result"]["repeated"] is False
    reports = bundle.path / "reports" / f"{TARGET}-rehearsal"
    assert sorted(path.name for path in reports.iterdir()) == [
        "benchmark.json",
        "environment.json",
        "result.json",
        "validate.json",
    ]
    assert [path.name for path in (bundle.path / "engines").iterdir()] == [TARGET]
    assert not list((bundle.path / "engines").rglob("*.engine"))
    open_bundle(bundle.path)

    code, document, _ = run(cli(bundle.path, sshd, "--rehearse"))
    assert code == 0
    assert document["result"]["repeated"] is True
    assert sshd.runs() == 1


def test_upload_cut_in_the_middle_is_continued(bundle: Bundle, sshd: Sshd) -> None:
    """The transfer stalls after 700 kB; rsync is killed then. The second call sends only what is missing."""
    sshd.stall.write_text("700000")
    process = subprocess.Popen(cli(bundle.path, sshd, "--rehearse"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    partial = wait_for_growth(sshd.folder)
    rsync = [pid for pid, name in children(process.pid) if name == "rsync"]
    assert rsync
    os.kill(rsync[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    error = json.loads(output)["error"]
    assert error["code"] == "VP233"
    assert "continues" in error["next_step"]
    assert partial > 300_000
    assert not (bundle.path / "reports" / f"{TARGET}-rehearsal").exists()
    assert not list(sshd.folder.glob("*/package.tar"))
    open_bundle(bundle.path)

    sshd.stall.unlink()
    sshd.sent.unlink(missing_ok=True)
    code, document, complaints = run(cli(bundle.path, sshd, "--rehearse"))
    assert code == 0, complaints
    upload = max(int(line) for line in sshd.sent.read_text().split())
    assert upload < document["package"]["package_bytes"] - 0.8 * partial
    assert sshd.runs() == 1


def wait_for_growth(folder: Path) -> int:
    """Size of the partial file once it has stopped growing."""
    last, still = 0, 0
    for _ in range(600):
        size = sum(path.stat().st_size for path in folder.glob("*/package.tar.part"))
        still = still + 1 if size == last and size else 0
        if still >= 5:
            return size
        last = size
        time.sleep(0.1)
    raise AssertionError("nothing arrived")


def test_run_goes_on_when_the_line_breaks(bundle: Bundle, sshd: Sshd) -> None:
    target = targets.load(TARGET)
    package = Path(package_engine(bundle, targets.choose(target), trials=False)["path"])
    remote = parse_remote(sshd.place, sshd.options)
    killed = []

    def cut(text: str) -> None:
        if text.startswith("validating") and not killed:
            killed.extend(pid for pid, name in children(os.getpid()) if name == "ssh")
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(TargetError) as caught:
        run_remotely(bundle, target, package, remote, rehearse=True, report=cut)
    assert caught.value.code == "VP233"
    result = run_remotely(bundle, target, package, remote, rehearse=True)
    assert result["status"] == "passed"
    assert sshd.runs() == 1


def test_fetch_cut_leaves_nothing_half_copied(bundle: Bundle, sshd: Sshd) -> None:
    """The line breaks just before the results come: the bundle keeps its package alone, the next call only fetches."""
    target = targets.load(TARGET)
    package = Path(package_engine(bundle, targets.choose(target), trials=False)["path"])
    before = {path.relative_to(bundle.path) for path in bundle.path.rglob("*")}
    remote = parse_remote(sshd.place, sshd.options)

    def cut(text: str) -> None:
        if text.startswith("fetching"):
            sshd.stall.write_text("0")
            timer(os.getpid())

    with pytest.raises(TargetError, match="VP233"):
        run_remotely(bundle, target, package, remote, rehearse=True, report=cut)
    after = {path.relative_to(bundle.path) for path in bundle.path.rglob("*")}
    assert {path for path in after - before if ".incoming" not in path.as_posix()} == set()
    open_bundle(bundle.path)
    sshd.stall.unlink()
    result = run_remotely(bundle, target, package, remote, rehearse=True)
    assert result["repeated"] is True
    assert not list((bundle.path / "engines").glob(".*"))


def timer(parent: int) -> None:
    """Kill rsync as soon as it is there."""
    import threading

    def kill() -> None:
        for _ in range(200):
            found = [pid for pid, name in children(parent) if name == "rsync"]
            if found:
                time.sleep(0.3)
                os.kill(found[0], signal.SIGKILL)
                return
            time.sleep(0.02)

    threading.Thread(target=kill, daemon=True).start()


def test_other_processor_is_refused_before_anything_is_sent(bundle: Bundle, sshd: Sshd) -> None:
    if os.uname().machine == "aarch64":
        pytest.skip("this machine has the target's processor")
    code, document, _ = run(cli(bundle.path, sshd))
    assert code == 2
    assert document["error"]["code"] == "VP234"
    assert "aarch64" in document["error"]["cause"]
    assert not list(sshd.folder.glob("*/package.tar*"))


def test_error_of_the_run_is_the_cause_and_it_is_tried_again(bundle: Bundle, sshd: Sshd) -> None:
    """A run that could not be made (here an option its run.sh does not know) is no result: the next call starts it anew."""
    target = targets.load(TARGET)
    package = Path(package_engine(bundle, targets.choose(target), trials=False)["path"])
    remote = parse_remote(sshd.place, sshd.options)
    for attempt in (1, 2):
        with pytest.raises(TargetError) as caught:
            run_package(
                remote, package, package.stem, TARGET, "", bundle.path / "in", rehearse=True, options=("--no-such-option",)
            )
        assert caught.value.code == "VP235"
        assert "exit code 2" in caught.value.cause
        assert sshd.runs() == attempt


def test_nobody_listens(bundle: Bundle, tmp_path: Path) -> None:
    if not any(os.access(Path(folder) / "ssh", os.X_OK) for folder in os.environ["PATH"].split(":")):
        pytest.skip("needs ssh")
    remote = parse_remote("127.0.0.1:x", ["Port=1", "ConnectTimeout=2"])
    with pytest.raises(TargetError) as caught:
        run_script(remote, "true", [])
    assert caught.value.code == "VP233"
    assert "refused" in caught.value.cause


@pytest.mark.parametrize("text", ["", "-oProxyCommand=x", "a b", "user@", "host:dir with space", "host:a;b", "a@-x"])
def test_unusable_places(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_remote(text)
    assert caught.value.code == "VP199"


@pytest.mark.parametrize("option", ["-p 22", "Port", "=2", "Port="])
def test_unusable_options(option: str) -> None:
    with pytest.raises(RecipeError):
        parse_remote("host", [option])


def test_places() -> None:
    remote = parse_remote("me@[fe80::1]:~/jobs/")
    assert (remote.host, remote.folder) == ("me@fe80::1", "jobs")
    assert remote.path("jobs/x") == "me@[fe80::1]:jobs/x"
    assert parse_remote("orin").path("a") == "orin:a"
    assert parse_remote("orin", ["Port=2222"]).ssh[:3] == ["ssh", "-o", "Port=2222"]
