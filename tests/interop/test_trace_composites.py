"""Operators that the table lacks and torch makes of others are taken apart; those that it knows never are."""

import jax
import jax.numpy as jnp
import pytest
import torch
from torch import nn
from traced_comparison import check_the_same, numbers

import interop
from interop.trace.ops import table


class Applied(nn.Module):
    """A function of a linear layer's output, [N, 4, 4], and of a parameter, [4, 4]."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.weight = nn.Linear(48, 16), nn.Parameter(torch.randn(4, 4))
        self.function = function

    def forward(self, x):
        y = self.linear(x.flatten(1)).unflatten(1, (4, 4))
        return self.function(torch.tanh(y), self.weight).flatten(1)


ALIKE = {
    "masks": lambda y, w: torch.where(((y > 0) & (w > 0)) | ((y < -0.5) ^ (w < 0)), y * w, w),
    "second names": lambda y, w: torch.cat(
        [
            torch.multiply(y, w),
            torch.divide(y, w.exp()),
            torch.subtract(y, w, alpha=2),
            torch.absolute(y),
            torch.negative(y),
            torch.arctan(y) + torch.arccos(y / 2),
            torch.fix(3 * y) * w,
            y * torch.greater(y, w) + w * torch.less(y, w) + y * torch.not_equal(y, w),
            torch.special.expit(y),
            torch.special.softmax(y, -1),
            torch.float_power(y.exp(), 1.5),
        ],
        1,
    ),
    "stacks": lambda y, w: torch.cat(
        [
            torch.hstack([y, y * w]).flatten(1),
            torch.vstack([y, -y]).view(2, -1, 16).transpose(0, 1).flatten(1),
            torch.dstack([y, y * w]).flatten(1),
            torch.column_stack([y.flatten(1), y.flatten(1) * 2]),
            torch.fliplr(y).flatten(1),
        ],
        1,
    ),
    "products": lambda y, w: torch.cat(
        [
            torch.tensordot(y, w, dims=([2], [0])).flatten(1),
            torch.inner(y, w).flatten(1),
            torch.kron(y, w).flatten(1),
            torch.linalg.vecdot(y, w),
        ],
        1,
    ),
    "norms": lambda y, w: torch.cat(
        [
            torch.linalg.norm(y, dim=-1),
            torch.linalg.norm(y, dim=(1, 2))[:, None],
            nn.functional.pairwise_distance(y, w.expand_as(y)),
            torch.linalg.multi_dot([w, w, w]).flatten()[None] * y.flatten(1),
            torch.linalg.matrix_power(y, 3).flatten(1),
        ],
        1,
    ),
    "places": lambda y, w: torch.cat(
        [
            torch.diff(y, dim=1).flatten(1),
            torch.take_along_dim(y, y.argsort(-1), -1).flatten(1),
            torch.isclose(y, y + 1e-12).to(y.dtype).flatten(1),
            (y * w).sum_to_size(y.shape[0], 1, 4).flatten(1),
        ],
        1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALIKE)
def test_what_is_taken_apart_is_torchs(kind: str) -> None:
    torch.manual_seed(0)
    module = Applied(ALIKE[kind]).double()
    encoder = interop.from_torch_module(module, image_size=4, verify=False)
    with jax.enable_x64(True):
        check_the_same(module, numbers(3, 3, 4, 4), train=True, encoder=encoder)


def operators(module: nn.Module) -> set[str]:
    graphs = interop.from_torch_module(module, image_size=4, verify=False).facts.traced.traced
    return {node.op for node in (*graphs.train.nodes, *graphs.eval.nodes)}


@pytest.mark.slow
def test_what_the_table_knows_stays_as_it_is_beside_it() -> None:
    """`linear`, `softmax` and `einsum` are composite, too."""
    known = Applied(lambda y, w: torch.softmax(torch.einsum("nij,jk->nik", y, w), -1))
    beside = Applied(lambda y, w: torch.where((y > 0) & (w > 0), known.function(y, w), 0.0))
    assert operators(known) >= {"aten.linear.default", "aten.softmax.int", "aten.einsum.default"}
    assert "aten.bitwise_and.Tensor" in operators(beside)
    assert operators(known) - operators(beside) <= {"aten.reshape.default", "aten.flatten.using_ints"}


@pytest.mark.slow
def test_what_somebody_registered_stays_as_it_is(monkeypatch) -> None:
    monkeypatch.setattr(table, "_ADDED", {})
    module = Applied(lambda y, w: torch.kron(y, w))
    assert "aten.kron.default" not in operators(module)
    interop.register_op("aten.kron")(jnp.kron)
    assert "aten.kron.default" in operators(module)


@pytest.mark.slow
def test_what_it_is_made_of_is_named_where_that_is_unknown() -> None:
    assert interop.missing_ops(Applied(lambda y, w: torch.special.i0(y)), image_size=4) == ["aten.i0.default"]
