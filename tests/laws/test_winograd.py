"""Winograd's convolution equals XLA's in value and every derivative, and stands where it is the faster one."""

import re
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax.ops import winograd
from byol_jax.ops.conv import conv2d
from byol_jax.ops.geometry import Geometry, convolve_by_xla
from tests.laws.convolutions import (
    assert_same_derivatives,
    assert_same_gradients,
    assert_same_over_devices,
    numbers,
    program,
)

CASES = {  # size, pads
    "even": ((8, 6), ((1, 1), (1, 1))),
    "odd": ((7, 5), ((1, 1), (1, 1))),
    "one tile": ((2, 2), ((1, 1), (1, 1))),
    "one pixel": ((3, 3), ((0, 0), (0, 0))),
    "uneven pads": ((6, 9), ((0, 1), (2, 0))),
    "most padding": ((1, 2), ((2, 2), (2, 1))),
}
LAYOUTS = ("HWIO", "OIHW")


def both(case, layout, images=2):
    """Ours and XLA's, as functions of x and kernel, and the two."""
    size, pads = CASES[case]
    geometry = Geometry(size, (3, 3), (1, 1), pads, (1, 1))
    kernel = numbers(3, 3, 3, 5, seed=1)
    kernel = kernel if layout == "HWIO" else kernel.transpose(3, 2, 0, 1)
    forms = (partial(form, geometry=geometry, layout=layout) for form in (winograd.winograd_conv, convolve_by_xla))
    return *forms, numbers(images, *size, 3), kernel


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_xlas(case, layout):
    with jax.enable_x64(True):
        assert_same_gradients(*both(case, layout))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "layout"), [("odd", "HWIO"), ("uneven pads", "OIHW")])
def test_every_other_derivative_is_xlas(case, layout):
    with jax.enable_x64(True):
        assert_same_derivatives(*both(case, layout), outputs_axis=layout.index("O"))


@pytest.mark.parametrize("images", [1, 6, 7])
def test_parts_of_a_batch_are_the_batch(monkeypatch, images):
    """Three images to a part at most; of 7, one."""
    ours, wanted, x, kernel = both("even", "HWIO", images)
    monkeypatch.setattr(winograd, "_CACHED", 3 * 16 * 4 * 3 * 5 * 8)
    with jax.enable_x64(True):
        assert_same_gradients(ours, wanted, x, kernel)
        text = program(ours, "cpu", x, kernel)
    assert ("stablehlo.while" in text) == (images > 3)


def test_rounding_in_float32_is_that_of_a_plain_sum():
    """Relative to the largest number of the result: 9e-7 where XLA's own has 8e-7."""
    x, kernel = numbers(4, 8, 8, 64, dtype=np.float32), numbers(3, 3, 64, 64, seed=1, dtype=np.float32)
    geometry = Geometry((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    with jax.enable_x64(True):
        exact = np.asarray(convolve_by_xla(jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64), geometry))
    y = winograd.winograd_conv(x, kernel, geometry, "HWIO")
    assert np.abs(y - exact).max() < 2e-6 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("size", "channels", "stride", "padding", "dtype", "stands"),
    [
        ((8, 8), (64, 64), 1, 1, "float32", True),
        ((7, 7), (64, 64), 1, 1, "float32", True),
        ((2, 2), (256, 64), 1, 1, "float32", True),
        ((3, 3), (64, 64), 1, 1, "float32", False),
        ((1, 1), (64, 64), 1, 1, "float32", False),
        ((8, 8), (63, 64), 1, 1, "float32", False),
        ((8, 8), (64, 63), 1, 1, "float32", False),
        ((8, 8), (64, 64), 2, 1, "float32", False),
        ((8, 8), (64, 64), 1, 3, "float32", False),
        ((8, 8), (64, 64), 1, 1, "bfloat16", False),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_it_stands(layout, size, channels, stride, padding, dtype, stands):
    """On CPUs; no convolution of XLA's is left there. Elsewhere it is XLA's."""
    x, kernel = jnp.zeros((1, *size, channels[0]), dtype), jnp.zeros((3, 3, *channels), dtype)
    kernel = kernel if layout == "HWIO" else kernel.transpose(3, 2, 0, 1)
    convolve = partial(conv2d, stride=stride, padding=padding, layout=layout)
    assert ("tensor<16x" in program(convolve, "cpu", x, kernel)) == stands
    if stands:
        assert "stablehlo.convolution" not in program(convolve, "cpu", x, kernel)
        assert program(convolve, "tpu", x, kernel).count("stablehlo.convolution") == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_images_of_one_kernel_are_more_images(layout):
    """Under vmap the kernel isn't repeated: not one group for each image."""
    ours, _, x, kernel = both("even", layout)
    x = jnp.stack([jnp.asarray(x, jnp.float32)] * 4)
    text = program(jax.vmap(ours, (0, None)), "tpu", x, kernel.astype(np.float32))
    assert "feature_group_count = 1" in text
    assert "feature_group_count = 4" not in text.split("stablehlo.convolution")[1]


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("cached", [2**21, 1], ids=["at once", "in parts"])
def test_over_devices_it_is_the_same(monkeypatch, cached, check_vma):
    monkeypatch.setattr(winograd, "_CACHED", cached)
    with jax.enable_x64(True):
        compiled = assert_same_over_devices(*both("odd", "OIHW", 32), check_vma=check_vma)
    assert not re.search("all-gather|all-to-all|collective-permute", compiled)  # images stay where they are


def test_a_batch_that_is_empty_or_not_known_yet():
    """`jax.export` with a number of images that is left open is one program for all of them."""
    x, kernel = numbers(3, 8, 8, 64, dtype=np.float32), numbers(3, 3, 64, 64, dtype=np.float32)
    convolve = partial(conv2d, kernel=kernel, padding=1)
    assert convolve(x[:0]).shape == (0, 8, 8, 64)
    (images,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(jax.jit(convolve))(jax.ShapeDtypeStruct((images, 8, 8, 64), jnp.float32))
    np.testing.assert_allclose(exported.call(x), convolve(x), rtol=1e-5, atol=1e-4)
