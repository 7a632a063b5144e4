"""A traced network's variables as its module's state dict: the very keys, in order, and nothing that isn't saved."""

from pathlib import PurePosixPath

import jax
import numpy as np
import pytest
import torch
from torch import nn
from traced_modules import Buffers, Residual, Tied
from weight_samples import assert_identical

from byol_jax import ConfigurationError, Variables, nets
from byol_jax.errors import CheckpointFormatError, StateDictMismatchError
from interop import convert_file, from_torch_module, load_network, load_state_dict, open_weights, save_network
from interop.inspect.commands import inspect_file
from interop.trace.state_dict import from_module_state_dict, to_module_state_dict


class OddNames(nn.Module):
    """Names that a native network has, and none that only torch's have."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.arange(8.0).reshape(2, 4))
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x.flatten(1)[:, :4] @ self.kernel.T * self.scale


MODULES = [Residual, Tied, Buffers, OddNames]


def both(kind):
    torch.manual_seed(0)
    module = kind()
    encoder = from_torch_module(module, image_size=4, verify=False)
    return module, encoder, encoder.init(jax.random.key(0), (4, 4, 3))


@pytest.mark.parametrize("kind", MODULES)
def test_it_is_the_modules_own(kind) -> None:
    module, encoder, variables = both(kind)
    state_dict = to_module_state_dict(encoder, variables)
    wanted = module.state_dict()
    assert list(state_dict) == list(wanted)
    for name, array in state_dict.items():
        np.testing.assert_array_equal(array, wanted[name].numpy(), strict=True)
    other = kind()
    other.load_state_dict({name: torch.from_numpy(array) for name, array in state_dict.items()}, strict=True)


@pytest.mark.parametrize("kind", MODULES)
def test_there_and_back_changes_nothing(kind) -> None:
    _, encoder, variables = both(kind)
    changed = jax.tree.map(lambda leaf: leaf + leaf.dtype.type(1), variables)
    back = from_module_state_dict(encoder, to_module_state_dict(encoder, changed), like=variables)
    saved = {leaf.replace(".", "/") for leaf, _ in encoder.facts.traced.state_dict.values()}
    for (path, ours), theirs, first in zip(
        jax.tree_util.tree_leaves_with_path(back), jax.tree.leaves(changed), jax.tree.leaves(variables), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/").partition("/")[2]
        np.testing.assert_array_equal(ours, theirs if name in saved else first, strict=True)


def test_one_name_of_a_tied_tensor_is_enough() -> None:
    _, encoder, variables = both(Tied)
    state_dict = to_module_state_dict(encoder, variables)
    given = {name: array for name, array in state_dict.items() if name.startswith("second.")}
    given["again.bias"] = state_dict["again.bias"]
    back = from_module_state_dict(encoder, given, like=variables)
    assert jax.tree.all(jax.tree.map(lambda one, other: (one == other).all(), back, variables))


def test_different_tensors_for_one_that_is_tied_are_refused() -> None:
    """Those of a module that isn't tied: either would be as wrong as the other."""
    _, encoder, variables = both(Tied)
    state_dict = to_module_state_dict(encoder, variables)
    state_dict["second.weight"] = state_dict["second.weight"] + 1
    with pytest.raises(StateDictMismatchError, match=r"1 wrong value: first\.weight \(is one tensor with second"):
        from_module_state_dict(encoder, state_dict, like=variables)
    state_dict["second.weight"] = state_dict["first.weight"] * np.float32(np.nan)
    state_dict |= {f"{name}.weight": state_dict["second.weight"].copy() for name in ("first", "again")}
    back = from_module_state_dict(encoder, state_dict, like=variables)
    np.testing.assert_array_equal(back.params["first"]["weight"], state_dict["first.weight"])


