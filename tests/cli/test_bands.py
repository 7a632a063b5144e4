"""`--channels`, `--bands`, `--tiff-axes`: real files and many-banded ones, from the folder through train to embed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage
import tifffile
from PIL import Image

from byol_jax.data import open_dataset
from byol_jax.runs.reopen import open_run

RECIPE = [
    "--network",
    "small_cnn",
    "--projection-size",
    "8",
    "--projection-hidden-size",
    "16",
    "--learning-rate",
    "0.001",
]

SIZED = ["--image-size", "16", "--augment", "none"]
TWO_STEPS = [*RECIPE, *SIZED, "--batch-size", "8", "--steps", "2"]
ONE_STEP = [*TWO_STEPS[:-1], "1"]

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("always::byol_jax.data.sources.ImageWarning")]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Two classes of GeoTIFFs of five bands of int16, some pixels without data."""
    root = tmp_path_factory.mktemp("tiles")
    generator = np.random.default_rng(0)
    for number in range(16):
        data = generator.integers(-500, 9000, (24, 24, 5)).astype(np.int16)
        data[:2] = -9999
        (root / "ab"[number % 2]).mkdir(exist_ok=True)
        tifffile.imwrite(
            root / "ab"[number % 2] / f"{number:02}.tif",
            data,
            photometric="minisblack",
            planarconfig="contig",
            metadata=None,
            extratags=[(42113, "s", 0, "-9999", True)],
        )
    return root


