"""Images of other channels than one and three on the command line: their augmentations, and weights made for colour."""

import json

import jax
import numpy as np
import pytest

import interop
from byol_jax import make_learner, nets
from byol_jax.train import run
from interop.weights.first_layer import inflate

SIZES = ["--batch-size", "8", "--projection-size", "8", "--projection-hidden-size", "16", "--steps", "1"]
SAID = "0.weight is for 3 channels, and the images have 5: repeated in turns and scaled by 3/5, as timm does"


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("five.npy", np.random.default_rng(0).integers(0, 256, (8, 8, 8, 5), np.uint8))
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")
def test_a_run_with_the_set_of_its_own_from_weights_for_three_channels(call, there):
    encoder = nets.small_cnn()
    three = interop.encoder_state_dict(encoder, encoder.init(jax.random.key(0), (8, 8, 3)))
    interop.save_state_dict("three.safetensors", three)
    words = ["--network", "small_cnn", "--init-from", "three.safetensors"]
    answer = call("train", "five.npy", "--out", "run", *words, *SIZES, "--augment", "multichannel")
    assert answer.code == 0, answer.err
    assert answer.err.count(SAID) == 1
    config = json.loads((there / "run" / "config.json").read_text())
    assert (config["learner"]["augment"], config["learner"]["num_channels"]) == ("multichannel", 5)
    start = interop.load_state_dict(there / "run" / "exported" / "start.safetensors")
    np.testing.assert_array_equal(start["0.weight"], inflate(three["0.weight"], 5))
    assert call("embed", "run", "--data", "five.npy", "--out", "own.npy").code == 0
    answer = call("embed", "--data", "five.npy", "--out", "out.npy", *words)
    assert (answer.code, np.load("own.npy").shape) == (0, np.load("out.npy").shape)
    assert SAID in answer.err
    answer = call("import", "three.safetensors", "--out", "five.safetensors", "--channels", "5", "--image-size", "8")
    assert (answer.code, answer.out) == (2, "")
    assert 'first_layer="inflate" makes 0.weight fit' in answer.complaint


@pytest.mark.long
def test_torchvisions_networks_take_any_channels(call, there):
    words = ["--network", "torchvision:squeezenet1_1", "--image-size", "32", "--hidden-layer", "features"]
    answer = call("embed", "--data", "five.npy", "--out", "out.npy", *words)
    assert answer.code == 0, answer.err
    assert np.load("out.npy").shape[0] == 8


def test_what_other_sets_leave_out_is_said():
    """In a run's log, of channels that aren't colours."""
    five, three = (make_learner(nets.small_cnn((4,)), image_size=8, num_channels=channels) for channels in (5, 3))
    assert run._said_of_channels(five, "simclr") == [
        "5 channels: simclr leaves out hue, saturation and grey; the set for such is multichannel"
    ]
    assert run._said_of_channels(five, "multichannel") == run._said_of_channels(three, "simclr") == []
