"""A slice of the mutations and of the kills; the whole: python tests/fuzz/run.py --cases 3000, python tests/fuzz/kill.py --times 60."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
def test_a_slice_of_the_mutations_has_no_finding() -> None:
    """In a process of its own: it forks, and must not have a runtime started by other tests."""
    command = [sys.executable, str(HERE / "run.py"), "--cases", "120", "--first", "100000", "--seconds", "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    result = json.loads(done.stdout)
    assert result["cases"] > 0
    assert done.returncode == 0, result["seeds"]


@pytest.mark.slow
def test_three_kills_lose_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "kill.py"), "--times", "3"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_findings_are_found() -> None:
    """The driver sees what it is there to see: each kind of finding, planted."""
    code = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
import dataclasses, pathlib, tempfile
import mutations, run, worker
root = pathlib.Path(tempfile.mkdtemp()); place = root / "case"
for name in ("in", "work", "outside"): (place / name).mkdir(parents=True)
(place / "outside" / "precious.txt").write_text("precious")
before = run.snapshot(root)
fine = worker.Outcome(2, "VP601", False, 1, 0.1, "")
case = mutations.Case("kind", "what", ["validate"], corrupt=True)
seen = lambda **change: run.findings(case, dataclasses.replace(fine, **change), place, before)
assert seen() == []
assert seen(exit=0) == ["exit 0 on corruption"]
assert seen(exit="hang") == ["hang"]
assert seen(exit=-9) == ["signal"]
assert seen(traceback=True) == ["traceback"]
assert seen(code="VP198") == ["VP198"]
assert seen(memory=5 << 30) == ["memory"]
(place / "in").parent.joinpath("CANARY").touch()
assert seen() == ["code executed"]
(place / "outside" / "new").touch()
assert seen() == ["write outside", "code executed"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
