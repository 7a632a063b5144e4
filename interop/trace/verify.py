"""Both frameworks on the same input, in both modes, before a traced network is handed out.

In float64, where what is left of a difference is the order of sums: a batch norm over few values turns float32's
rounding into differences that look like mistakes. What would be random is the same on both sides: every coin shows
heads, so dropout keeps everything.
"""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConversionMismatchError
from byol_jax.hidden import OUTPUT
from byol_jax.tree import cast, flatten
from byol_jax.types import Encoder, Variables
from interop.arrays import import_torch
from interop.trace.ops_random import FIXED_DRAW

__all__ = ["verify_encoder"]

TOLERANCE = {"float64": 1e-6, "float32": 1e-2}
"""Of the largest value. In float64 the zoo of docs/torch_modules.md stays below 1e-9; float32 is for modules whose code
insists on it, where a batch norm over two values may leave 1e-3."""

SMALLEST_SCALE = 1e-3
"""Values that are zero in truth, such as the mean of what was centred just before, are compared to this."""


def verify_encoder(module: Any, encoder: Encoder, example: Any, variables: Variables) -> None:
    """Compares the output and all changed buffers, in training and in evaluation.

    Args:
        module: the original; only read.
        encoder: the traced network, with what draws replaced by `ops_random.FIXED`.
        example: [2, ...] as the module takes it.
        variables: the module's, as NumPy arrays.

    Raises:
        ConversionMismatchError: names the first sub-module whose output differs, and by how much.
    """
    for train in (False, True):
        theirs, images = _in_torch(module, example, train)
        dtype = str(images.dtype)
        with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("standard"):
            run = _Run(encoder, variables, images, train)
            worst = _first_difference(run, theirs, [name for name in theirs if name.startswith("buffer ")])
            if "" in theirs:
                worst = _first_difference(run, theirs, [""]) or worst
            if worst is not None:
                layers = [name for name in theirs if name and not name.startswith("buffer ")]
                where, difference = _first_difference(run, theirs, layers) or worst
                raise ConversionMismatchError(
                    f"{type(module).__name__} in {'training' if train else 'evaluation'}: JAX and torch differ by "
                    f"{difference:.1e} of the largest value, first at {where or 'the output'}; verify=False goes on "
                    "regardless"
                )


class _Run:
    """The traced network's values on the example, computed when asked for."""

    def __init__(self, encoder: Encoder, variables: Variables, images: np.ndarray, train: bool) -> None:
        self.dtype = str(images.dtype)
        self.encoder, self.train = encoder, train
        self.images = jnp.asarray(images.transpose(0, 2, 3, 1) if images.ndim == 4 else images)
        self.variables = cast(jax.tree.map(jnp.asarray, variables), images.dtype)

    def values(self, layer: str | int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        features, stats = self.encoder.apply(
            self.variables, self.images, train=self.train, hidden_layer=layer, key=jax.random.key(0)
        )
        return np.asarray(features), {name.replace("/", "."): np.asarray(leaf) for name, leaf in flatten(stats).items()}


def _first_difference(run: _Run, theirs: dict[str, np.ndarray], names: list[str]) -> tuple[str, float] | None:
    """The first of `names` where both differ by more than the tolerance, and by how much."""
    stats: dict[str, np.ndarray] = {}
    for name in names:
        if name.startswith("buffer "):
            stats = stats or run.values(OUTPUT if "" in theirs else _any_layer(theirs))[1]
            ours = stats[name.removeprefix("buffer ")]
        else:
            ours = run.values(name or OUTPUT)[0]
        wanted = theirs[name]
        if ours.shape != wanted.shape:
            return name, float("inf")
        scale = max(float(np.abs(wanted).max(initial=0)), SMALLEST_SCALE)
        difference = np.abs(ours.astype(np.float64) - wanted.astype(np.float64)).max(initial=0) / scale
        if not difference <= TOLERANCE[run.dtype]:
            return name, float(difference)
    return None


def _any_layer(theirs: dict[str, np.ndarray]) -> str:
    return next(name for name in theirs if name and not name.startswith("buffer "))


def _in_torch(module: Any, example: Any, train: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """ "": the output; sub-module's name: its output, flattened; "buffer " and its name: what changed. And the input.

    A copy of the module runs, in float64 on the CPU; in the module's own dtype where its code refuses float64.
    """
    torch = import_torch()
    try:
        return _run_torch(torch, module, example.double() if example.is_floating_point() else example, train)
    except RuntimeError:
        return _run_torch(torch, module, example, train)


def _run_torch(torch: Any, module: Any, example: Any, train: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    module = copy.deepcopy(module).cpu()
    if example.is_floating_point():
        module = module.to(example.dtype)
    module.train(train)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    noted: dict[str, Any] = {}

    def note(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.ndim > 0:
                noted[name] = output.reshape(output.shape[0], -1)

        return hook

    for name, part in module.named_modules():
        if name:
            part.register_forward_hook(note(name))
    with torch.no_grad(), _without_chance(torch):
        output = module(example.cpu().clone())
    values = {"": output} if isinstance(output, torch.Tensor) else {}
    values |= {name: value for name, value in noted.items() if value.shape[0] == example.shape[0]}
    if train:
        changed = (name for name, buffer in module.named_buffers() if not torch.equal(before[name], buffer))
        values |= {f"buffer {name}": module.get_buffer(name) for name in changed}
    return {name: value.numpy() for name, value in values.items()}, example.cpu().numpy()


def _without_chance(torch: Any) -> Any:
    """A mode in which torch draws what `ops_random.FIXED` draws."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class WithoutChance(TorchDispatchMode):
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
                return result.fill_(FIXED_DRAW)
            if name == "randperm":
                return torch.arange(result.shape[0])
            return result

    return WithoutChance()
