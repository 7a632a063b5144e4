"""Heads against byol-pytorch's own classes, in float64: values, gradients, statistics."""

import warnings
from functools import partial

import jax
import numpy as np
import pytest
import torch

from byol_jax import Variables
from byol_jax.nets.heads import mlp, simplicial, simsiam_mlp
from tests.parity.torch_nets import assert_leaves_close, randomise, train_once, variables_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from byol_pytorch.byol_pytorch import MLP, NetWrapper, SimSiamMLP

INPUT, HIDDEN, OUTPUT, BATCH = 12, 20, 6, 8


def with_simplices(use_simsiam_mlp):
    wrapper = NetWrapper(
        torch.nn.Identity(),
        OUTPUT,
        HIDDEN,
        use_simsiam_mlp=use_simsiam_mlp,
        use_simplicial_embeddings=True,
        sem_num_simplices=4,
        sem_simplex_dim=3,
    )
    return wrapper._get_projector(torch.zeros(1, INPUT))


HEADS = {
    "mlp": (lambda: MLP(INPUT, OUTPUT, HIDDEN), mlp(HIDDEN, OUTPUT)),
    "simsiam": (lambda: SimSiamMLP(INPUT, OUTPUT, HIDDEN), simsiam_mlp(HIDDEN, OUTPUT)),
    "simplicial": (
        lambda: with_simplices(False),
        simplicial(mlp(HIDDEN, OUTPUT), num_simplices=4, simplex_dim=3),
    ),
    "simplicial simsiam": (
        lambda: with_simplices(True),
        simplicial(simsiam_mlp(HIDDEN, OUTPUT), num_simplices=4, simplex_dim=3),
    ),
}


def arrays(dtype=np.float64):
    generator = np.random.default_rng(0)
    return generator.standard_normal((BATCH, INPUT)).astype(dtype), generator.standard_normal((BATCH, OUTPUT))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_computes_what_byol_pytorchs_does(name):
    torch.manual_seed(0)
    build, head = HEADS[name]
    module, (x, weights) = randomise(build().double()), arrays()
    variables = variables_of(module)
    with jax.enable_x64(True):

        @jax.jit
        def both(variables, x):
            def loss(params):
                y, stats = head.apply(Variables(params, variables.stats), x, train=True)
                return (y * weights).sum(), (y, stats)

            return head.apply(variables, x, train=False), jax.value_and_grad(loss, has_aux=True)(variables.params)

        (evaluated, same), ((_, (output, stats)), gradients) = both(variables, x)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x)).numpy()
    trained = train_once(module, x, weights)
    assert_leaves_close(
        {"evaluated": evaluated, "trained": output}, {"evaluated": expected, "trained": trained.output}, 1e-12
    )
    assert_leaves_close(stats, trained.stats, 1e-12)
    assert_leaves_close(gradients, trained.gradients, 1e-10)
    assert jax.tree.all(jax.tree.map(np.array_equal, same, variables.stats))


@pytest.mark.parametrize("name", HEADS)
def test_a_heads_leaves_are_named_and_shaped_as_byol_pytorchs(name):
    build, head = HEADS[name]
    expected = variables_of(build())
    got = jax.eval_shape(lambda key: head.init(key, INPUT), jax.random.key(0))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), got) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )


def test_initialisation_is_torchs_default():
    params = mlp(512, 64).init(jax.random.key(3), 256).params
    for layer, fan_in in (("0", 256), ("3", 512)):
        for leaf in params[layer].values():
            bound = fan_in**-0.5
            assert abs(float(leaf.mean())) < 5 * bound / leaf.size**0.5
            assert 0.9 * bound < float(abs(leaf).max()) <= bound
    np.testing.assert_allclose(params["0"]["kernel"].std(), 256**-0.5 / 3**0.5, rtol=0.01)
    assert not np.array_equal(params["0"]["bias"][:64], params["3"]["bias"])


def test_bfloat16_parameters_keep_float32_statistics():
    head = simplicial(mlp(HIDDEN, OUTPUT), num_simplices=4, simplex_dim=3)
    variables = jax.eval_shape(lambda key: head.init(key, INPUT, jax.numpy.bfloat16), jax.random.key(0))
    x = jax.ShapeDtypeStruct((BATCH, INPUT), jax.numpy.bfloat16)
    y, stats = jax.eval_shape(partial(head.apply, train=True), variables, x)
    assert y.dtype == jax.numpy.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {np.dtype("float32"), np.dtype("int32")}


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="must all be positive"):
        simplicial(mlp(4, 4), temperature=0.0)
    variables = variables_of(MLP(8, 4, 4))
    with pytest.raises(ValueError, match=r"a linear layer for \[N, 8\] got \[2, 9\]"):
        mlp(4, 4).apply(variables, np.ones((2, 9), np.float32), train=False)
