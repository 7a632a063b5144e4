"""Modules whose numbers are a matter of convention: torch's holds, or the module is refused by name."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from traced_comparison import check_the_same, numbers

import interop
from byol_jax import encoder_variables, make_learner
from byol_jax.errors import UnsupportedOpError
from byol_jax.tree import flatten
from interop import from_torch_module


@pytest.fixture(autouse=True)
def in_double_precision():
    torch.manual_seed(0)
    with jax.enable_x64(True):
        yield


class Statistics(nn.Module):
    """Pools by mean and standard deviation."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(8, 5)

    def forward(self, x):
        spread, mean = torch.std_mean(self.conv(x), (2, 3))
        return self.head(torch.cat([mean, spread, x.std((2, 3))], 1)[:, :8])


class Seeing(nn.Module):
    """Patches see only those that aren't black; in a black image, nothing."""

    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        seen = F.max_pool2d(x.abs().sum(1, keepdim=True), 4).flatten(1) > 0
        mask = seen[:, None, :].expand(-1, tokens.shape[1], -1)
        return self.head(F.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=mask).mean(1))


class Written(nn.Module):
    """Writes numbers where a mask says so: of the image, and of a buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(192, 6)
        self.register_buffer("kept", torch.tensor([True, False] * 3))

    def forward(self, x):
        z = self.linear(x.flatten(1)).clone()
        z[z < 0] = 0.5
        z[:, self.kept] = z[:, :1]
        return z


class Chosen(nn.Module):
    """A table's rows, one of which is chosen often."""

    def __init__(self):
        super().__init__()
        self.table, self.conv = nn.Embedding(4, 5, scale_grad_by_freq=True), nn.Conv2d(3, 1, 4, 4)

    def forward(self, x):
        return self.table((self.conv(x).flatten(1) > 0.3).long()).flatten(1)


MODULES = {
    "statistics": Statistics,
    "attention": Seeing,
    "masks": Written,
    "frequent": Chosen,
    "weight norm of all": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3), dim=None), nn.Flatten()
    ),
    "old weight norm of all": lambda: nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3), dim=None), nn.Flatten()),
    **{
        f"{mode} less": lambda mode=mode: nn.Sequential(nn.Conv2d(3, 4, 1), Padded(mode), nn.Flatten())
        for mode in ("reflect", "replicate", "circular")
    },
}


class Padded(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode = mode

    def forward(self, x):
        return F.pad(x, [-2, 3, 2, -1], self.mode)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", MODULES)
def test_black_images_are_torchs_too(name):
    """One black image among five: variances of 0, rows that see nothing, all bias."""
    module = MODULES[name]().double()
    images = numbers(5, 3, 8, 8)
    images[1] = 0
    check_the_same(module, images, train=True, encoder=from_torch_module(module, image_size=8, verify=False))


class Whole(nn.Module):
    """Parameters that are whole numbers and truth values."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 6)
        self.order = nn.Parameter(torch.randperm(6), requires_grad=False)
        self.kept = nn.Parameter(torch.tensor([True, False] * 3), requires_grad=False)

    def forward(self, x):
        return self.linear(x.flatten(1))[:, self.order] * self.kept


@pytest.mark.slow
def test_parameters_that_are_not_floating_stay_as_they_are_in_training():
    module = Whole().double()
    encoder = from_torch_module(module, image_size=4)
    variables = encoder.init(None, (4, 4, 3))
    assert sorted(flatten(variables.params)) == ["linear/bias", "linear/weight"]
    learner = make_learner(encoder, image_size=4, hidden_layer=-1, projection_size=8, projection_hidden_size=8)
    state = learner.init(jax.random.key(0))
    images = np.random.default_rng(0).random((4, 4, 4, 3), np.float32)
    trained, metrics = jax.jit(learner.step)(state, images)
    assert metrics["nonfinite"] == 0
    order, kept, weight = (module.state_dict()[name].clone() for name in ("order", "kept", "linear.weight"))
    interop.update_torch_module(module, encoder_variables(trained))
    assert torch.equal(module.order, order)
    assert torch.equal(module.kept, kept)
    assert not torch.equal(module.linear.weight, weight)


class Placed(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        values, places = self.pool(x)
        return (values + places).flatten(1)


class Replaced(nn.Module):
    """A value of its own for each place that the mask, a buffer, chooses."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([True, False, True, False]))

    def forward(self, x):
        y = x.clone()
        y[:, :, :, self.mask] = torch.arange(2.0, dtype=x.dtype)
        return y.flatten(1)


class Doubly(nn.Module):
    def forward(self, x):
        y = x.clone()
        y[x.sum((1, 2, 3)) > 0, torch.tensor([0])] = 1.0
        return y.flatten(1)


REFUSED = {
    r"^1.pool reads the places of the maxima \(aten.max_pool2d_with_indices\)": lambda: Placed(
        nn.MaxPool2d(2, return_indices=True)
    ),
    r"^1.pool reads the places of the maxima \(aten.adaptive_max_pool2d\)": lambda: Placed(
        nn.AdaptiveMaxPool2d(2, return_indices=True)
    ),
    r"^1 assigns to x\[mask\] .* with a value for each place": Replaced,
    r"^1 assigns to x\[mask\] .* with a mask beside other indices": Doubly,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(reason):
    module = nn.Sequential(nn.Conv2d(3, 4, 1), REFUSED[reason]())
    with pytest.raises(UnsupportedOpError, match=reason):
        from_torch_module(module, image_size=4)
