"""What a module does that a graph can't hold is refused by name, and `check` says what `from_torch_module` says; what
isn't refused leaves module and process as they were."""

import random
import re
import threading
import warnings

import jax
import numpy as np
import pytest
import torch
from torch import nn
from traced_modules import Recomputed

import interop
from byol_jax.errors import UnsupportedModuleError, UnsupportedOpError
from interop.trace.ops import table


class Decides(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


class Selects(nn.Module):
    def forward(self, x):
        return x - x[x > 0].mean()


class Calls(nn.Module):
    """An operator that is known, called as it isn't."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(48, 4), function

    def forward(self, x):
        return self.function(self.linear(x.flatten(1)))


UNFORESEEN = {
    "aten.masked_fill.Scalar": lambda y: y + (y.argsort(1).masked_fill(y > 0, torch.iinfo(torch.int64).max) > 4),
    "aten.repeat_interleave.self_Tensor": lambda y: y.repeat_interleave(torch.tensor([1, 2, 0, 3]), 1, output_size=6),
}


class Prunes(nn.Module):
    """Takes two channels of three, by a mask or by whole numbers."""

    def __init__(self, by_numbers=False):
        super().__init__()
        mask = torch.tensor([True, False, True])
        self.register_buffer("kept", mask.nonzero().flatten() if by_numbers else mask)

    def forward(self, x):
        return x[:, self.kept].flatten(1)


class Counts(nn.Module):
    def forward(self, x):
        return x * torch.nonzero(x).shape[0]


class Held(nn.Module):
    """A linear layer beside a tensor that is no parameter and no buffer."""

    def __init__(self, hold, use=lambda self, y: y * self.held):
        super().__init__()
        self.linear = nn.Linear(48, 3)
        self.register_buffer("table", torch.arange(4.0))
        self.hold, self.use = hold, use
        self.held = hold(self)

    def forward(self, x):
        return self.use(self, self.linear(x.flatten(1)))


def remember(self, y):
    self.held = 0.9 * self.held + 0.1 * y.detach().mean(0)
    return y + self.held


def remember_in_place(self, y):
    self.held.mul_(0.9).add_(y.detach().mean(0))
    return y + self.held


def halve_table(self, y):
    self.table.mul_(0.5)
    return y * self.held


class SecondWeight(nn.Module):
    """A decoder whose weight is another parameter in the memory of the encoder's."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(48, 4), nn.Linear(4, 48)
        self.decode.weight = nn.Parameter(self.encode.weight.detach().t())

    def forward(self, x):
        return self.decode(self.encode(x.flatten(1)))


class ReplacedForward(nn.Module):
    """Its forward is a function that uses the module around it."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.forward = lambda x: self.features(x).flatten(1)


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have another way
        return nn.Sequential(nn.Flatten(), torch.jit.script(nn.Linear(48, 2)))


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves it to another package
        module = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)


class Expanded(nn.Module):
    """A scale for each pixel that is one number for each channel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1).expand(3, 4, 4))

    def forward(self, x):
        return (x * self.scale).flatten(1)


REFUSED = {
    r"Sequential can't be imported: 1 is a quantised Linear: import the float module": quantised,
    r"on torch's meta device, without values: weight, bias: .*assign=True": lambda: nn.Conv2d(3, 4, 3, device="meta"),
    r"Expanded can't be imported: scale is expanded, one number in several places: expand it in forward": Expanded,
    r"ReplacedForward can't be copied .*: forward is a function that uses the module itself": ReplacedForward,
    r"Sequential can't be imported: 1 was compiled by torch.jit": scripted,
    r"a/b has a slash in its name": lambda: nn.Sequential(nn.Flatten(), nn.ModuleDict({"a/b": nn.Linear(48, 2)})),
    r"a/b has a slash in its name.*rename": lambda: nn.ParameterDict({"a/b": torch.ones(2), "a": torch.ones(2)}),
    r"Sequential, in 1.0 \(Decides\): it decides by the values": lambda: nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Sequential(Decides())
    ),
    r"Sequential, in 0: it decides by the values .* aten.index": lambda: nn.Sequential(Selects()),
    r"^Prunes: it decides by the values of a mask .*: where the mask never changes index by whole numbers": Prunes,
    r"Sequential, in 0: it decides by the values .* aten.nonzero": lambda: nn.Sequential(Counts()),
    r"in 0 \(Linear\): RuntimeError": lambda: nn.Sequential(nn.Linear(5, 2)),
    r"Held reads held, which was computed from parameters": lambda: Held(lambda self: self.linear.bias.exp()),
    r"Held reads held, .* memory of linear.weight": lambda: Held(lambda self: self.linear.weight.detach()[:, 0]),
    r"Held reads held, .* memory of table": lambda: Held(lambda self: self.table[1:]),
    r"Held leaves held for its next call": lambda: Held(lambda self: torch.zeros(3), remember),
    r"held is mutated .* register it as buffer": lambda: Held(lambda self: torch.zeros(3), remember_in_place),
    r"shares its memory with another tensor": lambda: Held(lambda self: self.table[1:], halve_table),
    r"decode.weight lies in the memory of encode.weight|encode.weight lies in the memory of decode": SecondWeight,
    r"Held can't be copied .*lock.*verify=False": lambda: Held(lambda self: threading.Lock(), lambda self, y: y),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_it_is_refused_by_name_and_check_says_the_same(reason):
    module = REFUSED[reason]()
    with pytest.raises(UnsupportedModuleError, match=reason) as caught:
        interop.from_torch_module(module, image_size=4)
    assert "\n" not in str(caught.value)
    assert interop.check(module, image_size=4).problems == (str(caught.value),)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNFORESEEN)