def test_everything_that_doesnt_fit_is_listed() -> None:
    _, encoder, variables = both(Residual)
    state_dict = to_module_state_dict(encoder, variables)
    del state_dict["fc.bias"]
    state_dict["conv1.weight"] = np.zeros((1, 2), np.float32)
    state_dict["other"] = np.zeros(1, np.float32)
    with pytest.raises(StateDictMismatchError) as caught:
        from_module_state_dict(encoder, state_dict, like=variables)
    for part in ("1 missing: fc.bias", "1 unexpected: other", "conv1.weight (given [1, 2], expected [8, 3, 3, 3])"):
        assert part in str(caught.value)


@pytest.mark.parametrize("kind", MODULES)
def test_a_kept_network_knows_it_too(kind, tmp_path) -> None:
    module, encoder, variables = both(kind)
    save_network(tmp_path, encoder)
    kept = load_network(tmp_path)
    assert kept.facts.traced is not None
    assert list(to_module_state_dict(kept, variables)) == list(module.state_dict())


def test_only_traced_networks_have_one() -> None:
    encoder = nets.small_cnn()
    assert encoder.facts.traced is None
    with pytest.raises(ConfigurationError, match="wasn't traced"):
        to_module_state_dict(encoder, Variables({}, {}))


class Versioned(nn.Module):
    """Keeps something in its state dict that is no tensor of its own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 3)

    def forward(self, x):
        return self.linear(x.flatten(1))

    def get_extra_state(self):
        return {"version": 2}

    def set_extra_state(self, state):
        assert state == {"version": 2}


def test_what_a_module_keeps_beside_its_tensors_is_named() -> None:
    module = nn.Sequential(Versioned())
    with pytest.warns(UserWarning, match=r"extra state, .*\(0._extra_state\).*strict=False.*update_torch_module"):
        encoder = from_torch_module(module, image_size=4, verify=False)
    weights = to_module_state_dict(encoder, encoder.init(jax.random.key(0), (4, 4, 3)))
    assert list(weights) == ["0.linear.weight", "0.linear.bias"]
    keys = module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=False)
    assert keys.missing_keys == ["0._extra_state"]


EXTRA = {
    "plain": {"version": 2},
    "tensors": {"scales": torch.ones(2)},
    "tensor": torch.ones(2),
    "object": PurePosixPath("x"),
}


@pytest.mark.filterwarnings("ignore:.*has extra state:UserWarning")
@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
def test_what_a_module_keeps_beside_its_tensors_is_left_out_of_its_file(extra, tmp_path) -> None:
    module = nn.Sequential(Versioned())
    encoder = from_torch_module(module, image_size=4, verify=False)
    variables = encoder.init(jax.random.key(0), (4, 4, 3))
    wanted = to_module_state_dict(encoder, variables)
    given = {**module.state_dict(), "0._extra_state": extra}
    torch.save({"state_dict": given, "ema": given}, tmp_path / "x.pt")
    arrays = load_state_dict(tmp_path / "x.pt", which_weights="ema")
    is_tensor = isinstance(extra, torch.Tensor)
    assert list(arrays) == list(given if is_tensor else wanted)
    for got in (
        from_module_state_dict(encoder, given, like=variables),
        open_weights(given).variables(encoder, like=variables),
        open_weights(tmp_path / "x.pt", which_weights="ema").variables(encoder, like=variables),
    ):
        assert_identical(to_module_state_dict(encoder, got), wanted)
    inspection = inspect_file(tmp_path / "x.pt")
    assert inspection["weights"]["sets"] == {"state_dict": len(arrays), "ema": len(arrays)}
    left = [] if is_tensor else [("0._extra_state", "left out")]
    assert [(one["name"], one["verdict"]) for one in inspection["would_not_convert"]] == left
    summary = convert_file(tmp_path / "x.pt", tmp_path / "x.npz", which_weights="ema")
    assert summary["left_behind"] == ["state_dict", *(name for name, _ in left)]


def test_extra_state_alone_is_no_state_dict() -> None:
    with pytest.raises(CheckpointFormatError, match=r"no state dict found in 0\._extra_state \(dict\)"):
        open_weights({"0._extra_state": {"version": 2}})
