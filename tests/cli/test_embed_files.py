"""`embed` in every format, and with maps kept or pooled."""

import csv

import numpy as np
import pytest

pytestmark = pytest.mark.slow

WORDS = ["embed", "--network", "small_cnn", "--hidden-layer", "5", "--data", "images.npz", "--batch-size", "5"]


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    np.savez("images.npz", images=images, labels=np.arange(12) % 2)
    return tmp_path


def test_every_format_holds_the_same(call, there):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    for ending in (".npz", ".npy", ".parquet", ".csv"):
        answer = call(*WORDS, "--out", f"x{ending}")
        assert (answer.code, answer.out) == (0, f"12 x 1024: x{ending}\n"), answer.err
    with np.load("x.npz") as archive:
        assert list(archive) == ["embeddings", "labels"]
        embeddings, labels = archive["embeddings"], archive["labels"].tolist()
    np.testing.assert_array_equal(np.load("x.npy"), embeddings)
    assert (there / "x.npy.labels.txt").read_text().split() == list(map(str, labels))
    table = parquet.read_table("x.parquet")
    np.testing.assert_array_equal(np.stack(table["embedding"].to_pylist()).astype(np.float32), embeddings)
    assert table["label"].to_pylist() == labels == [0, 1] * 6
    header, *lines = csv.reader((there / "x.csv").read_text().splitlines())
    assert header[:2] == ["label", "0"]
    np.testing.assert_array_equal(np.array(lines)[:, 1:].astype(np.float32), embeddings)


def test_maps_are_kept_or_pooled(call, there):
    answer = call(*WORDS, "--out", "flat.npy")
    assert answer.code == 0, answer.err
    assert call(*WORDS, "--out", "map.npy", "--keep-map").out == "12 x 4 x 4 x 64: map.npy\n"
    assert call(*WORDS, "--out", "pooled.csv", "--pool-map").out == "12 x 64: pooled.csv\n"
    maps = np.load("map.npy")
    np.testing.assert_array_equal(maps.transpose(0, 3, 1, 2).reshape(12, -1), np.load("flat.npy"))
    pooled = np.loadtxt("pooled.csv", delimiter=",", skiprows=1, usecols=range(1, 65))
    np.testing.assert_allclose(pooled, maps.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)


def test_what_has_no_map_is_refused_before_anything_is_written(call, there):
    before = sorted(there.iterdir())
    for words, said in (
        (
            ["--hidden-layer", "-1", "--keep-map", "--out", "x.npy"],
            "--keep-map: the output gives 10 numbers an image, no",
        ),
        (["--hidden-layer", "9", "--pool-map", "--out", "new/x.npy"], "--pool-map: the layer '9' gives 512 numbers"),
        (["--keep-map", "--pool-map", "--out", "x.npy"], "--keep-map and --pool-map contradict each other"),
        (["--keep-map", "--out", "x.csv"], "--keep-map with .csv: a line holds one row of numbers"),
    ):
        answer = call(*WORDS, *words)
        assert (answer.code, answer.out) == (2, ""), answer.err
        assert said in answer.complaint
        assert sorted(there.iterdir()) == before