def test_bands_from_the_folder_to_the_features(call, tiles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("train", str(tiles), "--out", "run", "--bands", "4,1", *TWO_STEPS)
    assert done.code == 0, done.err
    config = json.loads(Path("run/config.json").read_text())
    assert config["bands"] == [4, 1]
    assert (config["learner"]["num_channels"], config["data"]["dtype"]) == (2, "float32")
    low, high = config["learner"]["value_range"]
    assert all(-500 <= one <= 1000 for one in low)
    assert all(7000 <= one <= 9000 for one in high)
    log = Path("run/train.log").read_text()
    assert "16 of 16 images have gaps (NaN, infinity or a GeoTIFF's nodata), 8.3 % of all numbers" in log
    assert Path("run/views.png").is_file()
    done = call("embed", "run", "--data", str(tiles), "--out", "features.npz")
    assert done.code == 0, done.err
    with np.load("features.npz") as features:
        assert features["embeddings"].shape[0] == 16
        assert np.isfinite(features["embeddings"]).all()
    done = call("embed", "run", "--data", str(tiles), "--bands", "1", "--out", "third.npz")
    assert (done.code, "1 bands for 2 channels" in done.err) == (2, True)
    opened = open_run(Path("run"))  # as evaluate has it
    assert opened.reading({}) | {"value_range": None} == {
        "dtype": None,
        "value_range": None,
        "reading": {"bands": [4, 1]},
    }
    done = call("train", str(tiles), "--out", "run", "--bands", "1,4", *TWO_STEPS, "--resume")
    assert (done.code, "bands: stored [4, 1], given [1, 4]" in done.err) == (2, True), done.err


def test_a_preview_says_which_bands_it_draws(call, tiles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("preview", str(tiles), "--channels", "5", "--image-size", "16", "--augment", "none", "--out", "a.png")
    assert done.code == 0, done.err
    assert done.out.splitlines()[1] == "drawn: channels 1, 2, 3 of 5 as red, green, blue"
    done = call("preview", str(tiles), "--bands", "5,4,3", "--image-size", "16", "--augment", "none", "--out", "b.png")
    assert done.code == 0, done.err
    assert done.out.splitlines()[1] == "drawn: bands 5, 4, 3 as red, green, blue"
    assert "images have gaps" in done.err
    with Image.open("a.png") as one, Image.open("b.png") as other:
        assert one.size == other.size
        assert np.asarray(one).std() > 5
        assert not np.array_equal(np.asarray(one), np.asarray(other))
    done = call("preview", str(tiles), "--image-size", "16", "--out", "c.png")
    assert done.code == 2
    assert "5 channels where 3 are wanted: say --channels 5, or choose some by --bands" in done.err
    assert len(done.err.splitlines()) == 1


def copies(*paths):
    """A folder with copies of somebody's files."""
    Path("pages").mkdir()
    for number, path in enumerate(paths):
        shutil.copy(path, Path("pages") / f"{number}{path.suffix}")
    return "pages"


def go_through(call, folder, channels):
    """Preview, a step of training, and the names of what was embedded."""
    done = call("preview", folder, "--channels", channels, *SIZED, "--out", "views.png")
    assert done.code == 0, done.err
    said = done.err
    done = call("train", folder, "--out", "run", "--channels", channels, *ONE_STEP)
    assert done.code == 0, done.err
    done = call("embed", "run", "--data", folder, "--out", "features.npz")
    assert done.code == 0, done.err
    with np.load("features.npz") as features:
        assert np.isfinite(features["embeddings"]).all()
        return said, features["names"].tolist()


@pytest.mark.parametrize(("name", "channels"), [("multipage.tif", 1), ("multipage_rgb.tif", 3)])
def test_scikit_images_stacks_have_its_pages(tmp_path, monkeypatch, name, channels):
    """Real files: two pages of uint8, and two of planar RGB in float64."""
    monkeypatch.chdir(tmp_path)
    folder = copies(Path(skimage.__file__).parent / "data" / name)
    whole = tifffile.imread("pages/0.tif")
    expected = whole[..., None] if channels == 1 else np.moveaxis(whole, 1, -1)
    dataset = open_dataset(folder, num_channels=channels, any_range=True)
    np.testing.assert_array_equal(dataset.take([0, 1]), expected.astype(dataset.dtype))


def test_scikit_images_stacks_through_preview_train_and_embed(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(skimage.__file__).parent / "data" / "multipage_rgb.tif"
    said, names = go_through(call, copies(*[path] * 4), 3)
    assert "4 files read so: axes QSYX, 2 x 3 x 10 x 10; S: 3 channels, Q: 2 images; the first: '0.tif'" in said
    assert names == [f"{copy}.tif#{page}" for copy in range(4) for page in (1, 2)]


def test_pydicoms_files_through_preview_train_and_embed(call, tmp_path, monkeypatch):
    """A CT, an MR, a compressed CT, and a dose of 15 frames."""
    pydicom = pytest.importorskip("pydicom")
    monkeypatch.chdir(tmp_path)
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    files = [folder / name for name in ("CT_small.dcm", "MR_small.dcm", "693_J2KI.dcm", "rtdose.dcm")]
    said, names = go_through(call, copies(*files), 1)
    assert "1 file read so: 15 frames: as many images; the first: '3.dcm'" in said
    assert "value range" in said
    assert names == ["0.dcm", "1.dcm", "2.dcm", *(f"3.dcm#{frame}" for frame in range(1, 16))]


def test_options_that_do_not_fit_are_said_in_a_line(call, tiles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", np.zeros((16, 16, 16, 3), np.uint8))
    for words, said in (
        (["images.npy", "--bands", "3,2,1"], "--bands: only for a folder of image files"),
        ([str(tiles), "--bands", "0,1"], "--bands: '0,1' is not numbers of channels, from 1, such as 3,2,1"),
        ([str(tiles), "--bands", "1,2", "--channels", "3"], "--bands: 2 of them, and --channels 3"),
        ([str(tiles), "--tiff-axes", "XZ"], "--tiff-axes: 'XZ' is not letters of axes that become channels"),
    ):
        done = call("train", *words, "--out", "run", *TWO_STEPS)
        assert done.code == 2
        assert said in done.err
        assert len(done.err.splitlines()) == 1
        assert not Path("run").exists()
