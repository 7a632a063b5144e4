"""One network in torch and, traced, in JAX: how far outputs, gradients and buffers are apart. No tables, no lists.

In float64 and in training mode, with the same stand-ins for random operators on both sides, as in
`interop.trace.verification`: output, gradients by every parameter, all buffers after the step, and then, unlike there,
the output in evaluation mode with those buffers.
"""

import gc
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConversionMismatchError, UnsupportedModuleError, UnsupportedOpError
from byol_jax.tree import cast, flatten
from byol_jax.types import Encoder, Variables
from interop.trace.encoder import from_torch_module, network_encoder
from interop.trace.export import example_batch, record_outputs
from interop.trace.fixed_draws import FIXED_DRAWS, fixed_draws
from interop.trace.verification.distances import relative_difference
from interop.trace.verification.verify import IN_FLOAT64_ALONE, verify_encoder

__all__ = ["BATCH", "LIMIT", "measure", "verified_types"]

BATCH = 3
"""With two images, a batch norm over maps of one pixel gives ±1 for any input, and its gradient is only rounding."""

LIMIT = 1e-6
"""The largest error of a network that counts as exact: `verify`'s own limit for float64. Most have 1e-13; a wrong
operator gives 1e-2."""

SMALLEST_SHARE = 1e-4
"""Errors are relative to at least this share of the largest value among all tensors of a kind. The gradient of a bias
before a batch norm is truly zero, and by rounding 2e-14 of the largest (starnet_s050). A tensor that is wrong
altogether is still found where it has 1e-10 of the largest or more."""

COMPILER: Any = {"xla_backend_optimization_level": 1}
"""Each program runs once. At level 0 grouped convolutions in float64 take 22 s, at level 1 0.6 s (dla46x_c)."""


def measure(
    module: Any, *, image_size: int, layer: str | int = -1, verify: bool = False, known: str = ""
) -> dict[str, Any]:
    """Compares a module with its traced network. The module gets noise and becomes float64: don't use it afterwards.

    Args:
        module: a `torch.nn.Module` of RGB images, in float32.
        image_size: H = W.
        layer: the name of the sub-module to compare, where the module's own output isn't one tensor.
        verify: first what `from_torch_module` does by default, in both modes and with gradients; in float64, and in
            float32 unless the environment says not to (`interop.trace.verification.verify.IN_FLOAT64_ALONE`).
        known: a `program` that was measured before. Where the network still makes it, nothing is run, and there is only
            `program`.

    Returns:
        `outcome` ("exact", "differs" or "refused") and `parameters`; `reason`, where it isn't exact; `program`, a hash
        of what JAX made of the network, before it is compiled. Where it ran, also
        `forward, gradients, buffers, evaluation`: the largest relative error of each; `worst`: the tensors that have
        them; `zero_gradients`: how many parameters have a gradient of rounding only; `tensors`: how many parameters
        there are; `trace_seconds, compile_seconds`; with `verify` also `verify_seconds` and `verified`, the types.
    """
    import torch

    _add_noise(module)
    parameters = sum(p.numel() for p in module.parameters())
    start = time.perf_counter()
    try:
        encoder = from_torch_module(module, image_size=image_size, verify=False)
    except (UnsupportedModuleError, UnsupportedOpError) as error:
        return {"outcome": "refused", "parameters": parameters, "reason": f"{type(error).__name__}: {error}"}
    seconds: dict[str, Any] = {"trace_seconds": time.perf_counter() - start}
    network = encoder.facts.traced
    variables = jax.device_get(encoder.init(jax.random.key(0), network.input_shape))
    encoder = network_encoder(network, variables, stand_ins=FIXED_DRAWS)
    images = np.random.default_rng(0).random((BATCH, image_size, image_size, 3))
    lowered, weights, given = _lower(encoder, variables, images, layer)
    program = hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]
    if program == known:
        return {"program": program}
    if verify:
        start = time.perf_counter()
        try:
            verify_encoder(module, encoder, example_batch(torch, module, image_size, 3, None), variables)
        except ConversionMismatchError as error:
            return {"outcome": "differs", "parameters": parameters, "program": program, "reason": str(error)}
        seconds["verify_seconds"] = time.perf_counter() - start
        seconds["verified"] = verified_types()
    with _one_thread():
        wanted = _in_torch(module, images, weights, layer)
    gc.collect()
    ours, compile_seconds = _in_jax(lowered, given)
    result = _comparison(ours, wanted)
    if result["outcome"] == "differs":
        result["reason"] += _first_sub_module(module, encoder, variables, images)
    return result | {"parameters": parameters, "program": program, "compile_seconds": compile_seconds} | seconds


def verified_types() -> list[str]:
    """The types in which `measure` verifies, as the environment has it."""
    return ["float64"] if os.environ.get(IN_FLOAT64_ALONE) else ["float64", "float32"]


