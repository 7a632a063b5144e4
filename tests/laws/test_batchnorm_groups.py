"""A batch in groups is what as many devices compute that don't average batch norm, and what each group gives alone."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from driver_runs import (
    batches,
    check_alike,
    double_and_quickly_compiled,
    initial,
    largest_difference,
    learner,
    light,
    on_host,
    spread,
    traced,
)

from byol_jax import (
    ConfigurationError,
    Variables,
    accumulate,
    from_linen,
    nets,
    parallel,
    pretrain,
    with_batchnorm_groups,
    with_online_probe,
)
from byol_jax.batchnorm_groups import check_groups
from byol_jax.runs.metrics import read_metrics
from byol_jax.views import sample_keys


def in_groups(groups: int, devices: int, **options):
    """Under `parallel.jit`: the state after the last batch and every batch's metrics."""
    mesh = parallel.make_mesh(jax.devices()[:devices])
    many = with_batchnorm_groups(learner(None, augment_fn=light, **options), groups)
    state, step, rows = parallel.replicate(initial(many), mesh), parallel.jit(many, mesh), []
    for batch in batches(uneven=True):
        state, metrics = step(state, parallel.shard(batch, mesh))
        rows.append(on_host(metrics))
    return on_host(state), rows


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, pytest.param({"views": "separate"}, marks=pytest.mark.long), {"use_momentum": False}]
)
def test_a_group_on_each_device_is_shard_map_without_synchronisation(options: dict) -> None:
    with double_and_quickly_compiled():
        given = batches(uneven=True)
        state, rows = spread("shard_map", 4, given, augment_fn=light, sync_batchnorm=False, **options)
        wanted = on_host(state), on_host(rows)
        check_alike(in_groups(4, 4, **options), wanted)
        together = spread("shard_map", 4, given, augment_fn=light, **options)[0]
        assert largest_difference(on_host(together), wanted[0]) > 1e-4, "groups make a difference here"


@pytest.mark.slow
def test_groups_are_the_same_on_any_number_of_devices() -> None:
    with double_and_quickly_compiled():
        one = in_groups(2, 1)
        check_alike(in_groups(2, 4), one)


@pytest.mark.slow
def test_a_network_sees_each_group_by_itself() -> None:
    """Against torch's batch norm, group after group, whose running statistics are averaged."""
    made = learner(None, augment_fn=light, dtype=jnp.float32, prediction_hidden_size=12)
    grouped = with_batchnorm_groups(made, 4)
    variables = made.settings.predictor.init(jax.random.key(0))
    rows = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32) * np.linspace(1, 3, 32)[:, None]
    rows = rows.astype(np.float32)
    y, stats = grouped.settings.predictor.apply(variables, jnp.asarray(rows), train=True)
    modules = []
    for part in np.split(rows, 4):
        hidden, out, norm = torch.nn.Linear(16, 12), torch.nn.Linear(12, 16), torch.nn.BatchNorm1d(12)
        with torch.no_grad():
            for layer, name in ((hidden, "0"), (out, "3")):
                layer.weight.copy_(torch.tensor(np.asarray(variables.params[name]["kernel"]).T))
                layer.bias.copy_(torch.tensor(np.asarray(variables.params[name]["bias"])))
            modules.append((out(torch.relu(norm(hidden(torch.tensor(part))))).numpy(), norm))
    np.testing.assert_allclose(y, np.concatenate([out for out, _ in modules]), atol=1e-5)
    for name, buffer in (("mean", "running_mean"), ("var", "running_var")):
        mean = np.mean([getattr(norm, buffer).numpy() for _, norm in modules], axis=0)
        np.testing.assert_allclose(stats["1"][name], mean, atol=1e-6)
    assert int(stats["1"]["num_batches_tracked"]) == 1
    (evaluated, same), (wanted, _) = (
        some.settings.predictor.apply(variables, jnp.asarray(rows), train=False) for some in (grouped, made)
    )
    np.testing.assert_array_equal(evaluated, wanted)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), same, variables.stats))


class Dropping:
    """A network that gives its images times a mask of one number each, drawn from its key."""

    @staticmethod
    def encoder():
        def apply(variables, images, *, train, hidden_layer, key=None, axis_name=None):
            del hidden_layer, axis_name
            rows = images.reshape(len(images), -1) * variables.params["scale"]
            return rows * jax.random.uniform(key, (len(images), 1), images.dtype) if train else rows, variables.stats

        def init(key, shape):
            return Variables({"scale": jnp.ones(())}, {})

        return nets.small_cnn()._replace(init=init, apply=apply, hidden_layers=lambda variables=None: ())


def test_every_group_draws_other_numbers() -> None:
    made = with_batchnorm_groups(
        learner(None, encoder=Dropping.encoder(), hidden_layer=-1, augment_fn=light, dtype=jnp.float32), 4
    )
    variables = made.settings.encoder.init(jax.random.key(0))
    images = jnp.ones((16, 16, 16, 3))
    features, _ = made.settings.encoder.apply(variables, images, train=True, key=jax.random.key(1))
    assert len(set(features[:, 0].tolist())) == 16


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linen", "traced", "remat"])
def test_any_network_can_be_in_groups(kind: str) -> None:
    """Each group's features are those that the network gives of the group alone."""
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            x = linen.Conv(4, (3, 3), strides=2, use_bias=False)(x)  # a bias there has no gradient
            return linen.BatchNorm(use_running_average=not train)(x).mean((1, 2))

    encoders = {
        "linen": lambda: from_linen(Net()),
        "traced": traced,
        "remat": lambda: nets.with_remat(nets.small_cnn((4, 8))),
    }
    made = learner(None, encoder=encoders[kind](), hidden_layer=-1, augment_fn=light, dtype=jnp.float32)
    grouped = with_batchnorm_groups(made, 4)
    variables = made.settings.encoder.init(jax.random.key(0))
    images = jnp.asarray(batches(1, uneven=True)[0] / np.float32(255), jnp.float32)

    def features(some, images):
        def total(params):
            rows, stats = some.settings.encoder.apply(Variables(params, variables.stats), images, train=True)
            return jnp.sum(jnp.sin(rows)), (rows, stats)

        (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(variables.params)
        return *found, gradient

    rows, stats, gradient = features(grouped, images)
    alone = [features(made, part) for part in jnp.split(images, 4)]
    np.testing.assert_allclose(rows, np.concatenate([part for part, _, _ in alone]), atol=1e-5)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *(part for _, part, _ in alone))
    jax.tree.map(lambda ours, wanted: np.testing.assert_allclose(ours, wanted, atol=1e-5), stats, mean)
    total = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *(part for _, _, part in alone))
    jax.tree.map(lambda ours, wanted: np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4), gradient, total)


