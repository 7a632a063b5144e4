"""Laws of the native encoders that need no other framework."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from byol_jax import ConfigurationError, HiddenLayerNotFoundError, nets
from byol_jax.tree import flatten

TINY = {"width": 4, "num_classes": 5}


@cache
def tiny_variables():
    """Of `resnet((1, 1), **TINY)` for 3 channels: the same leaves with any stem, padding, dtype or remat."""
    return nets.resnet((1, 1), **TINY).init(jax.random.key(0), (16, 16, 3))


def images(*shape, dtype=np.float32):
    return np.random.default_rng(0).uniform(size=shape or (4, 16, 16, 3)).astype(dtype)


def size_of(encoder, image_shape=(64, 64, 3)):
    params = jax.eval_shape(partial(encoder.init, image_shape=image_shape), jax.random.key(0)).params
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_parameter_counts_of_published_networks():
    """torchvision's and DeepMind's; the latter project in every stage's first block."""
    assert size_of(nets.resnet18()) == 11_689_512
    assert size_of(nets.resnet50()) == 25_557_032
    assert size_of(nets.resnet18(num_classes=None)) == 11_176_512
    assert size_of(nets.resnet18(num_classes=None, shortcut="always", padding="same")) == 11_180_736
    assert size_of(nets.resnet50(num_classes=None, shortcut="always", padding="same")) == 23_508_032
    assert size_of(nets.resnet50_2x(num_classes=None)) == 93_907_072
    assert size_of(nets.resnet200_2x(num_classes=None, shortcut="always", padding="same")) == 250_128_512
    assert size_of(nets.wide_resnet50_2()) == 68_883_240
    assert size_of(nets.resnext101_32x8d()) == 88_791_336


def test_initialisation_is_torchvisions():
    init = partial(nets.resnet((1, 1), width=32).init, image_shape=(32, 32, 3))
    params = flatten(init(jax.random.key(0)).params)
    for name, fan_out in (("conv1", 49 * 32), ("layer1/0/conv2", 9 * 32), ("layer2/0/conv1", 9 * 64)):
        np.testing.assert_allclose(params[f"{name}/kernel"].std(), (2 / fan_out) ** 0.5, rtol=0.05)
    assert np.abs(params["fc/kernel"]).max() <= 64**-0.5
    assert all((leaf == 1).all() for name, leaf in params.items() if name.endswith("scale"))
    assert {str(leaf.dtype) for leaf in params.values()} == {"float32"}
    assert not np.array_equal(init(jax.random.key(1)).params["conv1"]["kernel"], params["conv1/kernel"])


def test_groups_divide_the_kernels_inputs_and_its_fan_out_counts_all_outputs():
    """As `torch.nn.init.kaiming_normal_` has it."""
    encoder = nets.resnet((1,), block="bottleneck", width=16, groups=2, width_per_group=128, num_classes=None)
    block = encoder.init(jax.random.key(0), (16, 16, 3)).params["layer1"]["0"]
    kernels = [block[f"conv{index}"]["kernel"] for index in (1, 2, 3)]
    assert [kernel.shape for kernel in kernels] == [(1, 1, 16, 64), (3, 3, 32, 64), (1, 1, 64, 64)]
    np.testing.assert_allclose(kernels[1].std(), (2 / (9 * 64)) ** 0.5, rtol=0.05)


def test_no_two_leaves_share_a_buffer():
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tiny_variables())]
    assert len(set(pointers)) == len(pointers), "donating the state would delete one leaf through another"


def test_without_a_classifier_the_output_is_the_pooled_map():
    encoder = nets.resnet((1, 1), width=4, num_classes=None)
    run = partial(encoder.apply, tiny_variables(), train=False)
    output, pooled = jax.jit(lambda x: [run(x, hidden_layer=layer)[0] for layer in (-1, "avgpool")])(images())
    assert encoder.hidden_layers()[-1] == "avgpool"
    assert output.shape == (4, 8)
    np.testing.assert_array_equal(output, pooled)


def test_the_cifar_stem_keeps_the_maps_size_and_its_maxpool_passes_on():
    encoder = nets.resnet((1,), stem="cifar", **TINY)
    variables = encoder.init(jax.random.key(0), (16, 16, 1))
    run = partial(encoder.apply, variables, train=True)
    names = ("relu", "maxpool")
    relu, pooled = jax.jit(lambda x: [run(x, hidden_layer=name)[0] for name in names])(images(4, 16, 16, 1))
    assert variables.params["conv1"]["kernel"].shape == (3, 3, 1, 4)
    assert relu.shape == (4, 4 * 16 * 16)
    np.testing.assert_array_equal(relu, pooled)


