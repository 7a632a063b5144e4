"""What training scripts wrap around a state dict comes off; what is ambiguous is refused with the reason."""

from collections import OrderedDict

import numpy as np
import pytest

from byol_jax.errors import CheckpointFormatError
from interop import load_state_dict, save_state_dict
from interop.formats.containers import CONTAINERS, without_wrappers

torch = pytest.importorskip("torch")

WEIGHTS = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}


def load_saved(thing, tmp_path):
    torch.save(thing, tmp_path / "x.pt")
    return load_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_are_unwrapped(container, tmp_path):
    checkpoint = {
        "epoch": 3,
        container: OrderedDict(WEIGHTS),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }
    assert list(load_saved(checkpoint, tmp_path)) == list(WEIGHTS)


def test_containers_inside_containers_and_lightning(tmp_path):
    nested = {"model": {"state_dict": {f"module.{name}": value for name, value in WEIGHTS.items()}}}
    assert list(load_saved(nested, tmp_path)) == list(WEIGHTS)
    lightning = {"state_dict": WEIGHTS, "pytorch-lightning_version": "2.6", "loops": {}, "hyper_parameters": {"a": 1}}
    assert list(load_saved(lightning, tmp_path)) == list(WEIGHTS)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["module.a", "module.b.c"], ["a", "b.c"]),
        (["module._orig_mod.a", "module._orig_mod.b"], ["a", "b"]),
        (["_orig_mod.module.a", "_orig_mod.module.b"], ["a", "b"]),
        (["layer._orig_mod.a", "b"], ["layer.a", "b"]),
        (["n_averaged", "module.a"], ["a"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["target_net.module.0.a", "target_net.module.1.a"], ["target_net.module.0.a", "target_net.module.1.a"]),
        (["_fsdp_wrapped_module.a._checkpoint_wrapped_module.b"], ["a.b"]),
        ([], []),
    ],
)
def test_wrapper_prefixes_come_off_where_all_names_share_them(keys, expected):
    numbered = {key: number for number, key in enumerate(keys)}
    stripped = without_wrappers(numbered, where="x")
    assert list(stripped) == expected
    assert all(numbered[key] == stripped[name] for key, name in zip(reversed(keys), reversed(expected), strict=False))


def test_real_wrappers_come_off(tmp_path):
    bare = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    averaged = torch.optim.swa_utils.AveragedModel(bare)
    for module in (torch.nn.DataParallel(bare), averaged):
        assert list(load_saved(module.state_dict(), tmp_path)) == list(bare.state_dict())


@pytest.mark.slow
def test_compiled_modules_come_off(tmp_path):
    bare = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    compiled = torch.compile(bare)
    for module in (compiled, torch.nn.DataParallel(compiled)):
        assert list(load_saved(module.state_dict(), tmp_path)) == list(bare.state_dict())


def test_names_that_would_collide_are_refused():
    with pytest.raises(CheckpointFormatError, match=r"occur twice: a\.b"):
        without_wrappers({"a._orig_mod.b": 1, "a.b": 2}, where="x")


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (torch.zeros(2), "holds a Tensor, not a state dict"),
        ([WEIGHTS], "holds a list"),
        ({"epoch": 1, "weights": WEIGHTS}, r"no state dict found in epoch \(int\), weights \(dict\)"),
        ({**WEIGHTS, "epoch": 1}, r"holds epoch \(int\) beside tensors"),
        ({1: torch.zeros(2)}, "names must be text"),
        ({"x": torch.zeros(2).to_sparse()}, "only dense tensors"),
        ({"x": torch.empty(2, device="meta")}, "only dense tensors"),
    ],
)
def test_what_is_no_state_dict_of_dense_tensors_is_refused(thing, words, tmp_path):
    with pytest.raises(CheckpointFormatError, match=words):
        load_saved(thing, tmp_path)


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning", "ignore:.*deprecated.*:DeprecationWarning")
def test_quantised_tensors_are_refused(tmp_path):
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointFormatError, match="only dense tensors"):
        load_saved({"x": quantised}, tmp_path)


def test_containers_of_containers_end_somewhere(tmp_path):
    thing = WEIGHTS
    for _ in range(20):
        thing = {"model": thing}
    with pytest.raises(CheckpointFormatError, match="containers inside one another"):
        load_saved(thing, tmp_path)


def test_prefixes_come_off_in_every_format(tmp_path):
    for ending in (".npz", ".safetensors"):
        save_state_dict(tmp_path / f"x{ending}", {"module.a": np.zeros(1), "module.b": np.ones(1)})
        assert sorted(load_state_dict(tmp_path / f"x{ending}")) == ["a", "b"]
