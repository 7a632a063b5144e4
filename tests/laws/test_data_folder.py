"""A folder as a dataset: names, order, labels, the verdict that is kept, and the size of its images."""

import os

import numpy as np
import pytest
from PIL import Image

from byol_jax import ConfigurationError, DataError
from byol_jax.data import evaluation_images, open_dataset
from byol_jax.data import folder as folder_module


def write(folder, name, value=100, shape=(20, 20)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for number, name in enumerate(
        ["zebra/a.png", "ant/deep/er/b.JPG", "ant/c.Jpeg", "bee/d.bmp", "bee/e.tiff", "bee/f.gif"]
    ):
        write(root, name, 10 * number)
    (root / "notes.txt").write_text("not looked at")
    (root / "bee/._f.gif").write_text("what macOS leaves")
    return root


NAMES = ("ant/c.Jpeg", "ant/deep/er/b.JPG", "bee/d.bmp", "bee/e.tiff", "bee/f.gif", "zebra/a.png")


def test_names_are_sorted_and_images_follow_them(folder):
    dataset = open_dataset(folder, image_size=14, num_channels=1)
    assert dataset.names == NAMES
    assert (len(dataset), dataset.count, dataset.image_shape) == (6, 6, (16, 16, 1))
    assert np.abs(dataset.take(range(6))[:, 3, 3, 0].astype(int) - [20, 10, 30, 40, 50, 0]).max() <= 1  # JPEG
    assert dataset.take([5, 0, 5]).shape == (3, 16, 16, 1)
    assert dataset.take([]).shape == (0, 16, 16, 1)
    with pytest.raises(IndexError):
        dataset.take([6])


def test_labels_are_the_first_level_folders_in_order(folder):
    dataset = open_dataset(folder, image_size=14, with_labels=True)
    assert dataset.class_names == ("ant", "bee", "zebra")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert dataset.labels.dtype == np.int32
    without = open_dataset(folder, image_size=14)
    assert (without.labels, without.class_names) == (None, None)


def test_a_class_keeps_its_number_when_its_images_are_bad(folder):
    (folder / "ape").mkdir()
    (folder / "ape/bad.png").touch()
    assert open_dataset(folder, image_size=14, with_labels=True).labels.tolist() == [0, 0, 2, 2, 2, 3]


def test_labels_need_every_image_in_a_class_folder(folder):
    write(folder, "stray.png")
    with pytest.raises(DataError, match=r"1 images lie outside of them \(the first: 'stray.png'\): move"):
        open_dataset(folder, image_size=14, with_labels=True)


def test_workers_and_the_cache_change_nothing(folder):
    options = {"image_size": 14, "num_channels": 3}
    expected = open_dataset(folder, workers=1, cache_bytes=0, **options).take([3, 1, 0, 2, 5, 4, 3])
    for workers in (1, 3):
        for cache_bytes in (0, 10**6):
            for scan_limit in (0, 100):
                dataset = open_dataset(
                    folder, workers=workers, cache_bytes=cache_bytes, scan_limit=scan_limit, **options
                )
                np.testing.assert_array_equal(dataset.take([3, 1, 0, 2, 5, 4, 3]), expected)


def count_reads(monkeypatch):
    read, names = folder_module.read_image, []
    monkeypatch.setattr(folder_module, "read_image", lambda path, **o: names.append(path.name) or read(path, **o))
    return names


def test_what_fits_in_memory_is_decoded_once(folder, monkeypatch):
    names = count_reads(monkeypatch)
    dataset = open_dataset(folder, image_size=14)
    dataset.take([0, 1, 2, 3, 4, 5, 0])
    assert len(names) == 6
    small = open_dataset(folder, image_size=14, cache_bytes=6 * 16 * 16 * 3 - 1)
    small.take([0, 1])
    assert len(names) == 6 + 6 + 2


def test_what_is_taken_can_be_written_to(folder):
    dataset = open_dataset(folder, image_size=14)
    before = dataset.take([0]).copy()
    dataset.take([0])[:] = 0
    np.testing.assert_array_equal(dataset.take([0]), before)


def test_progress_counts_every_file(folder):
    seen = []
    open_dataset(folder, image_size=14, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]


def test_a_kept_verdict_spares_the_scan_and_keeps_the_list(folder, tmp_path, monkeypatch):
    (folder / "bad.jpg").touch()
    path = tmp_path / "run" / "images.json"
    first = open_dataset(folder, image_size=14, verdict_path=path, with_labels=False)
    names = count_reads(monkeypatch)
    write(folder, "aaa_new.png")
    again = open_dataset(folder, image_size=14, verdict_path=path)
    assert (again.names, again.identity, names) == (first.names, first.identity, [])
    assert again.skipped == (("bad.jpg", "empty file"), ("aaa_new.png", "added after the first start"))
    np.testing.assert_array_equal(again.take(range(6)), first.take(range(6)))
    (folder / NAMES[2]).unlink()
    gone = open_dataset(folder, image_size=14, verdict_path=path)
    assert gone.names == first.names
    np.testing.assert_array_equal(gone.take([2]), first.take([3]))


def test_a_verdict_of_another_folder_or_damaged_is_refused(folder, tmp_path):
    path = tmp_path / "images.json"
    open_dataset(folder, image_size=14, verdict_path=path)
    write(tmp_path / "other", "x.png")
    with pytest.raises(DataError, match="holds only 0 of the 6 images"):
        open_dataset(tmp_path / "other", image_size=14, verdict_path=path)
    path.write_text('{"format": 3}')
    with pytest.raises(DataError, match="can't be read: delete it"):
        open_dataset(folder, image_size=14, verdict_path=path)


def test_identity_is_of_names_and_sizes_not_of_the_place(folder, tmp_path):
    identity = open_dataset(folder, image_size=14).identity
    assert (identity["kind"], identity["count"]) == ("folder", 6)
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert open_dataset(moved, image_size=28).identity == identity
    os.rename(moved / "zebra", moved / "yak")
    assert open_dataset(moved, image_size=14).identity != identity


def test_links_are_followed_and_loops_end(folder, tmp_path):
    write(tmp_path / "elsewhere", "g.png")
    (folder / "cat").symlink_to(tmp_path / "elsewhere")
    (folder / "bee/loop").symlink_to("..")
    dataset = open_dataset(folder, image_size=14)
    assert set(dataset.names) == {*NAMES, "cat/g.png"}
    assert dataset.skipped == (("bee/loop", "a link to a folder that was read under another name"),)


def test_without_an_image_size_images_keep_theirs(tmp_path):
    for number in range(3):
        write(tmp_path, f"{number}.png", number, (12, 18))
    dataset = open_dataset(tmp_path, num_channels=1)
    assert dataset.image_shape == (12, 18, 1)
    assert dataset.take([2]).tolist() == np.full((1, 12, 18, 1), 2).tolist()
    assert evaluation_images(dataset, [2], (12, 18)).tolist() == dataset.take([2]).tolist()
    write(tmp_path, "x.png", 3, (12, 17))
    with pytest.raises(DataError, match=r"'x.png' is 12 × 17, the first is 12 × 18\): give image_size"):
        open_dataset(tmp_path)


def test_evaluation_takes_the_centre_of_what_training_loads(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a/1.png")
    dataset = open_dataset(tmp_path, image_size=56, num_channels=1)  # loaded at 64: the file's own size
    np.testing.assert_array_equal(evaluation_images(dataset, [0], 56)[0, ..., 0], pixels[4:60, 4:60])
    assert evaluation_images(dataset, [0], (28, 14)).shape == (1, 28, 14, 1)


def test_mixed_kinds_of_colour_become_one(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        Image.new(mode, (20, 20)).save(tmp_path / f"{mode.replace(';', '')}.png")
    for mode in ("CMYK", "RGB", "L"):
        Image.new(mode, (20, 20)).save(tmp_path / f"{mode}.jpg")
    for channels in (1, 3):
        dataset = open_dataset(tmp_path, image_size=14, num_channels=channels)
        assert dataset.skipped == ()
        assert dataset.take(range(10)).shape == (10, 16, 16, channels)
    with pytest.raises(ConfigurationError, match="num_channels 4: image files give 1 or 3"):
        open_dataset(tmp_path, image_size=14, num_channels=4)


def test_a_folder_without_images_says_what_it_found(tmp_path):
    with pytest.raises(DataError, match="it is empty"):
        open_dataset(tmp_path)
    (tmp_path / "table.csv").touch()
    with pytest.raises(DataError, match=r"no file in it is named as an image .*: it holds 'table.csv'"):
        open_dataset(tmp_path)
