"""Pictures of tokens: merged groups, the depth of patches, the exits of a cascade; and what sections a bundle's report has."""

from __future__ import annotations

import numpy as np

from vitprune.reports import tokens
from vitprune.reports.page import page
from vitprune.reports.pictures import with_depth
from vitprune.reports.sections import of_bundles


def test_groups_are_painted_where_the_model_is_at_hand(made, monkeypatch):
    (part,) = tokens.sections("b", made["tome"])
    assert "mean colour" in part.note
    assert len(part.pictures[0]) == 1 + 4
    from vitprune.backends import torch as torch_backend

    monkeypatch.setattr(torch_backend, "missing", lambda: "no PyTorch")
    (other,) = tokens.sections("b", made["tome"])
    assert "where the PyTorch model is at hand" in other.note
    assert other.pictures[0][1][1] != part.pictures[0][1][1]  # dark patches instead of mean colours


def test_depth_is_where_a_patch_was_last_seen(made):
    (part,) = tokens.sections("b", made["avit"])
    assert part.pictures[0][-1][0].startswith("depth, mean")
    kept = [np.array([0, 1, 2, -1]), np.array([0, 1, -1, -1]), np.array([0, -1, -1, -1])]
    assert tokens._depths(kept, 4).tolist() == [3, 2, 1, 0]
    pixels = np.full((4, 4, 3), 200, np.uint8)
    shown = with_depth(pixels, np.array([1.0, 0.5, 0.25, 0.0]), (2, 2))
    assert (shown[:2, :2] == 200).all()
    assert shown[0, 0, 0] > shown[0, 2, 0] > shown[2, 0, 0] > shown[2, 2, 0]


def test_exits_of_a_cascade(cascade):
    (part,) = tokens.sections("b", cascade)
    assert part.rows == (("1", "3", "75.0 %"), ("2", "0", "0.0 %"), ("3", "1", "25.0 %"))
    assert [len(row) for row in part.pictures] == [3, 1]


def test_a_bundles_report_has_all_its_sections(made):
    from vitprune.pipelines import validate

    result = validate(made["tome"], reference="stored", samples=4).document()
    report = of_bundles({"b": made["tome"]}, {"b": result})
    titles = [part.title for part in report.sections]
    assert titles[0] == "Parity"
    assert {"Tokens", "Facts", "Precision", "Provenance", "Tokens in pictures: b", "MACs per image"} <= set(titles)
    assert made["tome"].manifest.files["model.onnx"] in page(report)
