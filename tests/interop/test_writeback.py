"""Writing variables back into a torch module: all of it or nothing, in place, everything else untouched."""

import numpy as np
import pytest

from byol_jax import Variables
from byol_jax.errors import StateDictMismatchError
from interop import to_torch_state_dict

torch = pytest.importorskip("torch")

from interop import update_torch_module  # noqa: E402


class Tied(torch.nn.Module):
    """One weight under two names, a buffer of each kind, a parameter named like a native leaf."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.scale = torch.nn.Parameter(torch.ones(4))
        self.register_buffer("grid", torch.zeros(3), persistent=False)
        self.first.bias.requires_grad_(False)


def traced(module, seed=1):
    """Variables under torch's own names, all values new; tied tensors once."""
    random = np.random.default_rng(seed)
    parts = ({}, {})
    for part, named in zip(parts, (module.named_parameters(), module.named_buffers()), strict=True):
        for name, tensor in named:
            *branches, leaf = name.split(".")
            node = part
            for branch in branches:
                node = node.setdefault(branch, {})
            node[leaf] = (
                np.asarray(seed, np.int32) if tensor.ndim == 0 else random.normal(size=tuple(tensor.shape)).astype("f")
            )
    return Variables(*parts)


def snapshot(module):
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return {name: (tensor.detach().clone(), tensor.dtype, tensor.requires_grad) for name, tensor in tensors.items()}


def assert_unchanged(module, before):
    for name, (tensor, dtype, requires_grad) in snapshot(module).items():
        assert torch.equal(tensor, before[name][0]), name
        assert (dtype, requires_grad) == before[name][1:]


def test_every_value_arrives_under_every_name_in_place():
    module = Tied()
    identities = {
        name: (id(tensor), tensor.data_ptr()) for name, tensor in module.named_parameters(remove_duplicate=False)
    }
    flags = {name: tensor.requires_grad for name, tensor in module.named_parameters()}
    variables = traced(module)
    written = update_torch_module(module, variables)
    named = dict(module.named_parameters(remove_duplicate=False))
    assert written == [*module.state_dict(), "grid"]
    for key, value in to_torch_state_dict(variables).items():
        assert np.array_equal(module.get_buffer(key) if key not in named else named[key].detach(), value), key
    assert named["second.weight"] is named["first.weight"]
    assert identities == {name: (id(tensor), tensor.data_ptr()) for name, tensor in named.items()}
    assert flags == {name: tensor.requires_grad for name, tensor in module.named_parameters()}


@pytest.mark.parametrize("mode", [True, False])
def test_the_modules_mode_and_gradients_stay(mode):
    module = Tied().train(mode)
    module.scale.grad = torch.ones(4)
    update_torch_module(module, traced(module))
    assert module.training is mode
    assert module.norm.training is mode
    assert module.scale.grad.tolist() == [1, 1, 1, 1]


def test_native_variables_of_a_torchvision_network_are_transposed():
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 3))
    kernel, matrix = np.random.default_rng(0).normal(size=(3, 3, 2, 4)), np.arange(12.0).reshape(4, 3)
    params = {
        "0": {"kernel": kernel, "bias": np.ones(4)},
        "1": {"scale": np.full(4, 2.0), "bias": np.full(4, 3.0)},
        "2": {"kernel": matrix, "bias": np.zeros(3)},
    }
    stats = {"1": {"mean": np.full(4, 4.0), "var": np.full(4, 5.0), "num_batches_tracked": np.asarray(6, np.int32)}}
    assert update_torch_module(module.double(), Variables(params, stats)) == list(module.state_dict())
    assert np.array_equal(module[0].weight.detach(), kernel.transpose(3, 2, 0, 1))
    assert np.array_equal(module[2].weight.detach(), matrix.T)
    assert [float(tensor.flatten()[0]) for tensor in module[1].state_dict().values()] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_modules_type_is_kept_and_values_are_rounded_to_it(dtype):
    module = torch.nn.Linear(3, 2, bias=False).to(dtype)
    weight = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    update_torch_module(module, Variables({"weight": weight}, {}))
    assert module.weight.dtype == dtype
    assert torch.equal(module.weight, torch.from_numpy(weight).to(dtype))


def test_every_mismatch_is_listed_and_nothing_is_written():
    module = Tied()
    before = snapshot(module)
    params, stats = traced(module)
    params["conv"]["weight"] = np.zeros((4, 2, 3, 4), np.float32)
    params["conv"]["wieght"] = np.zeros(3)
    params["norm"]["bias"] = np.zeros(4, np.int32)
    params["second"]["weight"] = params["first"]["weight"] + 1
    del params["scale"]
    stats["norm"]["num_batches_tracked"] = np.asarray(-1.5, np.float32)
    with pytest.raises(StateDictMismatchError) as caught:
        update_torch_module(module, Variables(params, stats))
    message = str(caught.value)
    for words in (
        "nothing was written",
        "1 missing: scale",
        "1 unexpected: conv/wieght",
        "1 wrong shape: conv.weight (given [4, 2, 3, 4], the module has [4, 2, 3, 3])",
        "norm.bias (int32 can't become float32)",
        "norm.num_batches_tracked (float32 can't become int64)",
        "first.weight and second.weight are one tensor, but differ",
    ):
        assert words in message
    assert_unchanged(module, before)


def test_buffers_outside_the_state_dict_may_be_missing():
    module = Tied()
    params, stats = traced(module)
    del stats["grid"]
    assert "grid" not in update_torch_module(module, Variables(params, stats))


def test_lazy_and_meta_modules_are_refused():
    for module in (torch.nn.LazyLinear(3), torch.nn.Linear(2, 3, device="meta")):
        with pytest.raises(StateDictMismatchError, match="no values yet"):
            update_torch_module(module, Variables({"weight": np.zeros((3, 2), "f"), "bias": np.zeros(3, "f")}, {}))


@pytest.mark.filterwarnings("ignore:.*lazy:UserWarning")
@pytest.mark.parametrize("call", [1, 3, 7])
@pytest.mark.parametrize("once", [True, False])
def test_a_fault_in_the_middle_leaves_the_module_as_it_was(call, once, monkeypatch):
    module = Tied()
    before, variables, calls, copy = snapshot(module), traced(module), [], torch.Tensor.copy_

    def faulty(self, *arguments, **options):
        calls.append(self)
        if len(calls) == call or (len(calls) > call and not once):
            copy(self, *arguments, **options)
            raise RuntimeError("injected")
        return copy(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "copy_", faulty)
    with pytest.raises(RuntimeError, match="injected"):
        update_torch_module(module, variables)
    monkeypatch.undo()
    assert_unchanged(module, before)
    update_torch_module(module, variables)
    assert torch.equal(module.scale, torch.from_numpy(variables.params["scale"]))


def test_a_tensor_that_is_one_number_in_several_places_is_listed_and_nothing_written():
    module = torch.nn.Linear(4, 3)
    module.weight = torch.nn.Parameter(torch.ones(3, 1).expand(3, 4))
    before = snapshot(module)
    with pytest.raises(StateDictMismatchError, match=r"1 wrong value: weight \(the module's tensor is expanded"):
        update_torch_module(module, traced(module))
    assert_unchanged(module, before)
