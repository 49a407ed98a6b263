"""benchmarks/official.py and plain_export.py: what they refuse, and that they notice answers that are not the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import official  # noqa: E402
import plain_export  # noqa: E402
import plain_models  # noqa: E402
import speed  # noqa: E402

import vitprune  # noqa: E402
from helpers import images, script, tiny  # noqa: E402

report = script(BENCHMARKS / "report.py")

LOGITS = np.array([[1.0, 3.0, 2.0], [0.0, 1.0, 5.0]], np.float32)
KEPT = [np.array([[0, 1, -1], [0, 1, 2]])]


def test_disagreements_are_noticed() -> None:
    assert official.disagreement((LOGITS, [[2, 3]]), LOGITS + 1e-4, KEPT) == ""
    assert "logits differ" in official.disagreement((LOGITS, []), LOGITS + 0.1, KEPT)
    assert "tokens differ" in official.disagreement((LOGITS, [[3, 3]]), LOGITS, KEPT)
    close = np.array([[3.0, 3.001, 0]], np.float32)
    assert official.disagreement((close, []), close[:, [1, 0, 2]], []) == "another top-1"


def test_only_the_last_sites_are_held_against_a_code_that_tells_no_more() -> None:
    assert official.disagreement((LOGITS, [[2, 3]]), LOGITS, [np.zeros((2, 9)), *KEPT]) == ""


def test_a_missing_folder_is_a_row(tmp_path: Path) -> None:
    row = official.measure("tome", tmp_path, 1, 3)
    assert row["not_run"] == "there is no folder ToMe in --source"
    assert "not run: there is no folder ToMe" in "\n".join(report.official(stored(tmp_path, [row])))


def stored(folder: Path, rows: list[dict[str, Any]]) -> Path:
    import json

    machine = {"torch": "2", "onnxruntime": "1"}
    (folder / "rows.json").write_text(json.dumps({"model": "m", "machine": machine, "rows": rows}))
    return folder / "rows.json"


def test_imports_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("import gone\nVALUE = gone.VALUE\n")
    mine = sys.modules["helpers"]
    path, stand_in = list(sys.path), official.stand_in("gone", VALUE=3)
    with official.importing(tmp_path, (), {"gone": stand_in, "helpers": official.stand_in("helpers")}):
        del sys.modules["helpers"]
        assert __import__("helpers").VALUE == 3
    assert sys.modules["helpers"] is mine
    assert sys.path == path
    assert "gone" not in sys.modules


def test_ratios_are_of_rounds() -> None:
    found = official.ratios({"a": [2.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}, "a", "b")
    assert found["median"] == 2.0


def test_an_interleaved_run_counts_every_round_but_the_first() -> None:
    seen: list[str] = []
    times = speed.taking_turns({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 4)
    assert sorted(seen) == ["a"] * 5 + ["b"] * 5
    assert [len(values) for values in times.values()] == [4, 4]


def test_goals() -> None:
    assert [plain_export.goal(*case) for case in ((224, 1), (224, 8), (384, 1), (592, 1))] == [1.05, 1.10, 1.10, 1.15]


RECIPES: dict[str, dict[str, Any]] = {
    "topk": {"method": "topk", "stages": [1, 2], "keep_rate": 0.5},
    "evit": {"method": "evit", "stages": [1, 2], "keep_rate": 0.5, "fuse": True},
    "tome": {"method": "tome", "r": 6},
}
PLAIN: dict[str, Any] = {
    "topk": lambda model: plain_models.TopK(model, (1, 2), 0.5),
    "evit": lambda model: plain_models.TopK(model, (1, 2), 0.5, fuse=True),
    "tome": lambda model: plain_models.ToMe(model, 6),
}


@pytest.mark.parametrize("method", list(PLAIN))
def test_plain_models_have_the_logits_of_the_reference(method: str) -> None:
    model, x = tiny(), torch.from_numpy(images(3, (3, 64, 64)))
    with torch.inference_mode():
        wanted = vitprune.reference(model, vitprune.Recipe.load({"prune": RECIPES[method]}))(x).numpy()
        dense = model(x).numpy()
        found = PLAIN[method](model).eval()(x).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(wanted - dense).max() > 1e-3


def test_torch_exports_a_plain_model() -> None:
    module, x = PLAIN["topk"](tiny(depth=3)).eval(), torch.from_numpy(images(1, (3, 64, 64)))
    model, exporter, errors = plain_export.exported(module, x)
    assert model is not None, errors
    assert exporter in ("newer", "older")
    run = plain_export.partial(plain_export._run, plain_export.make_session(model))
    assert plain_export.disagreement(run, module, x.numpy()) == ""
    assert "logits differ" in plain_export.disagreement(lambda seen: [run(seen)[0] + 1], module, x.numpy())
    assert "it fails" in plain_export.disagreement(lambda seen: run(seen[:, :1]), module, x.numpy())


def test_what_no_exporter_takes_is_a_row_with_the_errors(tmp_path: Path) -> None:
    class Refusing(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("depends on the data")

    model, exporter, errors = plain_export.exported(Refusing(), torch.zeros(1, 3, 8, 8))
    assert (model, exporter) == (None, "")
    assert set(errors) == {"newer", "older"}
    row = {
        "exported": "reference",
        "method": "ats",
        "image_size": 224,
        "batch": 1,
        "goal": 1.05,
        "exporter": "",
        "errors": errors,
        "not_run": "torch exports it with neither",
    }
    assert "depends on the data" in "\n".join(report.plain_export(stored(tmp_path, [row])))
