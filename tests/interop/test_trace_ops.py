"""Every operator of the traced networks' table against torch's own: values and gradients, however the axes lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from operator_cases import CASES as PLAIN_CASES
from operator_draws import Corners, Draw, Zeros
from operator_layers import CASES as LAYER_CASES

from interop.trace.graph import Dtype
from interop.trace.ops.operator import Context
from interop.trace.ops.random import TABLE as RANDOM
from interop.trace.ops.table import OPERATORS, find
from interop.trace.values import Value, to_torch_order

pytestmark = pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8 is now deprecated:UserWarning")

CASES = PLAIN_CASES | LAYER_CASES
TOLERANCE = 1e-10  # of the largest value, in float64; measured: 3e-13 at most
LOOSER = {"hardsigmoid": 1e-7}
"""torch multiplies this gradient by 1/6 rounded to float32, in every dtype: 3e-8 measured."""

ONLY_TORCHS_BACKWARD_READS = {
    "batch norm": (0, 3, 4),
    **dict.fromkeys(("batch norm eval", "batch norm without statistics", "native group norm", "fused rms norm"), (0,)),
    **dict.fromkeys(("solve", "solve from the right"), (0,)),
    **dict.fromkeys((f"adaptive_max_pool{rank}d" for rank in (1, 2, 3)), (0,)),
    **dict.fromkeys((f"max_pool{rank}d_with_indices" for rank in (2, 3)), (0,)),
}
"""Cases whose other results nothing in a network reads."""

WITHOUT_CORNERS = (
    *("conv", "linear", "matmul", "mm", "bmm", "mv", "dot", "einsum", "lstm", "gru", "rnn"),
    *("solve", "matrix_exp", "householder"),
    "topk",  # of equal numbers torch takes any
)
"""How the names begin of the cases that are polynomials or have no value there."""

WITHOUT_GRADIENT_IN_TORCH = {"native_channel_shuffle", "copy", "scatter added", "scatter multiplied"}


@pytest.fixture(autouse=True)
def double_precision():
    """What torch makes of integers, and of numbers, is of the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def name_of(operator) -> str:
    return str(operator)


def converted(argument, order_of, changing):
    """A torch argument as an operator takes it; floating tensors are taken from `changing`, in turn."""
    if isinstance(argument, torch.Tensor):
        array = next(changing) if argument.is_floating_point() else jnp.asarray(argument.numpy())
        array = array.astype(jnp.int32) if array.dtype == jnp.int64 else array
        order = order_of(argument.ndim)
        return Value(array.transpose(order), order)
    if isinstance(argument, torch.dtype):
        return Dtype(str(argument).removeprefix("torch."))
    if isinstance(argument, list):
        return tuple(converted(part, order_of, changing) for part in argument)
    return argument


def tensors(argument):
    if isinstance(argument, torch.Tensor):
        return [argument]
    return [x for part in argument for x in tensors(part)] if isinstance(argument, list | tuple) else []


def several(result):
    return list(result) if isinstance(result, list) or type(result) is tuple else [result]


