"""Which images fit the classifiers and which measure them, and what they become."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from byol_jax import DataError
from byol_jax.cli.commands.embed import Written, has_labels
from byol_jax.cli.images import feature_batches, features_of, open_labelled, open_training_images, pixels_of
from byol_jax.data import open_dataset

OPTIONS = {"image_size": 8, "num_channels": 3, "workers": 1}


def _folder(root, classes, count=2):
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name / f"{number}.png")


def _arrays(path, count=10):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)  # [N, 8, 8, 3]
    np.save(path, images)
    return images


def test_an_evaluation_names_what_it_skips(tmp_path, capsys):
    _folder(tmp_path / "train", ["cats", "dogs"], 3)
    _folder(tmp_path / "test", ["cats", "dogs"], 2)
    (tmp_path / "train" / "cats" / "0.png").write_bytes(b"text")
    open_labelled(str(tmp_path), None, seed=0, **OPTIONS)
    said = ["1 image can't be used and was skipped:", "skipped 'cats/0.png': not an image, or damaged at its start"]
    assert capsys.readouterr().err.splitlines() == said


def test_a_batch_of_which_every_file_failed_gives_no_rows(tmp_path):
    _arrays(tmp_path / "images.npy")
    names = tuple(f"{number}.png" for number in range(10))
    failed = tuple((name, "vanished") for name in (*names[4:8], names[9]))
    dataset = replace(open_dataset(tmp_path / "images.npy"), names=names, list_skipped=lambda: failed)
    written, numbers = Written(), []
    for rows, some in feature_batches(lambda _, images: images / 1, None, dataset, image_size=8, batch_size=4):
        numbers += some.tolist()
        written = written.add(rows, None)
    assert numbers == [0, 1, 2, 3, 8]
    assert written == (5, (8, 8, 3), 0, "")
    assert written.add(np.zeros((0, 8, 8, 3), np.float32), None) == written


@pytest.mark.parametrize("beside", ["pictures", "nothing"])
def test_arrays_beside_folders_are_images_where_the_folder_holds_no_pictures(tmp_path, beside):
    _folder(tmp_path, ["cats"])
    np.save(tmp_path / "labels.npy", np.zeros((8, 8), np.uint8))
    if beside == "pictures":
        assert has_labels(str(tmp_path))
        return
    for path in (tmp_path / "cats").iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match=r"images lie beside its folders, 'labels.npy' for one \(1 in all\)"):
        assert not has_labels(str(tmp_path))
    assert open_dataset(tmp_path, num_channels=1).names == ("labels.npy",)


@pytest.mark.parametrize("part", ["train", "Train", "TRAINING", "training"])
@pytest.mark.parametrize("name", ["test", "val", "Test", "testing", "VAL", "Validation", "valid"])
def test_a_folders_own_split_is_kept(tmp_path, part, name):
    _folder(tmp_path / part, ["cats", "dogs"], 3)
    _folder(tmp_path / name, ["cats", "dogs"], 1)
    train, test, classes, text = open_labelled(str(tmp_path), None, seed=0, **OPTIONS)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 1])
    assert classes == ("cats", "dogs")
    assert text == f"as in {tmp_path}: {part} and {name}"


def test_of_several_parts_test_measures_and_two_to_train_on_are_refused(tmp_path):
    for name in ("train", "val", "Test"):
        _folder(tmp_path / name, ["cats", "dogs"], 2)
    assert open_labelled(str(tmp_path), None, seed=0, **OPTIONS)[3].endswith(": train and Test")
    _folder(tmp_path / "test", ["cats", "dogs"], 2)
    with pytest.raises(DataError, match="holds Test and test: leave one of them there"):
        open_labelled(str(tmp_path), None, seed=0, **OPTIONS)
    _folder(tmp_path / "training", ["cats", "dogs"], 2)
    with pytest.raises(DataError, match="holds train and training: leave one of them there"):
        open_labelled(str(tmp_path), None, seed=0, **OPTIONS)


def test_a_file_named_as_a_part_is_no_part(tmp_path):
    _folder(tmp_path, ["cats", "dogs", "train"], 4)
    (tmp_path / "test").write_text("no folder")
    assert open_labelled(str(tmp_path), None, seed=0, **OPTIONS)[2] == ("cats", "dogs", "train")


def test_other_classes_in_the_test_part_are_refused(tmp_path):
    _folder(tmp_path / "train", ["cats", "dogs"])
    _folder(tmp_path / "test", ["cats", "mice"])
    with pytest.raises(DataError, match="different classes"):
        open_labelled(str(tmp_path), None, seed=0, **OPTIONS)


def test_a_set_in_one_piece_is_split_by_the_seed(tmp_path):
    _arrays(tmp_path / "images.npy")
    np.save(tmp_path / "labels.npy", np.arange(10) % 2)

    def split(seed):
        train, test, _, _ = open_labelled(str(tmp_path / "images.npy"), tmp_path / "labels.npy", seed=seed, **OPTIONS)
        assert sorted([*train.indices, *test.indices]) == list(range(10))
        assert (train.labels == train.indices % 2).all()
        assert len(train.indices) == 8
        return test.indices.tolist()

    assert split(0) == split(0)
    assert split(0) != split(1)


@pytest.mark.parametrize(
    "labels", [np.arange(9), np.arange(10) / 2, np.array(["a"] * 10), np.zeros((10, 1), int), np.zeros(10, int)]
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels):
    _arrays(tmp_path / "images.npy")
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(DataError, match=r"labels of shape|at least 2 classes"):
        open_labelled(str(tmp_path / "images.npy"), tmp_path / "labels.npy", seed=0, **OPTIONS)


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00\x02\x00{}"])
def test_a_file_that_holds_no_labels_is_refused(tmp_path, content):
    _arrays(tmp_path / "images.npy")
    (tmp_path / "labels.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.npy"):
        open_labelled(str(tmp_path / "images.npy"), tmp_path / "labels.npy", seed=0, **OPTIONS)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_features_are_in_order_whatever_the_batch(tmp_path, batch_size):
    images = _arrays(tmp_path / "images.npy")
    shapes = set()

    def function(state, batch):
        shapes.add(batch.shape)
        return batch.reshape(len(batch), -1)[:, :2] * state

    order = np.array([7, 0, 3, 3, 9])
    found = features_of(function, 2, open_dataset(images), order, image_size=8, batch_size=batch_size)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, 2 * np.stack([order, order], 1))
    assert shapes == {(batch_size, 8, 8, 3)}  # one shape, one compilation


def test_pixels_are_the_images(tmp_path):
    images = _arrays(tmp_path / "images.npy")
    found = pixels_of(open_dataset(images), np.array([2, 5]), image_size=8)
    np.testing.assert_allclose(found, images[[2, 5]].reshape(2, -1) / 255, atol=1e-7)


def test_arrays_say_their_own_size_and_channels(tmp_path):
    np.save(tmp_path / "grey.npy", np.zeros((4, 8, 6, 1), np.uint8))
    _, size, channels = open_training_images(str(tmp_path / "grey.npy"), None, None)
    assert (size, channels) == ((8, 6), 1)
    _, size, channels = open_training_images("fashion-mnist", None, None)
    assert (size, channels) == (28, 1)
    _folder(tmp_path / "photos", ["cats"])
    _, size, channels = open_training_images(str(tmp_path / "photos"), None, None)
    assert (size, channels) == (224, 3)
