"""The TensorRT backend against the real interface's type stubs: names, arguments, types; nothing is run.

Needs the files of the PyPI package tensorrt-stubs. It is not in the `test` extra: it depends on TensorRT itself, and its folder
`tensorrt` would pass for it. `make test` fetches the files (plugins/fetch_headers.sh) and names their folder:

    VITPRUNE_TENSORRT_STUBS=folder that holds tensorrt/__init__.pyi
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import absent

ROOT = Path(__file__).resolve().parents[2]


def stubs() -> Path | None:
    named = os.environ.get("VITPRUNE_TENSORRT_STUBS")
    return Path(named) if named and (Path(named) / "tensorrt" / "__init__.pyi").is_file() else None


def mended(text: str) -> str:
    """Stubs made from pybind11 docstrings, with definitions that are no Python (an argument called `in`) made general."""
    lines = text.splitlines()
    while True:
        try:
            ast.parse("\n".join(lines))
            return "\n".join(lines) + "\n"
        except SyntaxError as error:
            start = (error.lineno or 1) - 1
            while not (found := re.match(r"(\s*)def (\w+)\(", lines[start])):
                start -= 1
            end = start + 1
            while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > len(found[1])):
                end += 1
            lines[start:end] = [f"{found[1]}def {found[2]}(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any: ..."]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pytest.importorskip("mypy")
    folder = stubs()
    if folder is None:
        absent("the files of tensorrt-stubs ($VITPRUNE_TENSORRT_STUBS, see the head of this file)")
    for name in ("tensorrt", "tensorrt_bindings"):
        if (folder / name).is_dir():
            for file in (folder / name).rglob("*.pyi"):
                place = tmp_path / file.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, place)
                place.write_text(mended(place.read_text(encoding="utf-8")), encoding="utf-8")
    return tmp_path


def complaints(path: Path, package: Path) -> list[str]:
    command = [
        sys.executable, "-m", "mypy", "--config-file", os.devnull, "--python-version", "3.11", "--ignore-missing-imports", "--no-site-packages",
        "--check-untyped-defs", "--follow-imports", "silent", "--cache-dir", str(path / "cache"), "-p", "vitprune.backends.tensorrt",
        "-p", "vitprune.backends._tensorrt",
    ]  # fmt: skip
    environment = {**os.environ, "MYPYPATH": os.pathsep.join([str(path), str(package)]), "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("vitprune") and ": error:" in line]


def test_backend_fits_the_interface(path: Path) -> None:
    assert complaints(path, ROOT / "toolchain") == []


def test_a_wrong_call_would_be_seen(path: Path, tmp_path: Path) -> None:
    """The check itself: a method that TensorRT does not have is found."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "toolchain" / "vitprune", copy / "vitprune", ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / "vitprune" / "backends" / "tensorrt.py"
    file.write_text(
        file.read_text(encoding="utf-8").replace("builder.build_serialized_network(", "builder.build_engine("), encoding="utf-8"
    )
    assert any("build_engine" in line for line in complaints(path, copy))
