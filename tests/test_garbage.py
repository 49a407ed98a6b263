"""When Python searches for garbage: not while modules are imported and models traced, and nowhere else than before."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from vitprune.support import garbage


@pytest.fixture(autouse=True)
def _searching() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()
    gc.unfreeze()


def test_the_search_goes_on_afterwards_also_behind_an_error() -> None:
    with garbage.unsearched():
        assert not gc.isenabled()
        with garbage.unsearched():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), garbage.unsearched():
        raise KeyError
    assert gc.isenabled()


def test_who_does_not_search_is_not_made_to() -> None:
    gc.disable()
    with garbage.unsearched():
        pass
    assert not gc.isenabled()


def test_only_a_process_of_its_own_settles_what_is_never_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.unfreeze()
    with garbage.imports():
        pass
    garbage.left_to_the_system()
    assert gc.get_freeze_count() == 0
    monkeypatch.setattr(garbage, "_ours", True)
    with garbage.imports():
        pass
    assert gc.get_freeze_count() > 0
    gc.unfreeze()
    garbage.left_to_the_system()
    assert gc.get_freeze_count() > 0


LAST = """
import gc, sys
from vitprune import cli
sys.argv = ["vitprune", *sys.argv[1:]]
try:
    cli.main()
finally:
    heavy = {"torch", "timm", "onnx", "onnxruntime", "numpy"} & {*sys.modules}
    print(f"frozen={gc.get_freeze_count() > 0} heavy={sorted(heavy)}", file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["methods"], ["recipes"]])
def test_the_command_line_starts_without_what_it_does_not_need_and_ends_without_a_search(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LAST, *arguments], capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr.splitlines()[-1] == "frozen=True heavy=[]"
