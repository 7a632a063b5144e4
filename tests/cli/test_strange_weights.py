"""Weights with NaN on the command line: every command that reads them says so, and `embed` which rows are spoilt."""

import jax
import numpy as np
import pytest

import interop
from byol_jax import nets

NETWORK = ["--network", "small_cnn"]

pytestmark = pytest.mark.filterwarnings("default::UserWarning")


@pytest.fixture
def spoilt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = nets.small_cnn(num_classes=10)
    good = interop.encoder_state_dict(encoder, encoder.init(jax.random.key(0), (16, 16, 3)))
    good["0.weight"][0] = np.nan
    interop.save_state_dict("nan.pth", good)
    np.save("a.npy", np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8))
    return good


def test_import_says_so_and_keeps_every_bit(call, spoilt):
    answer = call("import", "nan.pth", "--out", "o.safetensors", "--image-size", "16", *NETWORK)
    assert answer.code == 0, answer.err
    assert "warning: nan.pth: no trained network has such values: 0.weight: 48 NaN of" in answer.complaint
    np.testing.assert_array_equal(interop.load_state_dict("o.safetensors")["0.weight"], spoilt["0.weight"])


@pytest.mark.slow
def test_embeddings_that_arent_finite_are_counted(call, spoilt):
    answer = call("embed", *NETWORK, "--init-from", "nan.pth", "--data", "a.npy", "--out", "o.npz")
    assert answer.code == 0, answer.err
    lines = [line for line in answer.err.splitlines() if "warning" in line]
    assert len(lines) == 2
    assert "nan.pth: no trained network has such values: 0.weight: 48 NaN" in lines[0]
    assert "5 of 5 embeddings aren't finite, the first is row 0" in lines[1]
    assert np.isnan(np.load("o.npz")["embeddings"]).any(1).all()
