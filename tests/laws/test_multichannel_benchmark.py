"""The benchmark's images are what it says of them, and its table is the mean of what was measured."""

import json

import numpy as np
import pytest

from benchmarks import multichannel


def test_red_green_and_blue_know_nothing_of_the_group():
    images, labels = multichannel.bands(600, seed=3)
    assert (images.shape, images.dtype) == ((600, 24, 24, 13), np.uint16)
    bright = np.sort(images.reshape(600, -1, 13), axis=1)[:, -40:].mean(axis=1) - np.median(images, axis=(1, 2))
    by_group = np.stack([bright[labels % 3 == group].mean(axis=0) for group in range(3)])  # [3, 13]
    for group, members in enumerate(multichannel.GROUPS):
        for band in members:
            others = np.delete(by_group[:, band], group)
            assert by_group[group, band] > others.max() + 300
    colours = by_group[:, multichannel.RED_GREEN_BLUE]
    assert np.ptp(colours, axis=0).max() < 200
    assert set(labels) == set(range(9))


def test_the_upper_8_bits_know_nothing_of_the_stripes():
    images, labels = multichannel.cells(600, seed=3)
    cut = images >> 8
    quiet = cut[images < 5000]
    assert set(np.unique(quiet)) == {1, 2}  # background and cell, one step each
    deviation = np.array([image[image > 512].std() for image in np.minimum(images, 800)])
    assert deviation[labels % 3 < 2].min() > deviation[labels % 3 == 2].max()


def test_the_table_has_means_and_every_seed():
    runs = [{"raw pixels": 0.2, "untrained": 0.4, "BYOL": byol} for byol in (0.5, 0.7)]
    row = multichannel.table({"cells: 16 bits": runs}).splitlines()[2]
    assert row == "| cells: 16 bits | 16.7 % | 20.0 % | 40.0 % | 60.0 % | 50.0, 70.0 |"


@pytest.mark.long
def test_the_command_writes_its_folder(tmp_path, capsys):
    words = ["--steps", "1", "--seeds", "0", "--images", "320", "--out", str(tmp_path / "results")]
    assert multichannel.main(words) == 0
    shown = capsys.readouterr().out
    assert (tmp_path / "results" / "table.md").read_text() == shown
    raw = json.loads((tmp_path / "results" / "raw.json").read_text())
    assert {name: len(runs) for name, runs in raw.items()} == dict.fromkeys(multichannel.CONTENDERS, 1)
    assert multichannel.main(words) == 2  # nothing is written over
