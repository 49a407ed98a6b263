"""How much of somebody else's data is read, and that an option lifts it. Each of these once took gigabytes, or waited for ever."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitprune.data import images
from vitprune.data.arrays import read_idx
from vitprune.errors import LoadError
from vitprune.support.limits import BeyondLimit, limits
from vitprune.vit.sizes import require_makeable

SIDE = 8
GREY = {"input_size": [1, SIDE, SIDE], "mean": [0.5], "std": [0.5], "interpolation": "bicubic", "crop_pct": 1.0, "known": True}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Limits small enough to be reached by small files."""
    monkeypatch.setattr(limits, "pixels", 20 * 20)
    monkeypatch.setattr(limits, "array", 10_000)
    return monkeypatch


def pictures(root: Path, side: int) -> Path:
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        Image.new("L", (side, side), 100).save(root / name / "0.png")
    return root


def test_large_pictures(tmp_path: Path, narrow: pytest.MonkeyPatch) -> None:
    assert len(images.load(pictures(tmp_path / "small", 20), GREY, 9, classes=2)) == 2
    large = pictures(tmp_path / "large", 21)
    with pytest.raises(LoadError, match="VP621") as error:
        images.load(large, GREY, 9, classes=2)
    assert "441 pixels" in error.value.cause
    assert "--no-limits" in error.value.cause
    narrow.setattr(limits, "on", False)
    assert len(images.load(large, GREY, 9, classes=2)) == 2


def test_a_picture_that_the_library_calls_a_bomb(tmp_path: Path) -> None:
    """270 megapixels in 330 KB: beyond the limit, and beyond that of the library, whose own error once came out as VP198."""
    folder = pictures(tmp_path, SIDE)
    Image.new("1", (30_000, 9_000)).save(folder / "a" / "0.png")
    with pytest.raises(LoadError, match="VP621") as error:
        images.load(folder, GREY, 9, classes=2)
    assert "270,000,000 pixels" in error.value.cause


def test_large_pictures_of_a_data_set(tmp_path: Path, narrow: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="extra 'test' brings datasets")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for side, name in ((20, "small"), (21, "large")):
        rows = {"image": [Image.new("L", (side, side), 100)] * 2, "label": [0, 1]}
        datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(str(tmp_path / name))
    assert len(images.load(tmp_path / "small", GREY, 9, classes=2)) == 2
    with pytest.raises(LoadError, match="VP621"):
        images.load(tmp_path / "large", GREY, 9, classes=2)


@pytest.mark.parametrize("kind", ["pipe", "link to nowhere"])
def test_what_is_called_like_a_picture_is_one(tmp_path: Path, kind: str) -> None:
    """Left out without a word, and labels and counts were others than the folder shows."""
    odd = pictures(tmp_path, SIDE) / "a" / "1.png"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(LoadError, match="VP621") as error:
        images.load(tmp_path, GREY, 9, classes=2)
    assert "1.png" in error.value.message


def test_arrays_that_unpack_to_more_than_is_read(tmp_path: Path, narrow: pytest.MonkeyPatch) -> None:
    """Zeros pack a thousandfold."""
    pixels = np.zeros((200, 1, SIDE, SIDE), np.uint8)
    np.savez_compressed(tmp_path / "bomb.npz", images=pixels, labels=np.zeros(200, np.int64))
    assert (tmp_path / "bomb.npz").stat().st_size < 2_000
    with pytest.raises(LoadError, match="VP621") as error:
        images.load(tmp_path / "bomb.npz", GREY, 9, classes=2)
    assert "--no-limits" in error.value.cause
    narrow.setattr(limits, "on", False)
    assert len(images.load(tmp_path / "bomb.npz", GREY, 9, classes=2)) == 9


def test_gzipped_files_that_unpack_to_more_than_is_read(tmp_path: Path, narrow: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(
        gzip.compress(
            b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (200, SIDE, SIDE)) + bytes(200 * SIDE * SIDE)
        )
    )
    with pytest.raises(LoadError, match="VP621") as error:
        read_idx(path)
    assert "--no-limits" in error.value.cause
    narrow.setattr(limits, "on", False)
    assert read_idx(path).shape == (200, SIDE, SIDE)


@pytest.mark.parametrize("args", [{"embed_dim": 30_000}, {"depth": 100_000}, {"img_size": 100_000}, {"mlp_ratio": 1e9}])
def test_models_that_fill_the_memory_are_not_made(args: dict[str, float], narrow: pytest.MonkeyPatch) -> None:
    with pytest.raises(BeyondLimit, match="--no-limits"):
        require_makeable(args)
    narrow.setattr(limits, "on", False)
    require_makeable(args)
