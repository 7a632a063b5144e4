"""What running somebody else's module must leave alone: its modes, all random generators, and by a copy its state."""

import contextlib
import copy
import random
from collections.abc import Iterator
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np

from byol_jax.errors import UnsupportedModuleError, one_line
from interop.arrays import import_torch

__all__ = ["check_copy", "copy_module", "in_mode", "keep_modes", "keep_random_states"]


def in_mode(module: Any, train: bool) -> Any:
    """The module, put into training or evaluation; its own `train` may return something else, or nothing."""
    module.train() if train else module.eval()
    return module


@contextlib.contextmanager
def keep_modes(module: Any) -> Iterator[None]:
    """Afterwards every part is in training or evaluation as it was, and every parameter as frozen: `train` may be a
    module's own."""
    modes = [(part, part.training) for part in module.modules()]
    frozen = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, requires_grad in frozen:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)


@contextlib.contextmanager
def keep_random_states(module: Any) -> Iterator[None]:
    """Afterwards Python's, NumPy's and torch's generators stand where they stood, those of the module's devices too."""
    torch = import_torch()
    tensors = [*module.parameters(), *module.buffers()] if isinstance(module, torch.nn.Module) else []
    devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    on_devices = [(torch.get_device_module(device), device) for device in devices]
    ours, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    theirs = [backend.get_rng_state(device) for backend, device in on_devices]
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
        torch.set_rng_state(torchs)
        for (backend, device), state in zip(on_devices, theirs, strict=True):
            backend.set_rng_state(state, device)


def copy_module(module: Any) -> Any:
    """A deep copy of a module with memory of its own.

    A tensor that was computed, as `torch.nn.utils.weight_norm` and `prune` keep one beside the parameters that it is
    computed from, is copied as it stands, without what it came from; torch's own copy refuses it.

    Raises:
        UnsupportedModuleError: the module holds something else that Python can't copy, such as a lock or an open file,
            or a function that would go on using the original.
    """
    return _copy(module, {})


def check_copy(module: Any) -> None:
    """Raises what `copy_module` would raise; parameters and buffers aren't copied for it."""
    _copy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


def _copy(module: Any, known: dict[int, Any]) -> Any:
    torch = import_torch()
    from torch.overrides import TorchFunctionMode

    class Copies(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
                tensor, memo = args
                return memo.setdefault(id(tensor), tensor.detach().clone())
            return function(*args, **(kwargs or {}))

    _refuse_own_functions(torch, module)
    try:
        with Copies():
            return copy.deepcopy(module, known)
    except Exception as error:  # whatever a module holds may refuse in its own way
        raise UnsupportedModuleError(
            f"{type(module).__name__} can't be copied to be compared ({type(error).__name__}: "
            f"{one_line(error, at_most=200)}): give it a __deepcopy__, or leave the comparison out by verify=False"
        ) from error


def _refuse_own_functions(torch: Any, module: Any) -> None:
    """Refuses functions, put in the place of methods, that know the module itself: a copy has the same functions."""
    parts = {id(part) for part in module.modules()}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            hooks = value.values() if name.endswith("_hooks") and isinstance(value, dict) else ()
            for function in (value, *hooks):
                if not isinstance(value, torch.nn.Module) and _knows(function, parts):
                    where = f"{path}.{name}".removeprefix(".")
                    raise UnsupportedModuleError(
                        f"{type(module).__name__} can't be copied to be compared: {where} is a function that uses the "
                        "module itself, and a copy's would use the original: make it a method (a sub-class, or "
                        "types.MethodType), or leave the comparison out by verify=False"
                    )


def _knows(function: Any, parts: set[int]) -> bool:
    """Whether a plain function has one of the modules among the variables around it."""
    if isinstance(function, partial):
        return _knows(function.func, parts)  # its arguments are copied with it
    if not isinstance(function, FunctionType):
        return False
    try:
        around = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # a variable that has no value yet
        around = []
    around += [function.__globals__.get(name) for name in function.__code__.co_names]
    around += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return any(id(getattr(thing, "__self__", thing)) in parts for thing in around)
