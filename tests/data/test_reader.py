"""One reader: what is taken for labels, pixels, splits and classes, and what is refused. Each refusal once gave a wrong number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitprune.data import images
from vitprune.data.sources import open_split
from vitprune.errors import LoadError, RecipeError
from vitprune.recipe import Recipe

SIDE = 8
HALF = {"input_size": [1, SIDE, SIDE], "mean": [0.5], "std": [0.5], "interpolation": "bicubic", "crop_pct": 1.0, "known": True}
TEN = [f"c{number}" for number in range(10)]


def grey(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, SIDE, SIDE)).astype(np.uint8)


def npz(path: Path, count: int = 6, **arrays: object) -> Path:
    np.savez(path, **({"images": grey(count), "labels": np.arange(count) % 10} | arrays))
    return path


def folders(root: Path, names: list[str], per_class: int = 1) -> Path:
    """Class folders; the grey value of an image tells the place of its class in `TEN` (or in `names`)."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        value = 20 * (TEN.index(name) if name in TEN else place)
        for number in range(per_class):
            Image.fromarray(np.full((SIDE, SIDE), value, np.uint8)).save(root / name / f"{number}.png")
    return root


def load(
    path: Path, classes: int | None = 10, splits: tuple[str, ...] = ("val",), names: list[str] | None = None
) -> images.Images:
    return images.load(path, HALF | ({"classes": names} if names else {}), 100, classes=classes, splits=splits)


def refused(code: str, call, *words: str) -> None:
    with pytest.raises(LoadError) as error:
        call()
    assert error.value.code == code, error.value.cause
    assert error.value.next_step
    for word in words:
        assert word in f"{error.value.message} {error.value.cause} {error.value.next_step}"


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (np.arange(6)[:, None], "shape (6, 1)"),
        (np.arange(7), "6 images and 7 labels"),
        (np.arange(5), "6 images and 5 labels"),
        (np.arange(6).astype(np.float32), "float32"),
        (np.ones(6, bool), "bool"),
        (np.array(["a"] * 6), "<U1"),
        (np.array([0, 1, 2, 3, 4, -1]), "label -1"),
        (np.array([0, 1, 2, 10, 4, 5]), "label 10"),
        (np.array([2**63 + 5] * 6, np.uint64), "no class number"),
    ],
)
def test_labels_are_class_numbers_one_per_image(tmp_path, labels, word):
    path = npz(tmp_path / "x.npz", labels=labels)
    refused("VP624", lambda: load(path), word)
    refused("VP624", lambda: open_split(path, "train", 10), word)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint16, np.int64])
def test_labels_of_every_integer_type(tmp_path, kind):
    found = load(npz(tmp_path / "x.npz", labels=np.arange(6).astype(kind)))
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("pixels", "word"),
    [
        (grey(3).astype(np.int64), "int64"),
        (grey(3).astype(np.uint16) * 257, "255 or 65535"),
        (grey(3) > 100, "bool"),
        (grey(3).astype(np.complex64), "complex64"),
        (np.where(grey(3) == grey(3).max(), np.nan, grey(3) / 255.0), "NaN"),
        (np.where(grey(3) == grey(3).max(), np.inf, grey(3) / 255.0), "infinite"),
        ((grey(3) > 100).astype(np.uint8), "cut to integers"),
        (grey(3).astype(np.float32) / 255, "may be preprocessed"),
        (grey(3).astype(np.float32) / 180, "may be preprocessed"),
        (grey(3).astype(np.float32) - 128, "preprocessed ones go from -1 to 1"),
        (grey(3).astype(np.float32) * 257, "preprocessed ones go from -1 to 1"),
        (np.zeros((3, 1, SIDE, SIDE, 1), np.uint8), "shape (3, 1, 8, 8, 1)"),
    ],
)
def test_pixels_of_doubtful_meaning_are_refused(tmp_path, pixels, word):
    path = npz(tmp_path / "x.npz", images=pixels, labels=np.arange(3))
    refused("VP621", lambda: load(path), word)


