"""What the documentation takes from the code is what the code says now."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))

import draw_architecture  # noqa: E402
import heads  # noqa: E402
from imports import Import, Layers  # noqa: E402

from vitprune import methods  # noqa: E402


def test_the_picture_is_drawn_from_the_present_imports():
    assert draw_architecture.PICTURE.read_text() == draw_architecture.picture(), "python docs/draw_architecture.py"


def test_the_picture_shows_rooms_and_leaves_out_implied_arrows():
    layers = Layers([["low"], ["middle"], ["high"]], [(name, name) for name in ("low", "middle", "high")], {}, {"low": "a & b"})
    found = [Import("high", "middle"), Import("middle", "low"), Import("high", "low")]
    assert draw_architecture.arrows(found, layers) == [("high", "middle"), ("middle", "low")]
    drawn = draw_architecture.draw(found, layers, ["low", "middle", "high"])
    assert drawn.count('class="room"') == 3
    assert "a &amp; b" in drawn
    assert drawn != draw_architecture.draw(found[1:], layers, ["low", "middle", "high"])


def test_heads_of_pages_are_as_declared():
    stale = [path.name for path, text in heads.pages().items() if not path.exists() or path.read_text() != text]
    assert not stale, f"python docs/heads.py ({', '.join(stale)})"


def test_a_head_replaces_the_old_one_and_nothing_else():
    method = methods.get("ats")
    page = heads.with_head("# Old title\n\nprose\n", method)
    assert page.endswith(f"{heads.END}\n\nprose\n")
    assert "Old title" not in page
    assert heads.with_head(page.replace("`108`", "`109`"), method) == page
    assert heads.with_head(page.replace("prose", "other prose"), method) == page.replace("prose", "other prose")
    with pytest.raises(ValueError, match="without"):
        heads.with_head(page.replace(heads.END, ""), method)
    assert "| `gate_scale` | required |" in heads.head(methods.get("avit"))


def test_the_first_screen_is_what_was_measured():
    spec = importlib.util.spec_from_file_location("first_screen", DOCS.parent / "benchmarks" / "first_screen.py")
    first_screen = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(first_screen)
    text = first_screen.README.read_text(encoding="utf-8")
    found = json.loads(first_screen.STORED.read_text(encoding="utf-8"))
    assert first_screen.written(text, found) == text, "python benchmarks/first_screen.py --stored"
    assert found["commands"] == first_screen.commands(text)
    assert text.index(first_screen.END) < text.index("\n## ")
    worse = found | {"speed": found["speed"] | {"ratio": 2.0}}
    assert first_screen.written(text, worse) != text
