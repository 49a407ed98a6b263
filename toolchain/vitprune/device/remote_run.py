"""A package on a remote device: up, run, back. Each phase leaves something to continue from.

Layout there, in <folder>/<target>-<key>/ (the key depends on the package's bytes and the options of the run):

    package.tar.part   what has arrived; renamed to package.tar when its sha256 is right
    unpacked/          the package; its out/ holds the results
    pid run.log        of the run, which goes on when the line breaks
    exit               exit code of a finished run: 0 and 1 (a gate failed) are results, 2 is tried again
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.device.driver import OUTPUTS
from vitprune.device.remote import Remote, copy, local, run_script, sanitised
from vitprune.errors import TargetError
from vitprune.support.hashing import sha256_of

_LOOK = """
set -eu
mkdir -p -- "$1"; cd -- "$1"
alive() { [ -f pid ] && tr '\\0' ' ' < "/proc/$(cat pid)/cmdline" 2>/dev/null | grep -q "vitprune-$2"; }
echo "machine=$(uname -m)"
if command -v rsync >/dev/null; then echo rsync=yes; else echo rsync=no; fi
if [ -f exit ]; then echo "state=finished"; echo "exit=$(cat exit)"
elif alive "$@"; then echo "state=running"
elif [ -f package.tar ]; then echo "state=uploaded"
elif [ -f package.tar.part ]; then echo "state=partial"; echo "bytes=$(wc -c < package.tar.part)"
else echo "state=new"; fi
"""

_ACCEPT = """
set -eu
cd -- "$1"
found=$(sha256sum package.tar.part | cut -c1-64)
if [ "$found" != "$2" ]; then rm -f package.tar.part; echo "the package arrived with another sha256; it was removed" >&2; exit 3; fi
mv package.tar.part package.tar
"""

_START = """
set -eu
cd -- "$1"; key=$2; folder=$3; shift 3
rm -rf unpacked unpacking exit pid run.log
mkdir unpacking
tar -xf package.tar -C unpacking
mv unpacking unpacked
echo started >> starts
setsid nohup sh -c '
  echo $$ > pid.new; mv pid.new pid
  folder=$1; shift
  sh "unpacked/$folder/run.sh" "$@" > run.log 2>&1 < /dev/null
  echo $? > exit.new; mv exit.new exit
