"""One graph holds for every size of the batch, or for those that torch advises; other sizes are traced as they come."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from traced_comparison import check_the_same, numbers

from byol_jax import ConfigurationError, pretrain
from byol_jax.errors import UnsupportedModuleError
from interop import check, from_torch_module, load_network, save_network
from interop.trace.export import ANY_SIZE


@pytest.fixture(autouse=True)
def in_double_precision():
    torch.manual_seed(0)
    with jax.enable_x64(True):
        yield


class Mixing(nn.Module):
    """A linear layer with batch norm, and a function of its output [N, 8] that looks at other inputs of the batch."""

    def __init__(self, mix):
        super().__init__()
        self.linear, self.norm, self.mix = nn.Linear(48, 8), nn.BatchNorm1d(8), mix

    def forward(self, x):
        return self.mix(self.norm(self.linear(x.flatten(1))))


def one_by_one(y):
    return torch.stack([row.softmax(0) * (place + 1) for place, row in enumerate(y)])


def each_with_its_best(y):
    """The mean of an input's three most alike: topk, and gather with an expanded index."""
    places = (y @ y.T).topk(3, dim=1).indices  # [N, 3]
    return y[None].expand(y.shape[0], -1, -1).gather(1, places[:, :, None].expand(-1, -1, 8)).mean(1)


def spread_of_groups(y):
    """The minibatch deviation of a discriminator: groups of four, or the batch where it is smaller."""
    group = min(4, y.shape[0])
    spread = y.view(group, -1, 8).std(0, correction=0).mean(1)  # [N / group]
    return torch.cat([y, spread.repeat(group)[:, None]], 1)


ANY, ALONE = ANY_SIZE, range(2, ANY_SIZE.stop)
KINDS = {
    "similarities by einsum": (lambda y: torch.einsum("nd,md->nm", y, y).softmax(1) @ y, ANY, (2, 5)),
    "rolled along the batch": (lambda y: y + y.roll(1, 0).flip(0), ANY, (3, 4)),
    "divided by the batch's size": (lambda y: y / y.shape[0], ANY, (2, 7)),
    "three most alike": (each_with_its_best, range(3, ANY.stop), (3, 5)),
    "another from five on": (lambda y: 2 * y if y.shape[0] > 4 else y.sin(), range(5, ANY.stop), (2, 4, 5, 6)),
    "pairs": (lambda y: y.view(-1, 2, 8).mean(1).repeat_interleave(2, 0), range(4, ANY.stop, 2), (2, 4, 6)),
    "groups of four": (spread_of_groups, range(8, ANY.stop, 4), (2, 3, 4, 8, 12)),
    "divided by its root": (lambda y: y / math.sqrt(y.shape[0]), range(2, 3), (2, 3)),
    "norm of groups of four": (lambda y: torch.cat([part - part.mean(0) for part in y.split(4)]), None, (2, 3, 6)),
    "one by one": (one_by_one, range(2, 3), (2, 3, 4)),
    "two halves": (lambda y: torch.cat([sum(y.chunk(2)), y.chunk(2)[0] * y.chunk(2)[1]]), range(2, 3), (2, 4)),
    "recurrent along the batch": (
        lambda y: y.cumsum(0) + y.topk(min(3, y.shape[0]), dim=0).values.sum(0),
        None,
        (2, 4),
    ),
}
"""A function of [N, 8], the sizes that one graph holds for (None: whatever torch finds), sizes to compare."""


def check_batches(name: str) -> int:
    mix, sizes, batches = KINDS[name]
    module = Mixing(mix).double()
    assert check(module, image_size=4).supported
    encoder = from_torch_module(module, image_size=4, verify=False)
    assert sizes is None or encoder.facts.traced.traced.sizes == sizes
    for size in batches:
        for train in (True, False):
            check_the_same(module, numbers(size, 3, 4, 4), train=train, encoder=encoder)
    return len(batches)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["another from five on"])
def test_a_batch_of_any_size_is_torchs(name):
    check_batches(name)


@pytest.mark.long
def test_batches_of_any_size_are_torchs(share, figure):
    names = share([*KINDS])
    compared = sum(check_batches(name) for name in names)
    figure(
        "networks that mix the inputs of a batch: similarities, topk and gather, groups, loops",
        cases=compared,
        result="output, gradients and buffers as torch's in both modes, within 1e-9",
    )


