from __future__ import annotations

import numpy as np

from vitprune.pipelines import validate
from vitprune.reports.html import html_report
from vitprune.reports.pictures import displayable, png, with_dropped, with_groups


def test_pictures_show_what_was_dropped():
    image = np.full((8, 8, 3), 200, np.uint8)
    picture = with_dropped(image, np.array([0, 3, -1]), (2, 2))
    assert (picture[:4, :4] == 200).all()
    assert (picture[4:, 4:] == 200).all()
    assert (picture[:4, 4:] < 110).all()
    assert with_dropped(image, np.array([0]), (2, 2), scale=3).shape == (24, 24, 3)


def test_png_is_read_back_by_pillow():
    import io

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


def test_normalisation_is_undone():
    preprocessing = {"mean": [0.5], "std": [0.25]}
    shown = displayable(np.full((1, 2, 2), 1.0, np.float32), preprocessing)
    assert shown.shape == (2, 2, 3)
    assert (shown == round(0.75 * 255)).all()


def test_report_is_self_contained(made_bundle):
    verdict = validate(made_bundle, reference="stored")
    samples = made_bundle.samples()
    result = made_bundle.run(samples["images"][:6])
    arrays = {"images": samples["images"][:6], "run_logits": result.logits}
    text = html_report(
        verdict, arrays, result.kept, made_bundle.manifest.preprocessing, (8, 8), facts=[["a <b>", "1", "2"]], count=4
    )
    assert "PASSED" in text
    assert "a &lt;b&gt;" in text
    assert text.count("<img") == 4 * (1 + len(result.kept))
    assert text.count("<svg") == 1
    assert "http://" not in text
    assert "https://" not in text
    assert 'src="data:image/png' in text


def test_groups_have_their_mean_colour():
    """Patches 0 and 1 merged, 2 on its own, 3 lost: mean, unchanged, dark; away from the lines between groups."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :4], pixels[:4, 4:], pixels[4:, :4] = 100, 200, 40
    pixels[4:, 0] = 60
    shown = with_groups(pixels, np.array([0, 0, 2, -1]), (2, 2))
    assert (shown[:4] == 150).all()
    assert (shown[5:, 0] == 60).all()
    assert (shown[5:, 1:4] == 40).all()
    assert (shown[5:, 5:] == (38, 50, 78)).all()
    assert (shown[4, :4] != 40).any(), "a line parts the groups"


def test_what_a_gate_says_of_itself_stands_beside_its_outcome():
    from vitprune.reports.html import _gate
    from vitprune.validation.compare import Gate

    assert _gate(Gate("decisions", 0, 0, True))[-1] == "holds"
    assert _gate(Gate("decisions", 0, 0, True, note="41 % of 90 decisions could have failed"))[-1] == (
        "holds; 41 % of 90 decisions could have failed"
    )


def test_a_report_of_bundles_and_a_card_say_it_too():
    from vitprune.reports.card import _validation
    from vitprune.reports.sections import judged

    gate = {"name": "decisions", "limit": 0, "seen": 0, "passed": True, "note": "41 % of 90 decisions could have failed"}
    table = next(section for section in judged({"gates": [gate]}) if section.title == "Parity")
    assert table.rows[0][-1] == "holds; 41 % of 90 decisions could have failed"
    document = {
        "status": "passed", "gates": [gate], "backend": "onnxruntime", "reference": "PyTorch", "data": "samples", "evidence": "numerical parity",
        "comparison": {},
    }  # fmt: skip
    assert "| holds; 41 % of 90 decisions could have failed |" in _validation(document)