def check(case: str, seed: int, transform=lambda function: function, draw=Draw) -> None:
    operator, make, *options = CASES[case]
    kwargs = options[0] if options else {}
    arguments = make(draw(seed))
    floats = [x for x in tensors(arguments) if x.is_floating_point()]
    asked = [x.requires_grad_() for x in floats if not hasattr(x, "fixed")]
    wanted = several(operator(*arguments, **kwargs))
    read = ONLY_TORCHS_BACKWARD_READS.get(case, range(len(wanted)))
    generator = np.random.default_rng(seed)
    orders = {}

    def order_of(rank):
        return orders.setdefault(rank, tuple(int(axis) for axis in generator.permutation(rank)))

    context = Context(jnp.float64, None, None, "")
    ours = find(name_of(operator))
    assert ours is not None

    def run(arrays):
        changing = iter(arrays)
        given = [converted(argument, order_of, changing) for argument in arguments]
        results = several(ours(context, *given, **{k: converted(v, order_of, changing) for k, v in kwargs.items()}))
        return [to_torch_order(results[place]) for place in read]

    wanted = [wanted[place] for place in read]
    smooth = [tensor.is_floating_point() and tensor.requires_grad for tensor in wanted]
    weights = [Draw(seed + 1).normal(*tensor.shape) for tensor in wanted]

    def run_both_ways(arrays, weights):
        """The results, and the gradients of the smooth ones' sum with these weights."""
        got, pullback = jax.vjp(run, arrays)
        cotangents = [
            weight * float(is_smooth)
            if jnp.issubdtype(result.dtype, jnp.floating)
            else np.zeros(result.shape, jax.dtypes.float0)
            for result, weight, is_smooth in zip(got, weights, smooth, strict=True)
        ]
        return got, pullback(cotangents)[0]

    arrays, factors = ([jnp.asarray(x.detach().numpy()) for x in torchs] for torchs in (floats, weights))
    got, ours_gradients = transform(run_both_ways)(arrays, factors)
    for result, tensor in zip(got, wanted, strict=True):
        assert result.shape == tuple(tensor.shape)
        assert jnp.issubdtype(result.dtype, jnp.floating) == tensor.is_floating_point()
        close(result, tensor.detach().numpy(), LOOSER.get(case, TOLERANCE))
    if any(smooth) and asked and case not in WITHOUT_GRADIENT_IN_TORCH:
        total = sum((t * w).sum() for t, w, is_smooth in zip(wanted, weights, smooth, strict=True) if is_smooth)
        gradients = iter(torch.autograd.grad(total, asked, allow_unused=True))
        for gradient, x in zip(ours_gradients, floats, strict=True):
            if x.requires_grad:
                theirs = next(gradients)
                close(
                    gradient,
                    np.zeros(gradient.shape) if theirs is None else theirs.numpy(force=True),
                    LOOSER.get(case, TOLERANCE),
                )


def close(ours, wanted, tolerance: float) -> None:
    scale = max(np.abs(wanted[np.isfinite(wanted)]).max(initial=0), 1.0) if wanted.dtype.kind == "f" else 1
    np.testing.assert_allclose(np.asarray(ours), wanted, rtol=0, atol=tolerance * scale)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_torchs(case: str) -> None:
    """Under `jit`, as networks run: there lax sees no array's value, and has a window's gradient only where it sees
    that the sum begins at zero."""
    with jax.enable_x64(True):
        check(case, 0, jax.jit)


@pytest.mark.long
@pytest.mark.parametrize("draw", [Corners, Zeros])
@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith(WITHOUT_CORNERS)])
def test_an_operator_is_torchs_at_zero_and_where_numbers_are_equal(case: str, draw) -> None:
    """There gradients are a convention: torch's is 0 for the root of a variance of 0, say, and for |0|."""
    with jax.enable_x64(True):
        check(case, 0, draw=draw)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_torchs_on_many_shapes(case: str, share, figure) -> None:
    """Operation by operation."""
    seeds = range(1, 1 + share(20))
    with jax.enable_x64(True):
        for seed in seeds:
            check(case, seed)
    if case == "conv2d":
        figure("operators against torch's", cases=len(CASES) * len(seeds), result="values and gradients within 1e-10")


def test_every_operator_has_a_case() -> None:
    """But for the random ones, sizes' arithmetic and second names of the same function."""
    tested = {id(find(name_of(operator))) for operator, *_ in CASES.values()}
    untested = {name for name, operator in OPERATORS.items() if name.startswith("aten.") and id(operator) not in tested}
    assert untested - set(RANDOM) <= WITHOUT_A_CASE, sorted(untested - set(RANDOM) - WITHOUT_A_CASE)


WITHOUT_A_CASE = {
    *("aten.sym_size", "aten.sym_numel"),  # numbers; every traced network uses them
    *("aten.empty", "aten.empty_like", "aten.new_empty", "aten.empty_permuted"),  # torch gives anything
    "aten._assert_tensor_metadata",  # gives nothing
    *("aten.detach", "aten.detach_copy"),  # tests/interop/test_trace_modules.py: a matter of gradients
}
