"""Real photos, as scikit-image and scikit-learn ship them, through train, embed, export and preview.

Grey, colour, palette and alpha; JPEG, PNG, GIF and TIFF; from 24 pixels to 1,400.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import torch
from PIL import Image
from torchvision import models

from byol_jax.cli.main import main
from byol_jax.data import evaluation_images, open_dataset
from byol_jax.settings import IMAGENET_MEAN_STD

SIZE = 32
HEADS = ["--projection-size", "16", "--projection-hidden-size", "32"]


def photos() -> list[Path]:
    """Every image that the two packages ship; scikit-image's module path points at its data."""
    folders = [Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"]
    endings = {".png", ".jpg", ".jpeg", ".gif", ".tif"}
    return sorted(path for folder in folders for path in folder.iterdir() if path.suffix in endings)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    (root / "photos").mkdir()
    for path in photos():
        shutil.copy(path, root / "photos" / path.name)
    return root


def train(world: Path, network: str) -> Path:
    out = world / network
    words = ["train", world / "photos", "--out", out, "--network", network, "--image-size", SIZE]
    assert main([str(word) for word in (*words, "--batch-size", 8, "--steps", 3, *HEADS)]) == 0
    return out


@pytest.mark.slow
def test_all_photos_but_a_scientific_one_are_used(world: Path) -> None:
    assert len(photos()) >= 25
    dataset = open_dataset(world / "photos", image_size=SIZE)
    ((name, reason),) = dataset.skipped
    assert name == "multipage_rgb.tif"
    assert "float64 numbers in a folder whose images are used in uint8" in reason
    names = [name for name in dataset.names or () if "#" in name]
    assert names == ["multipage.tif#1", "multipage.tif#2"]  # of its two pages an image each
    assert len(dataset) == len(photos())
    page = (train(world, "small_cnn") / "report.html").read_text()
    assert "<svg" in page
    assert "data:image/png;base64," in page


@pytest.mark.long(tenth=False)
def test_exported_weights_give_the_embeddings_in_torchvision(world: Path) -> None:
    run = str(train(world, "resnet18"))
    assert main(["embed", run, "--data", str(world / "photos"), "--out", str(world / "f.npz")]) == 0
    assert main(["export", run, "--out", str(world / "weights.pt")]) == 0
    network = models.resnet18(weights=None)
    network.load_state_dict(torch.load(world / "weights.pt", weights_only=True), strict=True)
    until_pool = torch.nn.Sequential(*list(network.children())[:-1], torch.nn.Flatten()).eval()
    dataset = open_dataset(world / "photos", image_size=SIZE)
    images = evaluation_images(dataset, np.arange(len(dataset)), SIZE)  # [N, H, W, 3] uint8
    mean, std = (np.array(part, np.float32) for part in IMAGENET_MEAN_STD)
    pixels = torch.from_numpy((images.astype(np.float32) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = until_pool(pixels).numpy()
    with np.load(world / "f.npz") as archive:
        embeddings, names = archive["embeddings"], archive["names"]
    assert list(names) == list(dataset.names or ())
    np.testing.assert_allclose(embeddings, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
def test_preview_shows_them(world: Path) -> None:
    assert main(["preview", str(world / "photos"), "--out", str(world / "views.png"), "--image-size", "64"]) == 0
    with Image.open(world / "views.png") as picture:
        assert picture.width > 300
        assert len(set(picture.convert("RGB").resize((64, 64)).get_flattened_data())) > 100
