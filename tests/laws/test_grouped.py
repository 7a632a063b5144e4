"""Grouped and depthwise convolutions equal XLA's in value and every derivative, of both orders, forward and reverse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from byol_jax import parallel
from byol_jax.errors import ConfigurationError
from byol_jax.ops.conv import conv2d
from byol_jax.ops.geometry import Geometry
from byol_jax.ops.grouped import grouped_conv
from tests.laws.convolutions import (
    assert_same_derivatives,
    assert_same_gradients,
    assert_same_over_devices,
    numbers,
    program,
)

DEPTHWISE = {  # size, taps, stride, pads, dilation, groups, channels of a group, outputs of a group
    "padded": ((8, 9), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 4, 1, 1),
    "stride": ((9, 8), (5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1), 4, 1, 1),
    "two outputs": ((7, 7), (7, 7), (1, 1), ((3, 3), (3, 3)), (1, 1), 4, 1, 2),
    "all uneven": ((11, 6), (3, 2), (3, 2), ((0, 2), (1, 0)), (1, 1), 4, 1, 1),
    "dilation": ((12, 10), (3, 3), (2, 1), ((2, 2), (2, 2)), (2, 3), 4, 1, 3),
    "common factor": ((11, 10), (3, 2), (2, 4), ((1, 0), (2, 3)), (4, 2), 4, 1, 1),
    "small map": ((2, 2), (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 4, 1, 1),
    "one pixel": ((1, 1), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 4, 1, 1),
    "many pixels": ((20, 20), (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 4, 1, 1),
    "one position": ((6, 6), (1, 1), (3, 3), ((0, 0), (0, 0)), (1, 1), 4, 1, 1),
    "pixels unseen": ((9, 9), (2, 2), (4, 3), ((0, 0), (0, 0)), (1, 1), 4, 1, 1),
}
WIDER = {
    "blocks": ((9, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 4, 5, 2),
    "one block": ((8, 9), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 3, 2, 3),
    "blocks, the last smaller": ((6, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 5, 6, 2),
    "blocks of one group": ((5, 7), (2, 3), (1, 1), ((1, 0), (0, 2)), (1, 2), 2, 20, 1),
    "products": ((8, 7), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 3, 2, 4),
    "products of few positions": ((1, 2), (3, 5), (1, 1), ((1, 1), (2, 2)), (1, 1), 2, 3, 1),
    "one position and a group's several": ((6, 6), (1, 1), (2, 1), ((0, 0), (0, 0)), (1, 1), 2, 3, 2),
    "one position, padded": ((6, 6), (1, 1), (1, 1), ((1, 0), (0, 1)), (1, 1), 2, 2, 2),
}
CASES = DEPTHWISE | WIDER


def plain(x, kernel, *, stride, padding, dilation, groups):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def both(size, taps, stride, pads, dilation, groups, channels, outputs):
    """Ours and XLA's, as functions of x and kernel, and the two."""
    options = {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups}
    x, kernel = numbers(2, *size, groups * channels), numbers(*taps, channels, groups * outputs, seed=1)
    return partial(conv2d, **options), partial(plain, **options), x, kernel


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_xlas(case):
    with jax.enable_x64(True):
        assert_same_gradients(*both(*case))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_other_derivative_is_xlas(case):
    with jax.enable_x64(True):
        assert_same_derivatives(*both(*case))


@pytest.mark.parametrize(("side", "convolutions"), [(11, 0), (13, 3)])
def test_a_depthwise_kernel_of_many_positions_is_left_to_xla(side, convolutions):
    kernel, x = jnp.ones((side, side, 1, 4)), jnp.ones((1, 8, 8, 4))
    text = program(partial(conv2d, padding=side // 2, groups=4), "cpu", x, kernel)
    assert text.count("stablehlo.convolution") == convolutions


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits_are_summed_in_thirty_two(dtype):
    """Within two roundings of the result; a sum of 49 in 16 bits would be off by more."""
    ours, _, x, kernel = both(*CASES["two outputs"])
    x, kernel = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)

    def gradients(x, kernel):
        y, pull = jax.vjp(ours, x, kernel)
        return y, *pull(jnp.ones_like(y))

    wanted = gradients(x.astype(jnp.float32), kernel.astype(jnp.float32))
    for got, exact in zip(gradients(x, kernel), wanted, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=0, atol=float(jnp.finfo(dtype).eps) * 40)


@pytest.mark.parametrize(
    ("case", "platform", "convolutions"),
    [
        ("stride", "cpu", 0),
        ("stride", "tpu", 3),
        ("products", "cpu", 0),
        ("products", "tpu", 3),
        ("blocks, the last smaller", "cpu", 9),
        ("blocks, the last smaller", "tpu", 3),
    ],
)
def test_other_platforms_get_xlas_convolution(case, platform, convolutions):
    """Three there; on a CPU none, or three for each of the three blocks."""
    ours, _, x, kernel = both(*CASES[case])
    text = program(ours, platform, x.astype(np.float32), kernel.astype(np.float32))
    assert text.count("stablehlo.convolution") == convolutions


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_no_gradient_is_summed_over_devices_of_itself(platform):
    """Under shard_map images and kernel may vary from device to device; so do their gradients."""

    def slope(x, kernel):
        return jax.grad(lambda x, kernel: (ours(x, kernel) ** 2).sum(), argnums=(0, 1))(x, kernel)

    ours, _, x, kernel = both(*CASES["blocks"])
    spread = PartitionSpec(parallel.AXIS)
    mapped = jax.shard_map(
        slope, mesh=parallel.make_mesh(jax.devices()[:2]), in_specs=(spread, spread), out_specs=spread
    )
    arrays = x.astype(np.float32), np.concatenate([kernel, kernel]).astype(np.float32)
    text = jax.jit(mapped).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.convolution" in text
    assert "all_reduce" not in text


def test_groups_that_do_not_divide_the_outputs_are_refused():
    with pytest.raises(ConfigurationError, match="5 output channels are not a multiple of 2 groups"):
        conv2d(jnp.ones((1, 4, 4, 4)), jnp.ones((1, 1, 2, 5)), groups=2)


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("case", ["stride", "blocks"])
def test_over_devices_it_is_the_same(case, check_vma):
    with jax.enable_x64(True):
        ours, plain, _, kernel = both(*CASES[case])
        x = numbers(16, 9, 8, kernel.shape[2] * 4)
        assert_same_over_devices(ours, plain, x, kernel, check_vma=check_vma)


def test_the_geometry():
    geometry = Geometry((3, 5), (2, 3), (1, 2), ((0, 0), (1, 1)), (1, 1))
    assert geometry.outputs == (2, 3)
    assert (geometry.pixels, geometry.positions) == (6, 6)
    y = grouped_conv(jnp.ones((1, 3, 5, 2)), jnp.ones((2, 3, 1, 2)), geometry, 2)
    assert y[0, :, :, 0].tolist() == [[4, 6, 4]] * 2


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_positions_that_meet_no_pixel_are_left_out(case):
    """By brute force: images of ones, and the kernel's positions whose whole window is padding."""
    geometry = Geometry(*case[:5])
    padded = np.pad(np.ones((1, *geometry.size, 1)), ((0, 0), *geometry.pads, (0, 0)))
    meet = {(a, b) for a, b in np.ndindex(*geometry.taps) if np.any(geometry.window(padded, a, b))}
    down, right = geometry.seeing
    assert meet <= {(a, b) for a in down for b in right}
    assert {a for a, _ in meet} == set(down)
    assert {b for _, b in meet} == set(right)