def test_an_operator_that_is_called_as_it_isnt_written_is_named(name, monkeypatch):
    """By `check`, by shapes alone, and by whatever runs the network first."""
    monkeypatch.delenv("BYOL_JAX_VERIFY_IN_FLOAT64_ALONE", raising=False)  # where whole numbers have 64 bits too
    module = nn.Sequential(nn.Identity(), Calls(UNFORESEEN[name]))
    with pytest.raises(UnsupportedOpError, match=rf"^{name} \(in 1\) has no JAX .* interop.register_op\('{name}'\)"):
        interop.from_torch_module(module, image_size=4)
    (problem,) = interop.check(module, image_size=4).problems
    assert problem.startswith(f"{name} (in 1) has no JAX counterpart for what it is called with there")


def test_the_elements_that_dropout_kept_are_refused():
    module = nn.Sequential(nn.Identity(), Calls(lambda y: y * torch.native_dropout(y, 0.3, True)[1]))
    (problem,) = interop.check(module, image_size=4).problems
    assert "1 reads the elements that were kept (aten.native_dropout)" in problem


def test_what_is_refused_by_our_own_reading_is_traced_once(monkeypatch):
    """Another size of the batch wouldn't help, and the reason stands alone."""
    calls = []
    export = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *args, **options: calls.append(1) or export(*args, **options))
    (problem,) = interop.check(Prunes(), image_size=4).problems
    assert "torch.export can't follow" not in problem
    assert len(calls) == 1


@pytest.mark.slow
def test_a_mask_that_never_changes_is_taken_as_whole_numbers():
    encoder = interop.from_torch_module(Prunes(by_numbers=True), image_size=4)
    images = np.arange(96, dtype=np.float32).reshape(2, 4, 4, 3)
    ours, _ = encoder.apply(encoder.init(None, (4, 4, 3)), images, train=False, hidden_layer=-1)
    np.testing.assert_array_equal(ours.reshape(2, 2, 4, 4), images.transpose(0, 3, 1, 2)[:, [0, 2]])


@pytest.mark.slow
def test_a_tensor_that_nothing_changes_is_taken_as_it_is():
    """A buffer under another name follows the buffer; what was made in the constructor is a constant."""
    encoder = interop.from_torch_module(Held(lambda self: self.table, lambda self, y: y + self.held[:3]), image_size=4)
    variables = encoder.init(None, (4, 4, 3))
    images = np.zeros((1, 4, 4, 3), np.float32)
    before, after = (
        encoder.apply(variables._replace(stats={"table": table}), images, train=False, hidden_layer=-1)[0]
        for table in (variables.stats["table"], variables.stats["table"] + 1)
    )
    np.testing.assert_allclose(after - before, np.ones((1, 3)), atol=1e-6)
    assert interop.check(Held(lambda self: torch.ones(3)), image_size=4).supported


class Noisy(nn.Module):
    """Draws from three generators of the process.

    It is refused for two of them: even a draw that is thrown away, since nothing shows that it is.
    """

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(48, 3))

    def forward(self, x):
        random.random()
        np.random.rand()
        return self.net(x)


