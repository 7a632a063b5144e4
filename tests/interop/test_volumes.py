"""Volumes: a traced Conv3d trained on an array [N, D, H, W, C] by `pretrain`, embedded, and given back to torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byol_jax
import interop
from byol_jax import evaluate
from byol_jax.data import open_dataset
from byol_jax.errors import ConfigurationError, DataError

SHAPE = (4, 8, 6, 2)
"""Of one volume as the network takes it; those of the array are longer."""


def volumes(count=12, shape=(5, 8, 6, 2)):
    return np.random.default_rng(0).integers(0, 4096, (count, *shape), np.uint16)


def views(key, volume):
    first = jax.random.randint(key, (), 0, 2, jnp.int32)
    return jax.lax.dynamic_slice_in_dim(volume, first, SHAPE[0])


@pytest.mark.slow
def test_a_traced_network_of_volumes_is_trained_embedded_and_given_back(tmp_path):
    torch = pytest.importorskip("torch")

    class Volumes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            layers = torch.nn.Conv3d(2, 4, 3, stride=2, padding=1), torch.nn.BatchNorm3d(4), torch.nn.ReLU()
            self.layers = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten())

        def forward(self, x):
            return self.layers(x.movedim(-1, 1))

    torch.manual_seed(0)
    module = Volumes()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    encoder = interop.from_torch_module(module, example_input=torch.zeros(2, *SHAPE))
    options = {"image_size": SHAPE, "hidden_layer": -1, "augment_fn": views, "value_range": ((0, 0), (4095, 2000))}
    options |= {"projection_size": 4, "projection_hidden_size": 8}
    run = {"out": tmp_path / "run", "steps": 3, "batch_size": 8, "progress": False}
    state = byol_jax.pretrain(encoder, volumes(), **run, **options)
    log = (tmp_path / "run" / "train.log").read_text()
    assert "done: 3 steps" in log
    assert int(state.step) == 3
    learner = byol_jax.make_learner(encoder, **options)
    cut = volumes()[:, : SHAPE[0]]
    features = evaluate.extract(lambda batch: learner.embed(state, batch), cut, batch_size=5)
    interop.update_torch_module(module, byol_jax.encoder_variables(state))
    assert not torch.equal(module.state_dict()["layers.0.weight"], before["layers.0.weight"])
    inputs = np.clip(cut / np.array([4095, 2000]), 0, 1).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(features, module.eval()(torch.from_numpy(inputs)).numpy(), atol=1e-5)
    again = byol_jax.pretrain(encoder, volumes(), **run, resume=True, **options)
    assert int(again.step) == 3


def test_an_array_of_volumes_is_checked():
    dataset = open_dataset(volumes(), image_size=SHAPE, num_channels=3, any_range=True)
    assert (dataset.image_shape, dataset.dtype, len(dataset)) == ((5, 8, 6, 2), "uint16", 12)
    np.testing.assert_array_equal(dataset.take([3, 0]), volumes()[[3, 0]])
    for wrong, words in (
        (volumes()[0], "expected \\[N, …, …, …, 2\\] for inputs of shape"),
        (volumes(shape=(5, 8, 6, 3)), "channels last"),
        (volumes().astype(np.float32), "expected floats in \\[0, 1\\]"),
        (volumes(0), "shape \\(0, 5, 8, 6, 2\\)"),
    ):
        with pytest.raises(DataError, match=words):
            open_dataset(wrong, image_size=SHAPE)
    with pytest.raises(DataError, match="volumes go with their whole shape, image_size="):
        open_dataset(volumes())


def test_a_whole_shape_is_for_arrays_alone(tmp_path):
    with pytest.raises(ConfigurationError, match="a whole input shape is for arrays"):
        open_dataset(tmp_path, image_size=SHAPE)
    with pytest.raises(ConfigurationError, match="fashion-mnist has its own"):
        open_dataset("fashion-mnist", image_size=SHAPE)
