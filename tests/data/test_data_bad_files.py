"""What training sees is decided by the seed and the usable images: not by bad files, threads, or the disk's order."""

import contextlib
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from byol_jax.data import Loader, batch_indices, open_dataset

SPELLINGS = [f"{number:02}.png" for number in range(18)] + ["é.png", "e\u0301.PNG", "日本.jpeg", "a\nb.png", "Z.bmp"]


@pytest.fixture
def folder(tmp_path):
    """Images with all kinds of names in two sub-folders, each of its own grey."""
    root = tmp_path / "images"
    for number, name in enumerate(SPELLINGS):
        path = root / "cd"[number % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20), 10 * number, np.uint8)).save(path)
    return root


def make_bad(folder):
    """Every second place of the listing gets a bad neighbour, the first and the last place too."""
    for number in range(0, 18, 2):
        (folder / "cd"[number // 2 % 2] / f"{number:02}+.png").write_bytes(b"no image" * (number % 4))
    (folder / "a.png").touch()
    (folder / "z" / "z.gif").mkdir(parents=True)
    os.mkfifo(folder / "c" / "pipe.jpg")


def batches(folder, *, seed=3, steps=9, workers=2, **options):
    dataset = open_dataset(folder, image_size=14, num_channels=1, workers=workers, **options)
    with Loader(dataset, batch_size=5, seed=seed, workers=workers, place=lambda batch: batch) as loader:
        return dataset, np.stack([next(loader) for _ in range(steps)])


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("cache_bytes", [0, 10**6])
def test_bad_files_change_no_batch(folder, workers, cache_bytes):
    before, expected = batches(folder)
    make_bad(folder)
    after, found = batches(folder, workers=workers, cache_bytes=cache_bytes)
    np.testing.assert_array_equal(found, expected)
    assert (after.names, after.identity) == (before.names, before.identity)
    assert len(after.skipped) == 12


def test_the_batches_are_those_of_the_order_and_of_another_seed_others(folder):
    dataset, found = batches(folder)
    for step, batch in enumerate(found):
        indices = batch_indices(step, seed=3, count=len(SPELLINGS), batch_size=5)
        np.testing.assert_array_equal(batch, dataset.take(indices))
    assert (batches(folder, seed=4)[1] != found).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_in_which_the_disk_lists_names_changes_nothing(folder, monkeypatch, seed):
    make_bad(folder)
    dataset, expected = batches(folder)
    scandir, generator = os.scandir, np.random.default_rng(seed)

    @contextlib.contextmanager
    def shuffled(path):
        with scandir(path) as scan:
            entries = list(scan)
        generator.shuffle(entries)
        yield iter(entries)

    monkeypatch.setattr(os, "scandir", shuffled)
    again, found = batches(folder)
    np.testing.assert_array_equal(found, expected)
    assert (again.names, again.skipped) == (dataset.names, dataset.skipped)


def test_a_copy_made_in_another_order_gives_the_same_batches(folder, tmp_path):
    make_bad(folder)
    _, expected = batches(folder)
    paths = sorted((path for path in folder.rglob("*") if path.is_file()), reverse=True)
    for path in paths:
        (tmp_path / "copy" / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, tmp_path / "copy" / path.relative_to(folder))
    np.testing.assert_array_equal(batches(tmp_path / "copy")[1], expected)


def test_files_found_bad_on_the_way_are_replaced_alike_by_any_number_of_threads(folder):
    """Above the limit of the scan only headers are read: the bad ones are met in the thread that decodes them.

    Six epochs meet all of them; after fewer, what has been met depends on how far the threads have read ahead.
    """
    for number in range(6):
        path = folder / "c" / f"0{number}cut.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 20), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:200])
    expected, skipped = None, None
    for workers in (1, 2, 7):
        dataset, found = batches(folder, steps=30, workers=workers, cache_bytes=0, scan_limit=3)
        assert len(dataset) == len(SPELLINGS) + 6
        expected, skipped = (found, dataset.skipped) if expected is None else (expected, skipped)
        np.testing.assert_array_equal(found, expected)
        assert dataset.skipped == skipped
    assert [os.path.basename(name) for name, _ in skipped] == [f"0{number}cut.png" for number in range(6)]
