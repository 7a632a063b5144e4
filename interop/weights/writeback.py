"""Trained variables back into the torch module they belong to, in place and all or nothing.

Works for networks traced from the module (leaves have torch's names) and for native ones with torchvision's names.
"""

from typing import Any, NamedTuple

from interop.arrays import as_numpy, as_tensor, dtype_named, import_torch, is_expanded
from interop.weights.mismatch import Mismatch, compare_names
from interop.weights.names import named_leaves, torch_names
from interop.weights.packing import pack, whole_key
from interop.weights.state_dict import cast, cast_problem, to_torch_array

__all__ = ["update_torch_module"]


class Update(NamedTuple):
    """One tensor of the module, its new value on the same device, and every name that the module has for it."""

    target: Any
    value: Any
    names: list[str]


def update_torch_module(module: Any, variables: Any) -> list[str]:
    """Writes `variables` into `module`'s parameters and buffers; afterwards `module(x)` equals the JAX output.

    Every tensor keeps its identity, type, device and `requires_grad`, and the module its mode; a value is rounded to
    its tensor's type. Tied names are one tensor and all updated, whichever of them `variables` names. All values are
    checked and copied beside the old ones first; where the writing itself fails, what was written is undone.

    Args:
        module: a `torch.nn.Module`.
        variables: `Variables` of the network traced from it, or of a native one with the same names.

    Returns:
        The names written, tied ones included, in the order of the module's state dict.

    Raises:
        StateDictMismatchError: lists every missing, unexpected, wrong-shape and wrong-type name at once; nothing was
            written. Buffers that aren't part of the state dict may be missing.
        MissingDependencyError: torch is absent.

    Example:
        >>> import numpy as np, torch
        >>> from byol_jax.types import Variables
        >>> module = torch.nn.Linear(3, 2, bias=False)
        >>> update_torch_module(module, Variables({"kernel": np.ones((3, 2), np.float32)}, {}))
        ['weight']
    """
    torch = import_torch()
    tensors = _named_tensors(module)
    values, unexpected = _values(variables, tensors)
    updates, mismatch = _updates(module, tensors, values)
    mismatch.unexpected += unexpected
    mismatch.raise_if_any("the variables don't fit the module, nothing was written")
    with torch.no_grad():
        _write(updates)
    written = {name for one in updates for name in one.names}
    return [name for name in tensors if name in written]


def _named_tensors(module: Any) -> dict[str, Any]:
    """All parameters and buffers under all their names, in the order of the state dict."""
    parameters, buffers = (
        dict(named(remove_duplicate=False)) for named in (module.named_parameters, module.named_buffers)
    )
    tensors = parameters | buffers
    return {name: tensors[name] for name in module.state_dict(keep_vars=True) if name in tensors} | tensors


def _values(variables: Any, tensors: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Torch's name to value in torch's layout, and the paths that the module has no tensor for."""
    leaves = named_leaves(variables)
    names = torch_names(leaves)
    values, unexpected = {}, []
    for path, leaf in leaves.items():
        own_name = path.replace("/", ".")
        key, rule = (own_name, "") if own_name in tensors else names[path]
        if whole_key(key) in tensors:
            values[key] = to_torch_array(as_numpy(leaf, path), rule)
        else:
            unexpected.append(path)
    return pack(values), unexpected


def _updates(module: Any, tensors: dict[str, Any], values: dict[str, Any]) -> tuple[list[Update], Mismatch]:
    """What to write, and everything that doesn't fit."""
    names_of: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names_of.setdefault(id(tensor), []).append(name)
    persistent = set(module.state_dict(keep_vars=True))
    required = [names[0] for names in names_of.values() if persistent & set(names) and not values.keys() & set(names)]
    mismatch = compare_names(required, [])
    updates = []
    for names in names_of.values():
        given = [name for name in names if name in values]
        if any(values[name].tobytes() != values[given[0]].tobytes() for name in given[1:]):
            mismatch.values.append(f"{' and '.join(given)} are one tensor, but differ")
        elif given:
            value = _as_tensor_like(values[given[0]], tensors[given[0]], given[0], mismatch)
            if value is not None:
                updates.append(Update(tensors[given[0]], value, names))
    return updates, mismatch


def _as_tensor_like(array: Any, tensor: Any, name: str, mismatch: Mismatch) -> Any:
    """`array` as a tensor of `tensor`'s type on its device; None, and an entry in `mismatch`, where it doesn't fit."""
    torch = import_torch()
    if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta or tensor.layout != torch.strided:
        mismatch.values.append(f"{name} (the module's tensor has no values yet, or isn't dense)")
        return None
    if is_expanded(tensor):
        mismatch.values.append(f"{name} (the module's tensor is expanded, one number in several places)")
        return None
    if array.shape != tuple(tensor.shape):
        mismatch.shapes.append(f"{name} (given {list(array.shape)}, the module has {list(tensor.shape)})")
        return None
    dtype = dtype_named(str(tensor.dtype).removeprefix("torch."))
    reason = cast_problem(array, dtype)
    if reason:
        mismatch.dtypes.append(f"{name} ({reason})")
        return None
    return as_tensor(cast(array, dtype)).to(tensor.device)


def _write(updates: list[Update]) -> None:
    """All of them, or none."""
    backups = [one.target.detach().clone() for one in updates]
    try:
        for one in updates:
            one.target.copy_(one.value)
    except BaseException:
        for one, backup in zip(updates, backups, strict=True):
            one.target[...] = backup  # not by `copy_`, which has just failed
        raise
