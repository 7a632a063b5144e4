"""small_cnn against the PyTorch expression that it gives for itself."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
from torch import nn

from byol_jax.nets import small_cnn
from byol_jax.nets.cnn import torch_expression
from tests.parity.torch_nets import assert_leaves_close, channels_first, hooked, randomise, train_once, variables_of


def torch_module(*arguments):
    return eval(torch_expression(*arguments), {"nn": nn})


def images(channels, size, dtype=np.float64):
    return np.random.default_rng(1).standard_normal((6, *size, channels)).astype(dtype)


@pytest.mark.parametrize(("channels", "num_classes", "size"), [(1, 10, (28, 28)), (3, None, (17, 22))])
def test_forward_backward_and_statistics_are_torchs(channels, num_classes, size):
    torch.manual_seed(0)
    widths = (8, 12, 16)
    module = randomise(torch_module(widths, channels, num_classes, size).double())
    encoder, x, variables = small_cnn(widths, num_classes=num_classes), images(channels, size), variables_of(module)
    with jax.enable_x64(True):

        @jax.jit
        def both(variables, x):
            def loss(params):
                y, stats = encoder.apply(variables._replace(params=params), x, train=True, hidden_layer=-1)
                return (y * weights).sum(), (y, stats)

            evaluated, _ = encoder.apply(variables, x, train=False, hidden_layer=-1)
            return evaluated, jax.value_and_grad(loss, has_aux=True)(variables.params)

        with torch.no_grad():
            expected = module.eval()(torch.from_numpy(channels_first(x))).numpy()
        weights = np.random.default_rng(2).standard_normal(expected.shape)
        evaluated, ((_, (output, stats)), gradients) = both(variables, x)
    trained = train_once(module, channels_first(x), weights)
    assert_leaves_close(
        {"evaluated": evaluated, "trained": output}, {"evaluated": expected, "trained": trained.output}, 1e-12
    )
    assert_leaves_close(stats, trained.stats, 1e-12)
    assert_leaves_close(gradients, trained.gradients, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_every_hidden_layer_is_what_a_hook_holds(train):
    torch.manual_seed(0)
    module = randomise(torch_module((4, 6), 1, 5, 12).train(train))
    encoder, x, variables = small_cnn((4, 6), num_classes=5), images(1, (12, 12), np.float32), variables_of(module)
    expected = hooked(module, channels_first(x), encoder.hidden_layers())
    assert list(expected) == list(encoder.hidden_layers()) == [str(index) for index in range(8)]
    for name, value in expected.items():
        features, _ = encoder.apply(variables, x, train=train, hidden_layer=name)
        assert_leaves_close({name: features}, {name: value}, 1e-5)
    assert (expected["1"] < 0).any(), "the ReLU is out of place"


@pytest.mark.parametrize("num_classes", [None, 10])
def test_leaves_are_torchs(num_classes):
    expected = variables_of(torch_module((32, 64, 128), 3, num_classes, (28, 35)))
    encoder = small_cnn(num_classes=num_classes)
    got = jax.eval_shape(partial(encoder.init, image_shape=(28, 35, 3)), jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, got) == jax.tree.map(lambda leaf: leaf.shape, expected)


@pytest.mark.slow
def test_initialisation_is_he_normal_by_fan_in():
    params = small_cnn((64, 128)).init(jax.random.key(0), (28, 28, 3)).params
    np.testing.assert_allclose(params["0"]["kernel"].std(), (2 / 48) ** 0.5, rtol=0.05)
    np.testing.assert_allclose(params["3"]["kernel"].std(), (2 / 576) ** 0.5, rtol=0.02)


def test_what_does_not_fit_is_refused():
    encoder = small_cnn()
    variables = jax.eval_shape(partial(encoder.init, image_shape=(28, 28, 1)), jax.random.key(0))
    apply = partial(jax.eval_shape, partial(encoder.apply, train=False, hidden_layer=-1))
    with pytest.raises(ValueError, match=r"takes \[N, H, W, 1\]"):
        apply(variables, np.zeros((2, 28, 28, 3), np.float32))
    with pytest.raises(ValueError, match="images of another size"):
        apply(variables, np.zeros((2, 36, 36, 1), np.float32))
    with pytest.raises(ValueError, match="divide uint8 by 255"):
        apply(variables, np.zeros((2, 28, 28, 1), np.uint8))
    with pytest.raises(ValueError, match="too small"):
        encoder.init(jax.random.key(0), (1, 28, 1))
    with pytest.raises(ValueError, match="hidden layer '11' not found"):
        encoder.apply(variables, np.zeros((2, 28, 28, 1), np.float32), train=False, hidden_layer="11")