def test_float_pixels_are_told_apart_or_stated(tmp_path):
    expected = (grey(6) / 255.0 - 0.5) / 0.5
    values = grey(6).astype(np.float64)
    for number, entry in enumerate(
        [{"images": grey(6)}, {"images": values}, {"images": values / 255, "pixels": "0-1"}, {"images": expected},
         {"images": values, "pixels": "0-255"}, {"images": expected.astype(np.float32), "pixels": "ready"}]
    ):  # fmt: skip
        found = load(npz(tmp_path / f"{number}.npz", **entry))
        np.testing.assert_allclose(found.pixels, expected, atol=1e-6, err_msg=str(number))
        assert found.pixels.dtype == np.float32
    refused("VP621", lambda: load(npz(tmp_path / "a.npz", images=values, pixels="0-1")), "values go from 0 to 255")
    refused("VP621", lambda: load(npz(tmp_path / "b.npz", pixels="ready")), "uint8")
    refused("VP621", lambda: load(npz(tmp_path / "c.npz", pixels="0-100")), "0-100")


def test_training_takes_pixels_only(tmp_path):
    path = npz(tmp_path / "x.npz", images=grey(6).astype(np.float32) / 128 - 1)
    refused("VP621", lambda: open_split(path, "train", 10), "training takes pixels")
    with np.load(npz(tmp_path / "y.npz")) as data:
        np.savez(tmp_path / "bare.npz", images=data["images"])
    refused("VP621", lambda: open_split(tmp_path / "bare.npz", "train", 10), "labels")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text"])
def test_files_that_are_no_npz(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    refused("VP621", lambda: load(tmp_path / "x.npz"))
    np.save(tmp_path / "x.npy", grey(2))
    refused("VP621", lambda: load(tmp_path / "x.npy"))


def test_sixteen_bits_are_scaled(tmp_path):
    deep = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 1040
    for number, name in enumerate(("deep.png", "deep.tif")):
        (tmp_path / str(number) / "c0").mkdir(parents=True)
        Image.fromarray(deep).save(tmp_path / str(number) / "c0" / name)
        found = load(tmp_path / str(number), classes=1)
        np.testing.assert_allclose(found.pixels[0, 0], np.rint(deep / 257) / 127.5 - 1, atol=1e-6)
    (tmp_path / "wide" / "c0").mkdir(parents=True)
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "wide" / "c0" / "a.tif")
    refused("VP621", lambda: load(tmp_path / "wide", classes=1), "32 bits", "a.tif")


