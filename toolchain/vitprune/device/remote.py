"""One remote machine over the system's ssh and rsync; the user's ssh configuration applies."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitprune.errors import RecipeError, TargetError

DEFAULT_FOLDER = "vitprune-packages"
# A dead line is noticed after about a minute; what the user gives stands first, and ssh takes the first value it sees.
_OURS = ("ConnectTimeout=20", "ServerAliveInterval=15", "ServerAliveCountMax=4")
_BROKEN = 255


@dataclass(frozen=True)
class Remote:
    """user@host[:folder]. options: `-o` settings for ssh, such as "Port=2222"."""

    host: str
    folder: str = DEFAULT_FOLDER
    options: tuple[str, ...] = ()

    @property
    def ssh(self) -> list[str]:
        """The ssh command without host; it asks for passwords only where somebody can answer."""
        ask = () if sys.stdin.isatty() else ("BatchMode=yes",)
        return ["ssh", *(part for option in (*self.options, *ask, *_OURS) for part in ("-o", option))]

    def path(self, place: str) -> str:
        """A folder or file there, for rsync."""
        user, at, address = self.host.rpartition("@")
        return f"{user}{at}{f'[{address}]' if ':' in address else address}:{place}"


def parse_remote(text: str, options: list[str] | None = None) -> Remote:
    """Read --remote and --ssh-option.

    Raises:
        RecipeError: VP199 when either is not understood.
    """
    found = re.fullmatch(r"(?:([A-Za-z0-9._-]+)@)?(\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._-]+)(?::(.*))?", text)
    folder = (found[3] or DEFAULT_FOLDER) if found else ""
    folder = folder.removeprefix("~/").rstrip("/") or "/"
    if found is None or text.startswith("-") or found[2].startswith("-"):
        raise RecipeError(199, f"--remote '{text}' is not user@host[:folder]", next_step="--remote user@192.168.1.20:vitprune")
    if not re.fullmatch(r"[A-Za-z0-9._/-]+", folder) or folder.startswith("-"):
        raise RecipeError(
            199,
            f"--remote '{text}' names a folder that cannot be used",
            cause="letters, digits and . _ / - are taken; it is relative to the home folder there",
            next_step="--remote user@192.168.1.20:vitprune",
        )
    for option in options or []:
        if not re.fullmatch(r"[A-Za-z]+[ =].+", option) or "\n" in option:
            raise RecipeError(199, f"--ssh-option '{option}' is not NAME=VALUE", next_step="--ssh-option Port=2222")
    address = found[2].strip("[]")
    return Remote(f"{found[1]}@{address}" if found[1] else address, folder, tuple(options or ()))


def require_tools() -> None:
    """Raise TargetError VP231 unless ssh and rsync are installed here."""
    absent = [name for name in ("ssh", "rsync") if shutil.which(name) is None]
    if absent:
        raise TargetError(
            231,
            f"--remote needs {' and '.join(absent)}",
            cause="not found on PATH",
            next_step=f"sudo apt-get install {' '.join('openssh-client' if name == 'ssh' else name for name in absent)}",
        )


def run_script(
    remote: Remote, script: str, arguments: list[str], on_line: Callable[[str], None] = lambda line: None
) -> list[str]:
    """Run a shell script on the remote machine; returns its stdout's lines.

    Args:
        remote: where. script: POSIX sh. arguments: letters, digits and . _ / - = only; they become $1, $2, ...
        on_line: called with every line as it comes.

    Raises:
        TargetError: VP233 when the line breaks or cannot be opened, VP235 when the script fails.
    """
    if not all(re.fullmatch(r"[A-Za-z0-9._/=-]+", argument) for argument in arguments):
        raise ValueError(f"arguments that a remote shell would take apart: {arguments}")
    command = [*remote.ssh, remote.host, "sh", "-s", "--", *arguments]
    code, lines, complaint = _run(command, script, on_line)
    if code == _BROKEN or code < 0:
        raise broken(remote, complaint)
    if code:
        reason = complaint or (lines[-1] if lines else "it said nothing")
        raise TargetError(
            235, f"a step on {remote.host} failed", cause=reason, next_step=f"look at {remote.folder} on {remote.host}"
        )
    return lines


def copy(remote: Remote, source: str, destination: str, options: list[str], on_line: Callable[[str], None]) -> None:
    """Run rsync over ssh; what has arrived stays and is continued from the next time.

    Raises:
        TargetError: VP233 when the line breaks, VP235 when rsync fails otherwise (its message is the cause).
    """
    shell = " ".join(_quoted(part) for part in remote.ssh)
    command = ["rsync", "-e", shell, "--partial", "--info=progress2", *options, source, destination]
    code, _, complaint = _run(command, "", on_line)
    # 10, 12, 30, 35: socket, protocol stream, timeouts; 20: a signal.
    if code in (10, 12, 20, 30, 35, _BROKEN) or code < 0:
        raise broken(remote, complaint)
    if code:
        raise TargetError(235, f"rsync with {remote.host} failed", cause=complaint, next_step="see the cause, then run it again")


def broken(remote: Remote, complaint: str) -> TargetError:
    """The error of a line that could not be opened or broke."""
    return TargetError(
        233,
        f"the connection to {remote.host} failed",
        cause=complaint or "ssh said nothing",
        next_step="run the same command again: it continues where it stopped",
    )


def _run(command: list[str], text: str, on_line: Callable[[str], None]) -> tuple[int, list[str], str]:
    """Exit code, lines of stdout, telling line of stderr.

    It ends with the process itself: a helper of it (rsync's ssh on a dead line) may hold the pipes open much longer. The process
    stays in our session, where ssh can ask for a password.
    """
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[str] = []
    complaints: deque[str] = deque(maxlen=5)

    def said(line: str) -> None:
        lines.append(line)
        on_line(line)

    try:
        with contextlib.suppress(BrokenPipeError):  # it ended early; its exit code and message say why
            process.stdin.write(text.encode())
        process.stdin.close()
        with selectors.DefaultSelector() as pipes:
            pipes.register(process.stdout, selectors.EVENT_READ, _Lines(said))
            pipes.register(process.stderr, selectors.EVENT_READ, _Lines(complaints.append))
            while pipes.get_map():
                ended = process.poll() is not None
                ready = pipes.select(timeout=0.1)
                for key, _ in ready:
                    if piece := os.read(key.fd, 1 << 16):
                        key.data.feed(piece)
                    else:
                        pipes.unregister(key.fileobj)
                if ended and not ready:
                    break
        process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        process.stdout.close()
        process.stderr.close()
    return process.returncode, lines, _telling(list(complaints))


class _Lines:
    """Cuts bytes into lines; a carriage return ends one too (progress bars)."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._rest = say, b""

    def feed(self, piece: bytes) -> None:
        """Take bytes, pass on the lines that are complete and not empty."""
        *whole, self._rest = re.split(rb"[\r\n]", self._rest + piece)
        for line in whole:
            if text := line.decode("utf-8", "replace").rstrip():
                self._say(text)


def _telling(complaints: list[str]) -> str:
    """The last line of ssh itself where rsync only reports the consequence."""
    own = [line for line in complaints if not line.startswith(("rsync error:", "rsync:"))]
    return (own or complaints or [""])[-1]


def _quoted(part: str) -> str:
    """One word of rsync's -e, whose quotes are doubled inside quotes."""
    return part if re.fullmatch(r"[A-Za-z0-9._/=@%:+-]+", part) else "'" + part.replace("'", "''") + "'"


def sanitised(name: str) -> str:
    """A name made of letters that need no quoting anywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "target"


def local(path: Path, folder: bool = False) -> str:
    """A local path that rsync cannot mistake for host:path."""
    return f"{path.resolve()}{'/' if folder else ''}"