' "vitprune-$key" "$folder" "$@" > /dev/null 2>&1 < /dev/null &
n=0
while [ ! -f pid ] && [ ! -f exit ] && [ $n -lt 100 ]; do n=$((n + 1)); sleep 0.1; done
[ -f pid ]
"""

_FOLLOW = """
set -eu
cd -- "$1"
n=0; while [ ! -f run.log ] && [ $n -lt 50 ]; do n=$((n + 1)); sleep 0.1; done
tail -n +1 -f --pid="$(cat pid)" run.log
n=0; while [ ! -f exit ] && [ $n -lt 50 ]; do n=$((n + 1)); sleep 0.1; done
if [ -f exit ]; then echo "exit=$(cat exit)"; else echo "the run ended without an exit code (was the device restarted?)" >&2; exit 4; fi
"""


@dataclass(frozen=True)
class RemoteResult:
    """A finished run: its exit code (0 or 1), where its output was copied to, whether it had finished before this call."""

    exit_code: int
    folder: Path
    repeated: bool


def run_package(
    remote: Remote,
    package: Path,
    name: str,
    target: str,
    machine: str,
    incoming: Path,
    *,
    rehearse: bool = False,
    options: tuple[str, ...] = (),
    again: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> RemoteResult:
    """Copy a package to a device, run it there, fetch its output.

    Args:
        remote: where. package: the tar. name: the folder inside it. target: its target's name. machine: what the package is for.
        incoming: folder for the output; it stays when the line breaks, so that the next call continues.
        rehearse: run the rehearsal. options: further options of run.sh.
        again: run anew even if a run has finished.
        report: called with progress texts.

    Raises:
        TargetError: VP231 no rsync there, VP233 the line broke, VP234 another kind of machine, VP235 a step failed.
    """
    given = (*(("--rehearse",) if rehearse else ()), *options)
    digest = sha256_of(package)
    key = hashlib.sha256("\n".join([digest, *given]).encode()).hexdigest()[:16]
    place = f"{remote.folder}/{sanitised(target)}-{key}"
    report("looking at the device")
    seen = _facts(run_script(remote, _LOOK, [place, key]))
    _check_device(remote, seen, machine, rehearse)
    state = seen["state"]
    if state in ("new", "partial"):
        _upload(remote, package, place, digest, int(seen.get("bytes", 0)), report)
    finished = state == "finished" and seen["exit"] in ("0", "1") and not again
    if not finished and state != "running":
        report("starting")
        run_script(remote, _START, [place, key, name, *given])
    log: list[str] = []
    code = int(seen["exit"]) if finished else _follow(remote, place, log, report)
    if code not in (0, 1):
        raise _failed(remote, code, log)
    _fetch(remote, f"{place}/unpacked/{name}/{OUTPUTS[rehearse]}/", incoming, report)
    return RemoteResult(code, incoming, finished)


def _facts(lines: list[str]) -> dict[str, str]:
    """name=value lines; login banners and the like fall out."""
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _check_device(remote: Remote, seen: dict[str, str], machine: str, rehearse: bool) -> None:
    if seen.get("rsync") != "yes":
        raise TargetError(
            231, f"{remote.host} has no rsync", cause="packages are copied with it", next_step="sudo apt-get install rsync, there"
        )
    if not rehearse and machine not in ("", seen["machine"]):
        raise TargetError(
            234,
            f"{remote.host} is not a device of this target",
            cause=f"the target is {machine}, {remote.host} is {seen['machine']}; an engine built there would not run on the target",
            next_step="name the device itself, or add --rehearse to try the package there",
        )


def _upload(remote: Remote, package: Path, place: str, digest: str, there: int, report: Callable[[str], None]) -> None:
    total = package.stat().st_size
    report(f"copying {total / 2**20:.1f} MiB" + (f", {there / 2**20:.1f} MiB are there" if there else ""))

    def progress(line: str) -> None:
        report(f"copying: {' '.join(line.split()[:3])}")

    # In place: whatever kills the transfer, what has arrived is in that file, and rsync sends only the rest.
    copy(remote, local(package), remote.path(f"{place}/package.tar.part"), ["--inplace"], progress)
    run_script(remote, _ACCEPT, [place, digest])


def _follow(remote: Remote, place: str, log: list[str], report: Callable[[str], None]) -> int:
    """Show the run's log until it ends; returns its exit code."""

    def heard(line: str) -> None:
        log.append(line)
        report(line)

    facts: dict[str, Any] = _facts(run_script(remote, _FOLLOW, [place], heard)[-1:])
    return int(facts["exit"])


def _failed(remote: Remote, code: int, log: list[str]) -> TargetError:
    """The run's own error, which its log shows as the command line does."""
    error = next((line.removeprefix("error ") for line in reversed(log) if line.startswith("error VP")), f"exit code {code}")
    cause = next((line.split(None, 1)[1] for line in reversed(log) if line.startswith("  cause ")), "")
    step = next((line.split(None, 1)[1] for line in reversed(log) if line.startswith("  next ")), "")
    return TargetError(
        235,
        f"the package could not run on {remote.host}",
        cause=f"{error}{': ' if cause else ''}{cause}",
        next_step=step or "see the lines above",
    )


def _fetch(remote: Remote, source: str, incoming: Path, report: Callable[[str], None]) -> None:
    report("fetching the results")
    incoming.mkdir(parents=True, exist_ok=True)
    options = ["--recursive", "--times", "--delete", "--partial-dir=.partial"]
    copy(
        remote,
        remote.path(source),
        local(incoming, folder=True),
        options,
        lambda line: report(f"fetching: {' '.join(line.split()[:3])}"),
    )