def test_splits_are_no_classes(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        folders(tmp_path / "data" / split, TEN, count)
    found = load(tmp_path / "data")
    assert len(found) == 20
    assert "split val" in found.origin
    assert found.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert len(load(tmp_path / "data", splits=("train",))) == 30
    assert len(load(tmp_path / "data" / "train")) == 30


def test_a_split_that_is_not_there_is_asked_for(tmp_path):
    folders(tmp_path / "data" / "train", TEN)
    refused("VP622", lambda: load(tmp_path / "data"), "no split 'val'", "--data")
    assert len(load(tmp_path / "data", splits=("val", "train"))) == 10
    folders(tmp_path / "other" / "val", TEN)
    refused("VP622", lambda: open_split(tmp_path / "other", "train", 10), "training split")


def test_splits_and_classes_that_look_alike(tmp_path):
    folders(tmp_path / "vehicles", ["bus", "car", "train"])  # images lie in 'train': a class like the others
    assert load(tmp_path / "vehicles", classes=3).labels.tolist() == [0, 1, 2]
    folders(tmp_path / "flat", ["train", "val"])
    refused("VP622", lambda: load(tmp_path / "flat", classes=2), "no class folders")
    folders(tmp_path / "mixed", ["bus"])
    folders(tmp_path / "mixed" / "train", ["a", "b"])
    refused("VP622", lambda: load(tmp_path / "mixed", classes=2), "a split or a class")


def test_two_of_ten_classes_find_their_numbers_by_name(tmp_path):
    folders(tmp_path, ["c3", "c7"], 2)
    assert load(tmp_path, names=TEN).labels.tolist() == [3, 3, 7, 7]
    refused("VP627", lambda: load(tmp_path), "2 class folders and the model has 10 classes")
    folders(tmp_path, ["stranger"])
    refused("VP627", lambda: load(tmp_path, names=TEN), "no class 'stranger'")


def test_order_of_the_names_does_not_matter(tmp_path):
    folders(tmp_path, ["cat", "dog"])
    assert load(tmp_path, 2, names=["dog", "cat"]).labels.tolist() == [1, 0]
    assert load(tmp_path, 2).classes == ["cat", "dog"]


def test_numbered_folders_of_unknown_order(tmp_path):
    folders(tmp_path, [str(number) for number in range(11)])
    refused("VP627", lambda: load(tmp_path, classes=11), "'10' comes before '2'")
    labels = load(tmp_path, classes=11, names=[str(number) for number in range(11)]).labels
    assert labels.tolist() == [0, 1, 10, *range(2, 10)]


def test_names_in_an_npz_are_matched(tmp_path):
    path = npz(tmp_path / "x.npz", 2, labels=np.array([0, 1]), classes=np.array(["c7", "c3"]))
    assert load(path, names=TEN).labels.tolist() == [7, 3]
    refused("VP627", lambda: load(path, names=TEN[:5]), "c7")
    refused("VP624", lambda: load(npz(tmp_path / "y.npz", 2, labels=np.array([0, 2]), classes=np.array(["a", "b"]))), "label 2")


def test_validation_classes_are_those_of_training(tmp_path):
    folders(tmp_path / "train", ["ant", "bee", "cat"])
    folders(tmp_path / "val", ["bee", "cat"])
    train = open_split(tmp_path, "train", 3)
    assert open_split(tmp_path, "val", 3, train.classes).labels.tolist() == [1, 2]
    folders(tmp_path / "val", ["dog"])
    refused("VP627", lambda: open_split(tmp_path, "val", 4, train.classes), "'dog'")
    assert open_split(tmp_path, "train", 3, ["cat", "bee", "ant"]).labels.tolist() == [2, 1, 0]


def test_a_data_set_of_hugging_face_is_validated_too(tmp_path):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["c7", "c3"])})
    pictures = [Image.fromarray(picture[0]) for picture in grey(4)]
    one = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 0, 1]}, features=kinds)
    other = datasets.Dataset.from_dict({"image": pictures[:1], "label": [1]}, features=kinds)
    datasets.DatasetDict({"train": one, "test": other}).save_to_disk(str(tmp_path / "x"))
    found = load(tmp_path / "x", names=TEN)
    assert found.labels.tolist() == [3]
    np.testing.assert_allclose(found.pixels[0], grey(4)[0] / 127.5 - 1, atol=1e-6)
    floats = datasets.Features({"image": datasets.Image(), "label": datasets.Value("float32")})
    datasets.Dataset.from_dict({"image": pictures, "label": [0.5, 1, 2, 3]}, features=floats).save_to_disk(str(tmp_path / "y"))
    refused("VP624", lambda: load(tmp_path / "y"), "float")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", "[.nan]"),
        ("std", "[0.0]"),
        ("std", "[-1.0]"),
        ("std", "[.inf]"),
        ("classes", "[a, a]"),
        ("mean", "[]"),
        ("crop_pct", "0"),
    ],
)
def test_recipe_keys_of_preprocessing_are_checked(key, value):
    with pytest.raises(RecipeError, match="VP102"):
        Recipe.load({"prune": {"method": "topk"}}, [f"model.{key}={value}"])