@pytest.mark.slow
def test_devices_send_no_rows_and_a_group_waits_only_for_its_own() -> None:
    """The compiled step on four devices: sums alone are sent, and with four groups none for batch norm's statistics."""
    mesh = parallel.make_mesh(jax.devices()[:4])
    sums = {}
    for groups in (1, 2, 4):
        many = with_batchnorm_groups(learner(None, augment_fn=light, dtype=jnp.float32), groups)
        state, batch = jax.eval_shape(many.init, jax.random.key(0)), jax.ShapeDtypeStruct((16, 16, 16, 3), jnp.uint8)
        text = parallel.jit(many, mesh).lower(state, batch).compile().as_text()
        sent = re.findall(r" (all-[\w-]+|collective-permute[\w-]*|reduce-scatter[\w-]*)\(", text)
        assert set(sent) <= {"all-reduce", "all-reduce-start"}, f"{groups} groups: {set(sent)}"
        sums[groups] = len(re.findall(r"replica_groups=(\S+)", text)), len(sent)
    assert sums[4][1] < sums[1][1]


@pytest.mark.slow
def test_parts_of_a_batch_are_in_groups_too() -> None:
    """The loss of an accumulated step is the mean over parts of the grouped learner's."""
    made = learner(None, augment_fn=light, dtype=jnp.float32)
    grouped, (batch,) = with_batchnorm_groups(made, 4), batches(1, uneven=True)
    state = initial(grouped)
    keys = sample_keys(made.settings, jax.random.fold_in(state.key, state.step), len(batch))
    _, metrics = jax.jit(accumulate(grouped, 2).step)(state, batch)

    def mean_loss(some):
        loss = jax.jit(some.loss)
        return np.mean([loss(state.online.params, state, batch[part::2], keys[part::2])[0] for part in (0, 1)])

    np.testing.assert_allclose(metrics["loss"], mean_loss(grouped), rtol=1e-5)
    assert abs(mean_loss(grouped) - mean_loss(made)) > 1e-3


def test_one_group_is_the_learner_itself() -> None:
    made = learner(None, augment_fn=light, dtype=jnp.float32)
    assert with_batchnorm_groups(made, 1) is made


def test_what_can_not_be_in_groups_says_why() -> None:
    made = learner(None, augment_fn=light, dtype=jnp.float32)
    for groups in (0, -1, 2.0, True, "2"):
        with pytest.raises(ConfigurationError, match="whole number of at least 1"):
            with_batchnorm_groups(made, groups)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="mapped axis, 'devices'"):
        with_batchnorm_groups(learner(parallel.AXIS, augment_fn=light, dtype=jnp.float32), 2)
    for replaced in (accumulate(made, 2), with_online_probe(made, 3)):
        with pytest.raises(ConfigurationError, match="group first"):
            with_batchnorm_groups(replaced, 2)
    state, step = jax.eval_shape(made.init, jax.random.key(0)), with_batchnorm_groups(made, 4).step
    for count in (6, 4, 18):
        with pytest.raises(ConfigurationError, match=f"a batch of {count} can't be shared"):
            jax.eval_shape(step, state, jax.ShapeDtypeStruct((count, 16, 16, 3), jnp.uint8))
    check_groups(8, 4)


@pytest.mark.slow
def test_a_run_in_groups_says_so_and_goes_on_so(tmp_path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), np.uint8)
    sizes = {"image_size": 16, "num_channels": 1, "projection_size": 8, "projection_hidden_size": 16}
    options = sizes | {
        "batch_size": 32,
        "log_every": 1,
        "augment_fn": light,
        "progress": False,
        "out": tmp_path / "run",
    }
    encoder = nets.small_cnn((4,))
    with pytest.raises(ConfigurationError, match=r"batchnorm_group=3: expected a divisor of the number of devices, 8"):
        pretrain(encoder, images, steps=1, batchnorm_group=3, **options)
    with pytest.raises(ConfigurationError, match="8 groups: a batch of 8 can't be shared"):
        pretrain(encoder, images, steps=1, batchnorm_group=1, **options | {"batch_size": 8})
    assert not (tmp_path / "run").exists()
    pretrain(encoder, images, steps=1, batchnorm_group=2, **options)
    assert json.loads((tmp_path / "run/config.json").read_text())["batchnorm_groups"] == 4
    assert "batch norm sees 4 groups of 8 images" in (tmp_path / "run/train.log").read_text()
    with pytest.raises(ConfigurationError, match="batchnorm_groups: stored 4, given nothing"):
        pretrain(encoder, images, steps=2, resume=True, **options)
    pretrain(encoder, images, steps=2, resume=True, batchnorm_group=2, **options)
    assert [row["step"] for row in read_metrics(tmp_path / "run/metrics.jsonl")[0]] == [1, 2]