@pytest.mark.slow
def test_a_single_input_that_the_code_takes_for_special_has_a_graph_of_its_own():
    """torch.export says that one graph holds for every batch, and never looked at a batch of one."""
    module = Mixing(lambda y: y - y.mean(0) if y.shape[0] > 1 else 3 * y).double()
    encoder = from_torch_module(module, image_size=4)
    assert encoder.facts.traced.traced.sizes == ALONE
    for size in (1, 3):
        check_the_same(module, numbers(size, 3, 4, 4), train=False, encoder=encoder)


class AloneInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 8)

    def forward(self, x):
        y = self.linear(x.flatten(1))
        return 3 * y if self.training and x.shape[0] == 1 else y


@pytest.mark.slow
def test_a_single_input_that_is_special_in_training_alone_has_a_graph_of_its_own():
    module = AloneInTraining().double()
    encoder = from_torch_module(module, image_size=4)
    assert encoder.facts.traced.traced.sizes == ALONE
    for size in (1, 3):
        check_the_same(module, numbers(size, 3, 4, 4), train=True, encoder=encoder)


def test_a_batch_norm_of_a_single_input_is_nothing_special():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten()).double()
    assert from_torch_module(module, image_size=4).facts.traced.traced.sizes == ANY


def outputs(encoder, size, train):
    images = jnp.asarray(np.random.default_rng(size).random((size, 4, 4, 3)))
    variables = encoder.init(None, (4, 4, 3))
    return encoder.apply(variables, images, train=train, hidden_layer=-1)


@pytest.mark.slow
def test_a_folder_keeps_the_sizes_that_were_met(tmp_path):
    module = Mixing(one_by_one).double()
    encoder = from_torch_module(module, image_size=4, verify=False)
    wanted = {(size, train): outputs(encoder, size, train) for size, train in ((2, True), (4, True), (3, False))}
    module.linear = nn.Identity()  # what its owner does with it later is of no consequence
    outputs(encoder, 5, False)
    save_network(tmp_path, encoder)
    assert json.loads((tmp_path / "network.json").read_text())["format"] == 2
    kept = load_network(tmp_path)
    for (size, train), want in wanted.items():
        for ours, theirs in zip(jax.tree.leaves(outputs(kept, size, train)), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ConfigurationError, match=r"kept without its module for 2, 3, 5, not for 4: take a batch"):
        outputs(kept, 4, False)
    save_network(tmp_path / "again", kept)
    assert load_network(tmp_path / "again").facts.traced.further.known.keys() == kept.facts.traced.further.known.keys()


@pytest.mark.slow
def test_a_size_that_the_module_refuses_is_refused_by_name():
    """A module of which two inputs are no example either: it takes them by threes."""
    module = Mixing(lambda y: y.view(-1, 3, 8).cumsum(1).flatten(0, 1)).double()
    encoder = from_torch_module(module, example_input=numbers(3, 48), verify=False)
    for size in (3, 6):
        check_the_same(module, numbers(size, 48), train=True, encoder=encoder)
    with pytest.raises(UnsupportedModuleError, match="invalid for input of size"):
        encoder.apply(encoder.init(None, (48,)), jnp.ones((4, 48)), train=False, hidden_layer=-1)


@pytest.mark.long(tenth=False)
def test_a_run_keeps_what_it_needs_to_go_on_without_the_module(tmp_path, figure):
    jax.config.update("jax_enable_x64", False)
    encoder = from_torch_module(Mixing(one_by_one), image_size=4, verify=False)
    images = np.random.default_rng(0).random((16, 4, 4, 3), np.float32)
    options = {"image_size": 4, "batch_size": 8, "out": tmp_path / "run", "augment_fn": lambda key, image: image}
    heads = {"projection_size": 4, "projection_hidden_size": 8, "hidden_layer": "norm"}
    pretrain(encoder, images, steps=1, **options, **heads)
    kept = load_network(tmp_path / "run" / "network")
    pretrain(kept, images, steps=2, resume=True, **options, **heads)
    assert {(True, 16), (False, 8)} <= set(kept.facts.traced.further.known)
    figure("a run of a network that is another graph for each batch", cases=1, result="goes on without its module")


class FromCentres(nn.Module):
    """Distances from learnt centres, normalised: torch has another way for more than 25 rows."""

    def __init__(self):
        super().__init__()
        self.centres, self.norm = nn.Parameter(torch.randn(5, 6)), nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(torch.cdist(x, self.centres))


def test_an_empty_batch_is_refused_by_name():
    encoder = from_torch_module(FromCentres(), example_input=torch.randn(4, 6), verify=False)
    variables = encoder.init(None, (6,))
    with pytest.raises(ConfigurationError, match=r"an empty batch: .* give one input at least"):
        encoder.apply(variables, np.zeros((0, 6), np.float32), train=False, hidden_layer=-1)