@pytest.mark.slow
@pytest.mark.parametrize("call", [interop.from_torch_module, interop.check, interop.missing_ops])
def test_no_generator_of_the_process_moves(call):
    module = Noisy()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    try:
        report = call(module, image_size=4)
    except UnsupportedModuleError as error:
        report = str(error)
    assert "decides by Python's random" in str(report)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_module_whose_forward_is_replaced_is_left_alone_and_traced_by_itself():
    module = ReplacedForward()
    with pytest.raises(UnsupportedModuleError, match="verify=False"):
        interop.from_torch_module(module, image_size=4)
    assert module.features[1].num_batches_tracked == 0
    assert all(parameter.grad is None for parameter in module.parameters())
    encoder = interop.from_torch_module(module, image_size=4, verify=False)
    ours, _ = encoder.apply(encoder.init(None, (4, 4, 3)), np.ones((2, 4, 4, 3), "f"), train=False, hidden_layer=-1)
    np.testing.assert_allclose(ours, module.eval()(torch.ones(2, 3, 4, 4)).detach(), atol=1e-5)


class Freezes(nn.Module):
    """Its own `train` freezes a layer: in both modes, or in evaluation alone."""

    def __init__(self, in_training):
        super().__init__()
        self.in_training, self.first, self.linear = in_training, nn.Linear(48, 3), nn.Linear(3, 3)

    def train(self, mode=True):
        self.first.requires_grad_(mode and not self.in_training)
        return super().train(mode)

    def forward(self, x):
        return self.linear(self.first(x.flatten(1)))


def test_what_a_train_method_freezes_gets_no_gradient_and_is_as_it_was():
    module = Freezes(in_training=True)
    encoder = interop.from_torch_module(module, image_size=4)
    assert encoder.facts.traced.frozen == {"first.weight", "first.bias"}
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.training


def test_what_a_train_method_freezes_in_one_mode_alone_is_refused():
    module = Freezes(in_training=False)
    (problem,) = interop.check(module, image_size=4).problems
    assert "Freezes freezes first.bias, first.weight in one mode alone" in problem
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.slow
def test_weights_that_are_recomputed_are_left_as_they_were():
    module, images = Recomputed(), torch.rand(2, 3, 4, 4)
    module.eval()
    before = {name: part.weight.clone() for name, part in module.named_children()}
    wanted = module(images)
    interop.from_torch_module(module, image_size=4)
    assert all(torch.equal(before[name], part.weight) for name, part in module.named_children())
    assert torch.equal(module(images), wanted)


class ReadyToQuantise(nn.Module):
    """A float network that marks its sum as one to quantise later, as torch's quantisation wants it."""

    def __init__(self):
        super().__init__()
        self.linear, self.sum = nn.Linear(4, 4), torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x):
        return self.sum.add_relu(self.linear(x), x)


def test_a_float_network_that_may_be_quantised_later_is_no_quantised_one():
    module, x = ReadyToQuantise().eval(), torch.linspace(-1, 1, 8).reshape(2, 4)
    encoder = interop.from_torch_module(module, example_input=x, verify=False)
    ours, _ = encoder.apply(encoder.init(None, (4,)), x.numpy(), train=False, hidden_layer=-1)
    np.testing.assert_allclose(ours, module(x).detach().numpy(), rtol=1e-6, atol=1e-6)


def test_a_registered_functions_own_error_is_told_as_such(monkeypatch):
    def faulty(x):
        raise ValueError("my own fault")

    monkeypatch.setattr(table, "_ADDED", {})
    interop.register_op("aten.erfinv.default")(faulty)
    module = Calls(torch.erfinv)
    (problem,) = interop.check(module, image_size=4).problems
    assert problem.endswith(": the function registered for it raised ValueError: my own fault")
    assert "aten.erfinv.default (in the network itself)" in problem


@pytest.mark.parametrize("example", [torch.ones(0, 4), torch.ones(4), np.ones((2, 4))], ids=["empty", "one", "NumPy's"])
def test_an_example_that_is_no_batch_is_refused(example):
    words = r"example_input: expected one tensor \[n, \.\.\.\] as the module takes it, with one input at least"
    for call in (interop.from_torch_module, interop.missing_ops):
        with pytest.raises(UnsupportedModuleError, match=words):
            call(nn.Linear(4, 2), example_input=example)
    (problem,) = interop.check(nn.Linear(4, 2), example_input=example).problems
    assert re.fullmatch(words, problem)


def test_a_nan_that_jax_is_to_stop_at_is_no_missing_operator():
    encoder = interop.from_torch_module(Calls(torch.log), image_size=4, verify=False)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        encoder.apply(
            encoder.init(None, (4, 4, 3)), np.full((2, 4, 4, 3), -np.inf, np.float32), train=False, hidden_layer=-1
        )