def _add_noise(module: Any) -> None:
    """Adds seeded noise to every parameter: layer scales and batch norms that begin at zero would hide all else."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            is_vector = sum(n > 1 for n in parameter.shape) <= 1
            parameter += noise * (0.1 if is_vector else 0.1 * spread if spread > 0 else 0.02)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch: its threads wait for each other busily, and beside other work two took ten times as long as
    one (resnet18)."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_torch(module: Any, images: np.ndarray, weights: np.ndarray, layer: str | int) -> dict[str, Any]:
    """Torch's tensors by kind; differentiated is the output's sum with these weights."""
    import torch

    module = module.double().train()
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def output() -> Any:
        if layer == -1:
            return module(x)
        with record_outputs(module) as noted:
            module(x)
        return noted[str(layer)]

    with _in_double(torch), fixed_draws(torch):
        features = output()
        (features * torch.from_numpy(weights)).sum().backward()
        buffers = {name: buffer.numpy().copy() for name, buffer in module.named_buffers()}
        module.eval()
        with torch.no_grad():
            evaluation = output().numpy()
    gradients = {
        name: np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        for name, parameter in module.named_parameters()
    }
    forward = features.detach().numpy()
    return {
        "forward": {"the output": forward},
        "gradients": gradients,
        "buffers": buffers,
        "evaluation": {"the output": evaluation},
    }


def _in_double(torch: Any) -> Any:
    """A mode in which torch's code that asks for float32 gets float64, as in a traced graph in float64."""
    from torch.overrides import TorchFunctionMode

    def in_float64(argument: Any) -> Any:
        return torch.float64 if argument is torch.float32 else argument

    class InDouble(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            function = torch.Tensor.double if function is torch.Tensor.float else function
            options = {name: in_float64(value) for name, value in (kwargs or {}).items()}
            return function(*map(in_float64, args), **options)

        def __enter__(self) -> Any:
            torch.set_default_dtype(torch.float64)
            return super().__enter__()

        def __exit__(self, *error: Any) -> Any:
            torch.set_default_dtype(torch.float32)
            return super().__exit__(*error)

    return InDouble()


def _lower(
    encoder: Encoder, variables: Variables, images: np.ndarray, layer: str | int
) -> tuple[Any, np.ndarray, tuple[Any, ...]]:
    """One program for all that is compared, before XLA sees it; the weights of the output's sum that it differentiates;
    and its arguments."""

    def features_of(variables: Variables, images: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        return encoder.apply(variables, images, train=train, hidden_layer=layer, key=jax.random.key(0))

    def run(params: Any, stats: Any, images: jax.Array, weights: jax.Array) -> Any:
        def total(params: Any) -> Any:
            features, new = features_of(Variables(params, stats), images, True)
            return (features * weights).sum(), (features, new)

        (_, (features, new)), gradients = jax.value_and_grad(total, has_aux=True)(params)
        evaluation, _ = features_of(Variables(params, new), images, False)
        return features, gradients, new, evaluation

    with _double():
        params, stats = cast(jax.tree.map(jnp.asarray, variables), jnp.float64)
        features, _ = jax.eval_shape(partial(features_of, train=True), Variables(params, stats), images)
        weights = np.random.default_rng(1).standard_normal(features.shape)
        given = (params, stats, jnp.asarray(images), jnp.asarray(weights))
        return jax.jit(run).lower(*given), weights, given


def _in_jax(lowered: Any, given: tuple[Any, ...]) -> tuple[dict[str, Any], float]:
    """JAX's tensors by kind, and the seconds that compiling took."""
    with _double():
        start = time.perf_counter()
        compiled = lowered.compile(COMPILER)
        seconds = time.perf_counter() - start
        features, gradients, buffers, evaluation = jax.tree.map(np.asarray, compiled(*given))
    return {
        "forward": {"the output": features},
        "gradients": _by_name(gradients),
        "buffers": _by_name(buffers),
        "evaluation": {"the output": evaluation},
    }, seconds


@contextmanager
def _double() -> Iterator[None]:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def _by_name(tree: Any) -> dict[str, np.ndarray]:
    return {name.replace("/", "."): leaf for name, leaf in flatten(tree).items()}


def _comparison(ours: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"worst": {}}
    for kind, tensors in ours.items():
        largest = max((float(np.abs(wanted[kind][name]).max(initial=0)) for name in tensors), default=0.0)
        if not np.isfinite(largest):
            raise ArithmeticError(f"torch's own {kind} aren't finite: nothing to compare with")
        floor = SMALLEST_SHARE * largest or 1.0  # all zero: any difference counts as it is
        errors = {name: _error(array, wanted[kind][name], floor) for name, array in tensors.items()}
        result[kind] = max(errors.values(), default=0.0)
        result["worst"][kind] = max(errors, key=errors.__getitem__, default="")
        if kind == "gradients":
            result["tensors"] = len(errors)
            result["zero_gradients"] = sum(float(np.abs(wanted[kind][name]).max(initial=0)) <= floor for name in errors)
    wrong = [kind for kind in ours if not result[kind] <= LIMIT]
    if not wrong:
        return result | {"outcome": "exact"}
    parts = [f"{kind} by {result[kind]:.1e} ({result['worst'][kind]})" for kind in wrong]
    return result | {"outcome": "differs", "reason": ", ".join(parts)}


def _error(ours: np.ndarray, wanted: np.ndarray, floor: float) -> float:
    """The relative error; integers are compared exactly, and NaN counts as infinitely far away."""
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(ours, wanted) else float("inf")
    error = relative_difference(ours, wanted, floor)
    return error if np.isfinite(error) else float("inf")


def _first_sub_module(module: Any, encoder: Encoder, variables: Variables, images: np.ndarray) -> str:
    """The first sub-module where the outputs differ; empty where only gradients do."""
    import torch

    for name, buffer in flatten(variables.stats, separator=".").items():  # as they were before the step
        module.get_buffer(name).copy_(torch.from_numpy(np.array(buffer)))
    try:
        verify_encoder(module, encoder, torch.from_numpy(images[:2].transpose(0, 3, 1, 2).copy()), variables)
    except ConversionMismatchError as error:
        return f"; {error}"
    return ""
