"""The benchmark's images are what it says of them, and its table is the mean of what was measured."""

import json
import sys

import numpy as np
import pytest
import tifffile

from benchmarks import multichannel
from benchmarks.harness import deep_images
from byol_jax.data import open_dataset


def made(make, count):
    parts = make(count, seed=3)
    assert len(parts.train) == count * 3 // 4
    return np.concatenate([parts.train, parts.test]), np.concatenate([parts.train_labels, parts.test_labels])


def test_red_green_and_blue_know_nothing_of_the_group():
    images, labels = made(deep_images.bands, 600)
    assert (images.shape, images.dtype) == ((600, 24, 24, 13), np.uint16)
    bright = np.sort(images.reshape(600, -1, 13), axis=1)[:, -40:].mean(axis=1) - np.median(images, axis=(1, 2))
    by_group = np.stack([bright[labels % 3 == group].mean(axis=0) for group in range(3)])  # [3, 13]
    for group, members in enumerate(deep_images.GROUPS):
        for band in members:
            others = np.delete(by_group[:, band], group)
            assert by_group[group, band] > others.max() + 300
    colours = by_group[:, deep_images.RED_GREEN_BLUE]
    assert np.ptp(colours, axis=0).max() < 200
    assert set(labels) == set(range(9))


def test_the_upper_8_bits_know_nothing_of_the_stripes():
    images, labels = made(deep_images.cells, 600)
    cut = images >> 8
    quiet = cut[images < 5000]
    assert set(np.unique(quiet)) == {1, 2}  # background and cell, one step each
    deviation = np.array([image[image > 512].std() for image in np.minimum(images, 800)])
    assert deviation[labels % 3 < 2].min() > deviation[labels % 3 == 2].max()


def test_the_files_hold_the_images_and_are_read_without_a_resize(tmp_path):
    for make, channels in ((deep_images.bands, 13), (deep_images.cells, 1)):
        parts = make(40, seed=0)
        root = deep_images.write_folders(tmp_path / str(channels), parts)
        options = {"image_size": multichannel.VIEW, "num_channels": channels, "any_range": True}
        dataset = open_dataset(root / "train", with_labels=True, **options)
        order = np.argsort(parts.train_labels, kind="stable")
        np.testing.assert_array_equal(dataset.take(range(30)), parts.train[order])
        classes = np.array([int(name) for name in dataset.class_names])
        np.testing.assert_array_equal(classes[dataset.labels], parts.train_labels[order])
        (first, *_) = sorted((root / "test").glob("*/*.tif"))
        stored = tifffile.imread(first)
        np.testing.assert_array_equal(stored.reshape(24, 24, channels), parts.test[int(first.stem) :][0])


def test_tiles_of_a_scan_know_their_region_and_their_slice():
    rows, columns, slices = np.ogrid[:72, :48, :24]
    volume = np.where(rows < 48, 1000 + 100 * (rows // 24) + 10 * (columns // 24) + slices % 2, 0)  # below is air
    parts = deep_images.tiles(volume.astype(np.uint16))
    for images, labels, odd in ((parts.train, parts.train_labels, 0), (parts.test, parts.test_labels, 1)):
        assert images.shape == (len(labels), 24, 24, 1)
        assert set(labels) == {0, 1, 2, 3}  # regions in air have too few
        assert (images[:, 12, 12, 0] == 1000 + 100 * (labels // 2) + 10 * (labels % 2) + odd).all()


def test_eight_bits_of_a_scan_are_the_upper_ones_or_stretched():
    scan = np.array([0, 255, 256, 581, 1162], np.uint16)
    assert multichannel.CONTENDERS["scan: the upper 8"].cut(scan).tolist() == [0, 0, 1, 2, 4]
    stretched = multichannel.CONTENDERS["scan: 8 bits, stretched"].cut(scan)
    assert (stretched.dtype, stretched.tolist()) == (np.uint8, [0, 56, 56, 128, 255])


def test_the_table_has_means_and_every_seed():
    scores = [{"raw pixels": 0.2, "untrained": 0.4, "BYOL": byol} for byol in (0.5, 0.7)]
    runs = [{"accuracies": one, "guess": 1 / 6} for one in scores]
    row = multichannel.table({"cells: 16 bits": runs}).splitlines()[2]
    assert row == "| cells: 16 bits | 16.7 % | 20.0 % | 40.0 % | 60.0 % | 50.0, 70.0 |"


@pytest.mark.long
def test_the_command_writes_its_folder(tmp_path, capsys):
    words = ["--kind", "cells", "--steps", "1", "--seeds", "0", "--images", "320", "--out", str(tmp_path / "results")]
    assert multichannel.main(words) == 0
    shown = capsys.readouterr().out
    assert (tmp_path / "results" / "table.md").read_text() == shown
    raw = json.loads((tmp_path / "results" / "raw.json").read_text())
    assert list(raw) == ["cells: 16 bits", "cells: the upper 8"]
    for (run,) in raw.values():
        assert run["images"] == [240, 80]
        assert sum(run["embedded"]) == 80
        assert len(run["embedded"]) == 6
        assert set(run["accuracies"]) == {"raw pixels", "untrained", "BYOL"}
    assert multichannel.main(words) == 2  # nothing is written over


def test_without_nibabel_the_real_scan_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert multichannel.main(["--kind", "scan"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("the scan lies in nibabel, which is absent: pip install nibabel")
