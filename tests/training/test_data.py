from __future__ import annotations

import numpy as np
import pytest
from training_support import CLASSES, SIDE, class_folders, idx, pictures, write_idx

from vitprune.data.sources import open_split
from vitprune.errors import LoadError
from vitprune.methods.train_keys import Augment
from vitprune.training.feeding import BadImages, Feed, order, share

PREPROCESSING = {"input_size": [1, SIDE, SIDE], "mean": [0.5], "std": [0.5], "interpolation": "bicubic", "crop_pct": 1.0}
SHIFT = Augment(kind="shift", shift=2)


def code(call):
    with pytest.raises(LoadError) as error:
        call()
    return error.value


def test_the_same_images_from_idx_folders_npz_and_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    images, labels = pictures(6)
    write_idx(images, tmp_path / "train-images-idx3-ubyte")
    write_idx(labels, tmp_path / "train-labels-idx1-ubyte")
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=CLASSES)})
    saved = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(i) for i in images], "label": labels.tolist()}, features=features
    )
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "hf"))
    sources = [open_split(path, "train", CLASSES) for path in (tmp_path, tmp_path / "x.npz", tmp_path / "hf")]
    for source in sources:
        assert source.labels.tolist() == labels.tolist()
        batch = next(iter(Feed(source, PREPROCESSING, None, 0).batches([np.arange(6)], 0, 0)))
        expected = (images[:, None] / 255.0 - 0.5) / 0.5
        np.testing.assert_allclose(batch.images.numpy(), expected, atol=1e-6)
    assert all(open_split(path, "val", CLASSES) is None for path in (tmp_path, tmp_path / "x.npz", tmp_path / "hf"))


def test_class_folders_are_numbered_in_order(tmp_path):
    source = open_split(class_folders(tmp_path), "train", CLASSES)
    assert source.classes == ["class0", "class1", "class2"]
    assert np.bincount(source.labels).tolist() == [4, 4, 4]


def test_empty_class_folder_is_named(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "train" / "class9").mkdir()
    error = code(lambda: open_split(tmp_path, "train", 9))
    assert error.code == "VP623"
    assert "class9" in error.message


def test_labels_out_of_range_name_the_first(tmp_path):
    error = code(lambda: open_split(idx(tmp_path), "train", 2))
    assert error.code == "VP624"
    assert "label 2" in error.cause


def test_truncated_idx_and_missing_data(tmp_path):
    idx(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-7])
    assert code(lambda: open_split(tmp_path, "train", CLASSES)).code == "VP621"
    assert code(lambda: open_split(tmp_path / "none", "train", CLASSES)).code == "VP620"


@pytest.mark.parametrize("kind", ["shift", "timm"])
def test_a_batch_depends_on_seed_and_epoch_but_not_on_its_mates(tmp_path, kind):
    source = open_split(idx(tmp_path), "train", CLASSES)
    feed = Feed(source, PREPROCESSING, Augment(kind=kind), 3)

    def take(numbers, epoch):
        return next(iter(feed.batches([np.asarray(numbers)], epoch, 0))).images.numpy()

    np.testing.assert_array_equal(take([4, 5, 6], 1)[1], take([9, 5], 1)[1])
    assert not np.array_equal(take([4, 5, 6], 1), take([4, 5, 6], 2))


def test_workers_do_not_change_images(tmp_path):
    feed = Feed(open_split(class_folders(tmp_path), "train", CLASSES), PREPROCESSING, Augment(), 0)
    parts = [np.array([0, 3]), np.array([5, 1])]
    for one, two in zip(feed.batches(parts, 0, 0), feed.batches(parts, 0, 1), strict=True):
        np.testing.assert_array_equal(one.images.numpy(), two.images.numpy())


def test_shift_moves_by_at_most_its_reach_and_fills_with_black(tmp_path):
    images = np.full((64, SIDE, SIDE), 255, np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.zeros(64, np.int64))
    feed = Feed(open_split(tmp_path / "x.npz", "train", 1), PREPROCESSING, SHIFT, 0)
    moved = next(iter(feed.batches([np.arange(64)], 0, 0))).images.numpy()
    assert set(np.unique(moved)) == {-1.0, 1.0}
    white = (moved[:, 0] > 0).sum(axis=(1, 2))
    assert white.min() == (SIDE - 2) ** 2
    assert white.max() == SIDE**2


def test_shares_of_processes_make_up_the_batch():
    permutation = order(20, 0, 3)
    assert sorted(permutation.tolist()) == list(range(20))
    batch = permutation[:8]
    assert np.concatenate([share(batch, rank, 2) for rank in range(2)]).tolist() == batch.tolist()


def test_unreadable_images_are_named_and_counted_or_fatal(tmp_path):
    class_folders(tmp_path)
    broken = tmp_path / "train" / "class1" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    source = open_split(tmp_path, "train", CLASSES)
    feed = Feed(source, PREPROCESSING, None, 0)
    batch = next(iter(feed.batches([np.arange(len(source))], 0, 0)))
    assert len(batch.images) == len(source)  # its neighbour stands in
    skipping = BadImages(fatal=False)
    assert len(skipping.book(batch.bad)) == 1
    assert not skipping.book(batch.bad)
    assert list(skipping.found) == [str(broken)]
    error = code(lambda: BadImages(fatal=True).book(batch.bad))
    assert error.code == "VP621"
    assert str(broken) in error.message


def test_shift_refuses_images_of_another_size(tmp_path):
    source = open_split(class_folders(tmp_path), "train", CLASSES)
    assert code(lambda: Feed(source, PREPROCESSING, SHIFT, 0)).code == "VP621"
