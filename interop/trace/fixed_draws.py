"""Fixed results for everything that draws, so that two frameworks can be compared: dropout keeps all elements.

`FIXED_DRAWS` are stand-ins for `interpret`'s operators; `fixed_draws` does the same in torch.
"""

from typing import Any

import jax
import jax.numpy as jnp

from interop.trace.ops.linear import attention
from interop.trace.ops.operator import Context, Operator
from interop.trace.ops.random import DROPPED, draw, draw_like
from interop.trace.ops.recurrent import recurrent_operators
from interop.trace.values import Value, from_torch_order

__all__ = ["FIXED_DRAWS", "fixed_draws"]

DRAW = 0.5
"""What every uniform or normal number is."""


def _keep_elements(context: Context, x: jax.Array, rate: float) -> jax.Array:
    """`random.drop_elements`, where all are kept."""
    return x / (1 - rate) if rate < 1 else x


def _dropout(context: Context, x: Value, p: float, train: bool | None = True) -> Value:
    return Value(_keep_elements(context, x.array, p), x.order) if train else x


def _bernoulli(context: Context, x: Value, p: Any = None, **options: Any) -> Value:
    return Value(jnp.full(x.array.shape, 0.0 if p == 0 else 1.0, x.dtype), x.order)


def _fixed_numbers(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.full(shape, DRAW, dtype)


def _fill(context: Context, x: Value, *rest: Any, **options: Any) -> Value:
    return Value(jnp.full(x.array.shape, DRAW, x.dtype), x.order)


FIXED_DRAWS: dict[str, Operator] = {
    "aten.dropout": _dropout,
    "aten.native_dropout": lambda context, x, p, train: (_dropout(context, x, p, train), DROPPED),
    "aten.scaled_dot_product_attention": attention(_keep_elements),
    **recurrent_operators(_keep_elements),
    "aten.bernoulli": _bernoulli,
    "aten.rand": draw(_fixed_numbers),
    "aten.randn": draw(_fixed_numbers),
    "aten.rand_like": draw_like(_fixed_numbers),
    "aten.randn_like": draw_like(_fixed_numbers),
    "aten.uniform": _fill,
    "aten.normal_functional": _fill,
    "aten.randperm": lambda context, n, **options: from_torch_order(jnp.arange(n, dtype=jnp.int32)),
}
"""By name without overload; they go before the table's."""


def fixed_draws(torch: Any) -> Any:
    """A mode, entered by `with`, in which torch draws what `FIXED_DRAWS` draws."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class FixedDraws(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function.name().removeprefix("aten::").partition(".")[0]
            if name == "native_dropout":
                x, p, training = args
                return (x / (1 - p) if training and p < 1 else x.clone()), torch.ones_like(x, dtype=torch.bool)
            result = function(*args, **(kwargs or {}))
            if name in ("bernoulli", "bernoulli_"):
                p = args[1] if len(args) > 1 else None
                return result.fill_(0 if isinstance(p, int | float) and p == 0 else 1)
            if name in ("rand", "randn", "rand_like", "randn_like", "uniform", "uniform_", "normal_", "normal"):
                return result.fill_(DRAW)
            if name == "randperm":
                return torch.arange(result.shape[0])
            return result

    return FixedDraws()
