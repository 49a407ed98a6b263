"""A small bundle, its device package, and a real sshd on the loopback interface."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_server import Sshd

from vitprune import targets
from vitprune.bundle import Bundle, open_bundle
from vitprune.device.package import job_of, write_package

RELAY = Path(__file__).with_name("device_relay.py")


@pytest.fixture
def bundle(made_bundle: Bundle, tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(made_bundle.path, tmp_path / "small"))


@pytest.fixture
def unpacked(bundle: Bundle, tmp_path: Path) -> Path:
    """A package for jetson-orin, unpacked elsewhere."""
    target = targets.load("jetson-orin")
    tar = tmp_path / "package.tar"
    manifest = write_package(bundle, target, job_of(bundle, target, (1, 4, 8), None), tar)
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "elsewhere", filter="data")
    return tmp_path / "elsewhere" / manifest["name"]


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    for program in ("ssh", "ssh-keygen", "rsync"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    server = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if server is None:
        pytest.skip("needs sshd (openssh-server)")
    home = tmp_path / "ssh"
    home.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    (home / "authorized").write_text((home / "user.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (home / "known").write_text(f"[127.0.0.1]:{port} {(home / 'host.pub').read_text()}")
    (home / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nPidFile none\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {home}/authorized\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f"SetEnv VITPRUNE_PYTHON={sys.executable}\n"
    )
    log = home / "log"
    process = _start([server, "-D", "-E", str(log), "-f", str(home / "sshd_config")])
    try:
        _await_port(process, port, log)
        stall, sent = home / "stall", home / "sent"
        options = [
            f"Port={port}", f"IdentityFile={home}/user", "IdentitiesOnly=yes", f"UserKnownHostsFile={home}/known",
            "StrictHostKeyChecking=yes", f"ProxyCommand={sys.executable} {RELAY} %h %p {stall} {sent}",
        ]  # fmt: skip
        folder = tmp_path / "device"
        yield Sshd(f"{getpass.getuser()}@127.0.0.1:{folder}", options, folder, stall, sent)
    finally:
        process.terminate()
        process.wait()


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start sshd; for root it wants /run/sshd, which a private mount gives it without touching the system's."""
    if os.geteuid() == 0 and not Path("/run/sshd").is_dir():
        script = 'mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
        if shutil.which("unshare") is None:
            pytest.skip("sshd for root needs /run/sshd")
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            said = log.read_text().strip().splitlines() if log.exists() else []
            pytest.skip(f"sshd does not start here: {said[-1] if said else 'it said nothing'}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    process.terminate()
    process.wait()
    pytest.skip("sshd does not answer here")