@pytest.mark.slow
def test_evaluation_returns_the_statistics_as_they_are_and_training_advances_all():
    encoder, variables = nets.resnet((1, 1), **TINY), tiny_variables()
    _, same = encoder.apply(variables, images(), train=False, hidden_layer="conv1")
    _, new = jax.jit(partial(encoder.apply, train=True, hidden_layer="conv1"))(variables, images())
    assert same is variables.stats
    for name, leaf in flatten(variables.stats).items():
        assert not np.array_equal(flatten(new)[name], leaf), f"{name} must advance though only conv1 was asked for"


def loss_and_gradient(encoder, variables, x, hidden_layer):
    def loss(params):
        features, stats = encoder.apply(variables._replace(params=params), x, train=True, hidden_layer=hidden_layer)
        return jnp.square(features).mean(), stats

    return jax.value_and_grad(loss, has_aux=True)(variables.params)


@pytest.mark.slow
def test_rematerialisation_changes_nothing():
    one, other = (
        jax.jit(partial(loss_and_gradient, nets.resnet((1, 1), remat=remat, **TINY), hidden_layer="layer2.0.bn1"))(
            tiny_variables(), images()
        )
        for remat in (False, True)
    )
    for plain, again in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(plain, again, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("own", [None, jnp.bfloat16])
def test_the_compute_dtype_is_the_networks_own_or_the_images(own):
    run = partial(nets.resnet((1, 1), dtype=own, **TINY).apply, train=True, hidden_layer=-1)
    given = jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.float32 if own else jnp.bfloat16)
    features, stats = jax.eval_shape(run, tiny_variables(), given)
    assert features.dtype == jnp.bfloat16
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(stats)} == {"float32", "int32"}


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
def test_synchronised_devices_are_one_batch(check_vma):
    encoder, x, variables = nets.resnet((1, 1), **TINY), images(8, 16, 16, 3), tiny_variables()

    def gradient(params, x, axis_name=None):
        def loss(params):
            y, stats = encoder.apply(
                variables._replace(params=params), x, train=True, hidden_layer=-1, axis_name=axis_name
            )
            return jnp.square(y).sum(1).mean(), stats

        if axis_name is None:
            return jax.grad(loss, has_aux=True)(params)
        gradients, stats = jax.grad(loss, has_aux=True)(jax.lax.pcast(params, axis_name, to="varying"))
        return jax.lax.pmean(gradients, axis_name), stats

    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {
        "in_specs": (PartitionSpec(), PartitionSpec("batch")),
        "out_specs": PartitionSpec(),
        "check_vma": check_vma,
    }
    sharded = jax.shard_map(partial(gradient, axis_name="batch"), mesh=mesh, **specs)
    expected, got = jax.jit(gradient)(variables.params, x), jax.jit(sharded)(variables.params, x)
    for mine, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-3, atol=1e-4 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize(
    "options",
    [
        {"block": "wide"},
        {"stem": "vit"},
        {"padding": "SAME"},
        {"shortcut": "never"},
        {"width": 0},
        {"num_classes": 0},
        {"groups": 2},
        {"width_per_group": 128},
        {"width_per_group": 0},
        {"width_per_group": 8, "width": 4, "groups": 32, "block": "bottleneck"},
    ],
)
def test_options_outside_their_choices_are_refused(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        nets.resnet((1, 1), **options)


def test_images_that_do_not_fit_are_refused_at_trace_time():
    encoder, variables = nets.resnet((1, 1), **TINY), tiny_variables()
    run = partial(encoder.apply, train=True, hidden_layer=-1)
    with pytest.raises(ConfigurationError, match=r"takes \[N, H, W, 3\]"):
        jax.eval_shape(run, variables, images(2, 16, 16, 1))
    with pytest.raises(ConfigurationError, match="batch of 2 or more"):
        jax.eval_shape(run, variables, images(1, 1, 1, 3))
    with pytest.raises(ConfigurationError, match="divide uint8"):
        jax.eval_shape(run, variables, images(2, 16, 16, 3, dtype=np.uint8))
    with pytest.raises(HiddenLayerNotFoundError, match="avgpool"):
        encoder.apply(variables, images(), train=True, hidden_layer="avgpol")
    with pytest.raises(ConfigurationError, match="height, width, channels"):
        encoder.init(jax.random.key(0), (16, 16))
