"""Every fast form computes what the plain one computes, gradients included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from byol_jax import ConfigurationError
from byol_jax.ops.activation import gelu
from byol_jax.ops.conv import conv2d, resolve_padding
from byol_jax.ops.pool import flatten_channels_first, global_average_pool, max_pool
from tests.laws.convolutions import numbers


def values_and_gradients(functions, *arguments):
    """Of each function, with one and the same cotangent, which differs from element to element."""

    def one(function):
        y, pull = jax.vjp(function, *arguments)
        return y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return [one(function) for function in functions]


def plain_conv(x, kernel, stride, padding):
    pads = padding if padding == "SAME" else [(padding, padding)] * 2 if isinstance(padding, int) else padding
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(
    ("size", "kernel_size", "channels", "stride", "padding"),
    [
        ((8, 8), 1, 5, 1, 0),
        ((7, 9), 1, 5, 2, 0),
        ((8, 7), 1, 3, 2, "SAME"),
        ((8, 8), 1, 2, 1, 1),
        ((9, 8), 4, 1, 2, 1),
        ((8, 11), 3, 3, 1, 1),
        ((9, 8), 3, 4, 2, "SAME"),
        ((8, 9), 3, 6, 2, "SAME"),
        ((11, 8), 7, 3, 2, 3),
        ((6, 6), 3, 2, 2, ((0, 1), (2, 0))),
        ((1, 1), 3, 6, 1, 1),
        ((2, 1), 3, 6, 1, 1),
        ((2, 2), 3, 6, 2, 1),
        ((3, 2), 3, 6, 1, "SAME"),
        ((5, 4), 3, 6, 2, ((0, 2), (3, 0))),
        ((1, 1), 7, 6, 2, 3),
        ((2, 2), 2, 6, 3, ((0, 4), (4, 0))),
        ((4, 4), 3, 256, 1, 1),
    ],
)
def test_every_form_of_convolution_equals_xlas(size, kernel_size, channels, stride, padding):
    with jax.enable_x64(True):
        x, kernel = numbers(2, *size, channels), numbers(kernel_size, kernel_size, channels, 4, seed=1)
        fast = partial(conv2d, stride=stride, padding=padding)
        plain = partial(plain_conv, stride=stride, padding=padding)

        def torchs(x, kernel):
            return conv2d(x, kernel.transpose(3, 2, 0, 1), stride=stride, padding=padding, layout="OIHW")

        *ours, expected = jax.jit(partial(values_and_gradients, (fast, torchs, plain)))(x, kernel)
        for got in ours:
            for mine, wanted in zip(got, expected, strict=True):
                np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize(("kernel_size", "channels"), [(1, 3), (3, 3), (3, 8)])
def test_convolution_keeps_the_dtype(dtype, kernel_size, channels):
    x, kernel = jnp.ones((1, 6, 6, channels), dtype), jnp.ones((kernel_size, kernel_size, channels, 2), dtype)
    assert conv2d(x, kernel, padding=kernel_size // 2).dtype == dtype


def test_another_layout_is_refused():
    with pytest.raises(ConfigurationError, match='layout \'OHWI\': use "HWIO" or "OIHW"'):
        conv2d(jnp.ones((1, 4, 4, 3)), jnp.ones((2, 3, 3, 3)), layout="OHWI")


def test_same_padding_is_tensorflows_closed_form():
    assert resolve_padding((224, 224), window=(7, 7), stride=2, padding="SAME") == ((2, 3), (2, 3))
    assert resolve_padding((112, 113), window=(3, 3), stride=2, padding="SAME") == ((0, 1), (1, 1))
    assert resolve_padding((5, 5), window=(1, 1), stride=2, padding="SAME") == ((0, 0), (0, 0))
    assert conv2d(jnp.ones((1, 5, 6, 8)), jnp.ones((3, 3, 8, 2)), stride=2, padding="SAME").shape == (1, 3, 3, 2)


@pytest.mark.parametrize(
    ("shape", "kernel_shape", "padding", "message"),
    [
        ((1, 2, 2, 3), (4, 4, 3, 8), 0, "too small for a 4×4 kernel"),
        ((1, 8, 8, 3), (3, 3, 1, 8), 1, "3 channels meet"),
        ((8, 8, 3), (3, 3, 3, 8), 1, r"\[N, H, W, C\]"),
        ((1, 8, 8, 3), (3, 3, 3, 8), "VALID", "padding 'VALID'"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, kernel_shape, padding, message):
    with pytest.raises(ConfigurationError, match=message):
        conv2d(jnp.ones(shape), jnp.ones(kernel_shape), padding=padding)


def plain_max_pool(x, window, stride, padding):
    pads = resolve_padding(x.shape[1:3], window=(window, window), stride=stride, padding=padding)
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, window, window, 1), (1, stride, stride, 1), ((0, 0), *pads, (0, 0))
    )


@pytest.mark.parametrize(
    ("window", "stride", "padding", "ties"),
    [(3, 2, 1, False), (3, 2, 1, True), (3, 2, "SAME", True), (2, 2, 0, False), (2, 3, 0, True), (5, 2, 2, True)],
)
def test_max_pool_equals_reduce_window_and_its_gradient_goes_to_the_first(window, stride, padding, ties):
    with jax.enable_x64(True):
        x = numbers(2, 9, 8, 3)
        x = np.round(x) if ties else x
        fast = partial(max_pool, window=window, stride=stride, padding=padding)
        plain = partial(plain_max_pool, window=window, stride=stride, padding=padding)
        got, expected = jax.jit(partial(values_and_gradients, (fast, plain)))(x)
        for mine, wanted in zip(got, expected, strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-13)


@pytest.mark.slow
def test_max_pool_has_products_with_its_hessian():
    x, direction = numbers(2, 7, 7, 3), numbers(2, 7, 7, 3)[::-1]

    def product(pool):
        gradient = jax.grad(lambda x: jnp.sum(pool(x, 3, 2, ((1, 1), (1, 1))) ** 3))
        return jax.jvp(gradient, (x,), (direction,))[1]

    np.testing.assert_allclose(
        product(lambda x, *rest: max_pool(x, window=rest[0], stride=rest[1], padding=rest[2])),
        product(plain_max_pool),
        rtol=1e-5,
        atol=1e-5,
    )


def test_max_pool_passes_nan_on_and_refuses_what_cannot_fit():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert jnp.isnan(max_pool(x, window=2, stride=2))[0, :, :, 0].tolist() == [[True, False], [False, False]]
    with pytest.raises(ConfigurationError, match="too small for a pool"):
        max_pool(x, window=5, stride=1)
    with pytest.raises(ConfigurationError, match="less than the window"):
        max_pool(x, window=2, stride=1, padding=2)


def test_max_pool_under_shard_map_and_vmap_is_the_batchs():
    x = numbers(8, 6, 6, 2, dtype=np.float32)
    gradient = jax.grad(lambda x: jnp.sin(max_pool(x, window=3, stride=2, padding=1)).sum())
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("batch")
    expected = jax.jit(gradient)(x)
    for check_vma in (True, False):
        sharded = jax.shard_map(gradient, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
        np.testing.assert_allclose(jax.jit(sharded)(x), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(x[:, None])[:, 0], expected, atol=1e-6)


def test_global_average_pool_sums_in_float32():
    x = jnp.full((1, 64, 64, 1), 1.0009765625, jnp.float16)  # 1 + 2^-10: a float16 sum of 4,096 would stall at 2,048
    assert global_average_pool(x).dtype == jnp.float16
    assert float(global_average_pool(x)[0, 0]) == 1.0009765625


def test_flattening_is_pytorchs_order():
    x = numbers(2, 3, 4, 5)
    np.testing.assert_array_equal(
        flatten_channels_first(jnp.asarray(x)), jnp.asarray(x.transpose(0, 3, 1, 2).reshape(2, -1))
    )
    np.testing.assert_array_equal(flatten_channels_first(jnp.asarray(x[0])), jnp.asarray(x[0].reshape(3, -1)))


def test_gelu_and_its_gradient_are_torchs():
    torch = pytest.importorskip("torch")
    x = np.linspace(-12, 12, 4001)
    there = torch.tensor(x, requires_grad=True)
    torch.nn.functional.gelu(there).sum().backward()
    with jax.enable_x64(True):
        y, pull = jax.vjp(gelu, jnp.asarray(x))
        (slope,) = pull(jnp.ones_like(y))
    np.testing.assert_allclose(y, torch.nn.functional.gelu(there).detach().numpy(), rtol=0, atol=1e-15)
    np.testing.assert_allclose(slope, there.grad.numpy(), rtol=0, atol=1e-15)


def test_gelu_of_sixteen_bits_is_rounded_once():
    x = jnp.linspace(-6, 6, 801, dtype=jnp.bfloat16)
    wanted = gelu(x.astype(jnp.float32)).astype(jnp.bfloat16)
    assert gelu(x).dtype == jnp.bfloat16
    assert (gelu(x) == wanted).all()
