"""A network whose own parts are called as wrappers call theirs: its files are read back, whatever wraps them."""

import itertools

import jax
import numpy as np
import pytest
import torch
from torch import nn
from weight_samples import assert_identical

import interop
from byol_jax import nets, pretrain
from byol_jax.errors import StateDictMismatchError
from interop.formats.containers import find_spellings, without_wrappers

IMAGES = np.random.default_rng(0).random((8, 8, 8, 3)).astype(np.float32)


def layers():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Holder(nn.Module):
    """What a class of one's own does: its network is `self.module`, or lies deeper; a top-level buffer counts steps."""

    def __init__(self, inner, *, steps=False):
        super().__init__()
        self.module = inner
        if steps:
            self.register_buffer("steps", torch.tensor(7))

    def forward(self, x):
        return self.module(x)


class Mixed(Holder):
    """The same, and another layer whose name begins like what stands below `module`."""

    def __init__(self):
        super().__init__(layers())
        self.after = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x):
        return self.after(self.module(x))


NETWORKS = {
    "held": lambda: Holder(layers()),
    "held twice": lambda: Holder(Holder(layers())),
    "with steps": lambda: Holder(layers(), steps=True),
    "steps inside": lambda: Holder(Holder(layers(), steps=True)),
    "mixed": Mixed,
    "parallel": lambda: nn.DataParallel(Holder(layers())),
    "compiled": lambda: torch.compile(layers()),
    "compiled inside": lambda: Holder(torch.compile(layers())),
    "bare": layers,
}

WRAPPERS = {
    "nothing": lambda names: names,
    "DataParallel": lambda names: {f"module.{name}": value for name, value in names.items()},
    "compile": lambda names: {f"_orig_mod.{name}": value for name, value in names.items()},
    "DataParallel of compile": lambda names: {f"module._orig_mod.{name}": value for name, value in names.items()},
    "average": lambda names: (
        {"n_averaged": np.int64(3) * np.ones((), np.int64)} | {f"module.{name}": value for name, value in names.items()}
    ),
}
"""A module's names as each wrapper's state dict has them."""


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_its_files_are_read_back(network, tmp_path):
    """Every value arrives where it was, the buffer too: the module loads the same state dict strictly."""
    own = {
        name: tensor.numpy() + np.asarray(0.1 * number if tensor.is_floating_point() else number, tensor.numpy().dtype)
        for number, (name, tensor) in enumerate(NETWORKS[network]().state_dict().items())
    }
    encoder = interop.from_torch_module(NETWORKS[network](), image_size=8, verify=False)
    like = encoder.init(jax.random.key(0), (8, 8, 3))
    for number, (wrapper, ending) in enumerate(itertools.product(WRAPPERS, (".safetensors", ".pt", ".npz"))):
        path = tmp_path / f"{number}{ending}"
        interop.save_state_dict(path, WRAPPERS[wrapper](own))
        for given in (path, WRAPPERS[wrapper](own), {"model": WRAPPERS[wrapper](own), "epoch": 3}):
            got = interop.open_weights(given).variables(encoder, like=like)
            assert_identical(interop.encoder_state_dict(encoder, got), own)
    bare = without_wrappers(own, where="x")  # as `convert` writes it
    if "steps" in network:
        with pytest.raises(StateDictMismatchError, match=r"1 missing: (module\.)?steps$"):
            interop.open_weights(bare).variables(encoder, like=like)
    else:
        got = interop.open_weights(bare).variables(encoder, like=like)
        assert_identical(interop.encoder_state_dict(encoder, got), own)
    below = {f"encoder_q.{name}": value for name, value in own.items()} | {"queue": np.zeros(3)}
    got = interop.open_weights(below, prefix="encoder_q").variables(encoder, like=like)
    assert_identical(interop.encoder_state_dict(encoder, got), own)


@pytest.mark.parametrize(
    "network",
    [
        pytest.param("with steps", marks=pytest.mark.long),
        pytest.param("parallel", marks=pytest.mark.long(tenth=False)),
    ],
)
def test_a_run_starts_from_what_another_run_exported(network, tmp_path):
    encoder = interop.from_torch_module(NETWORKS[network](), image_size=8, verify=False)
    options = {"image_size": 8, "steps": 1, "batch_size": 8, "hidden_layer": -1, "progress": False}
    options |= {"projection_size": 4, "projection_hidden_size": 8}
    pretrain(encoder, IMAGES, out=tmp_path / "one", **options)
    exported = tmp_path / "one/exported/encoder.safetensors"
    state = pretrain(encoder, IMAGES, out=tmp_path / "two", init_from=exported, **options)
    assert int(state.step) == 1
    kept = interop.load_network(tmp_path / "one/network")
    weights = interop.open_weights(exported)
    got = weights.variables(kept, like=kept.init(jax.random.key(0), (8, 8, 3)))
    assert_identical(interop.encoder_state_dict(kept, got), weights.network(weights.stored), ordered=False)


def test_a_stranger_is_refused_under_whatever_name():
    """A native network has no part called `module`: names are stripped as ever, and a name too many is one."""
    encoder = nets.small_cnn((4,), num_classes=3)
    variables = encoder.init(jax.random.key(1), (8, 8, 3))
    own = interop.encoder_state_dict(encoder, variables)
    for wrap in WRAPPERS.values():
        got = interop.open_weights(wrap(own)).variables(encoder, like=variables)
        assert_identical(interop.encoder_state_dict(encoder, got), own)
        with pytest.raises(StateDictMismatchError, match="1 unexpected: other"):
            interop.open_weights(wrap(own | {"other": np.zeros(1)})).variables(encoder, like=variables)


def test_the_names_by_default_are_the_stripped_ones():
    weights = interop.open_weights({"module.conv1.weight": np.zeros(3), "n_averaged": np.zeros(())})
    assert (list(weights.network()), list(weights.network(["a"]))) == (["conv1.weight"], ["conv1.weight"])
    assert list(weights.network(["module.conv1.weight"])) == ["module.conv1.weight"]
    with pytest.raises(ValueError, match="read-only"):
        weights.network(["module.conv1.weight"])["module.conv1.weight"][0] = 1


@pytest.mark.parametrize(
    "stored",
    [
        ["fc.bias"],
        ["module.fc.bias", "steps"],
        ["module._orig_mod.fc.bias", "module._orig_mod.layer._orig_mod.bias"],
        ["n_averaged", "module.module.fc.bias", "module.steps"],
        ["module.", "module.a"],
    ],
)
def test_spellings_begin_with_what_is_stored_and_reach_what_is_bare(stored):
    spellings = find_spellings(stored)
    assert spellings[0] == {name: name for name in stored}
    bare = without_wrappers({name: name for name in stored}, where="x")
    assert bare in spellings
    assert all(set(names.values()) <= set(stored) for names in spellings)
