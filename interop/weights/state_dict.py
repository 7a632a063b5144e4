"""Native networks' variables to and from torch's state dicts, bit for bit.

`to_torch_state_dict` and `from_torch_state_dict` are inverses. Names and layouts come from `names.py`, `packing.py`
and, for timm, `transformers.py`. `interop.files` reads files, `interop.learners` whole learners, `interop.optimizers`
their optimisers' states.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from byol_jax.errors import ConfigurationError, StateDictMismatchError
from interop.arrays import as_numpy, fresh_copy
from interop.errors import warn_caller
from interop.formats.containers import short_list
from interop.weights.architectures import HEADS, LEARNERS, TRANSFORMERS, expected_shapes, is_head, recognise
from interop.weights.first_layer import (
    InflatedInputWarning,
    check_choice,
    find_first_layers,
    inflate_first_layers,
    inflation_hint,
    shapes_of,
)
from interop.weights.hugging_face import is_another, is_hugging_face, torchvision_arrays
from interop.weights.mismatch import Mismatch, compare_names
from interop.weights.names import (
    Leaf,
    absent_counters,
    named_leaves,
    native_order,
    torch_dtype,
    torch_names,
    torch_order,
    torch_shape,
)
from interop.weights.packing import PARTS, own_rows, pack, whole_key
from interop.weights.transformers import own_key, timm_key, torchvision_key

__all__ = [
    "AbsentCountersWarning",
    "cast",
    "cast_problem",
    "classifier_differences",
    "from_torch_state_dict",
    "is_floating",
    "load_native",
    "match_leaves",
    "to_torch_array",
    "to_torch_state_dict",
    "wanted_shapes",
]


class AbsentCountersWarning(UserWarning):
    """A state dict has no `num_batches_tracked`, as files of torch before 0.4.1 have none; batch norms count from 0."""


def to_torch_state_dict(variables: Any, *, arch: str | None = None) -> dict[str, np.ndarray]:
    """A network's variables as torch's state dict: names, layouts and integer types of torch, the same bits.

    Args:
        variables: `Variables(params, stats)` of a native network (kernels [*spatial, in, out] or [in, out]) or of a
            traced one (torch's names and layouts already, passed through).
        arch: a name from `interop.weights.architectures.ARCHITECTURES`, torchvision's ("vit_b_16") or timm's
            ("vit_base_patch16_224"): the keys must be exactly that network's (the classifier may be left out as a
            whole), have that library's names and come in its order. None: torchvision's names, no check, the order of
            `jax.tree.leaves`.

    Returns:
        Names joined by "." to fresh, contiguous, writable NumPy arrays; dtypes as in `variables`, but
        `num_batches_tracked` is int64, as torch has it.

    Raises:
        StateDictMismatchError: not `Variables`, two leaves of one name, or other keys than `arch` has.
        ConfigurationError: `arch` isn't known.

    Example:
        >>> from byol_jax.types import Variables
        >>> variables = Variables({"fc": {"kernel": np.zeros((512, 10), np.float32)}}, {})
        >>> to_torch_state_dict(variables)["fc.weight"].shape
        (10, 512)
    """
    leaves = named_leaves(variables)
    names = torch_names(leaves)
    state_dict = pack(
        {names[path].key: to_torch_array(as_numpy(leaf, path), names[path].rule) for path, leaf in leaves.items()}
    )
    if arch is None:
        return state_dict
    if _is_timm(arch):
        state_dict = {timm_key(key): array for key, array in state_dict.items()}
    return {key: state_dict[key] for key in _check_architecture(state_dict, arch)}


def to_torch_array(array: np.ndarray, rule: str) -> np.ndarray:
    """One leaf in torch's layout, as a fresh array."""
    turned = fresh_copy(array.transpose(torch_order(rule, array.ndim)))
    return turned.astype(torch_dtype(rule, turned.dtype), copy=False)


def from_torch_state_dict(
    state_dict: Mapping[str, Any],
    *,
    like: Any,
    arch: str | None = None,
    strict: bool = True,
    dtype: str | None = None,
    head: str = "keep",
    first_layer: str = "keep",
) -> Any:
    """A torch state dict as the variables of a network that exists already.

    Args:
        state_dict: torch's names to NumPy arrays, JAX arrays or torch tensors. Of a vision transformer, torchvision's
            names (also older ones) and timm's are read, of a ResNet too Hugging Face transformers' (but for its
            transformer's pooler and mask token, which have no place here).
        like: the network's `Variables`, arrays or `jax.ShapeDtypeStruct`s, which decide structure, shapes and types.
        arch: a name from `interop.weights.architectures.ARCHITECTURES`: the file's keys must be exactly that
            network's, or with strict=False at least those; the classifier may be left out as a whole.
        strict: False ignores unexpected keys, and keeps `like`'s own values for missing ones.
        dtype: None: types must match `like`'s (a counter may be int64 here and int32 there). "like": floating types
            are rounded to `like`'s, integers converted where their values fit.
        head: "keep": the classifier is a layer like any other, and must fit. "drop": the file's is left out, whatever
            its shape, and the network keeps `like`'s own values where it has one: for another number of classes, or
            for a file or a network without any. A classifier is a whole linear layer by one of the names
            `interop.weights.architectures.HEADS` (`fc`, `heads.head`, `head`, …).
        first_layer: "keep": the first layer is a layer like any other, and must fit. "inflate": where the file's has 3
            input channels and `like`'s another number, C, its weights are made to fit by timm's rule: for C = 1 the sum
            over red, green and blue, else the three in turns, times 3 / C. Where `like` has a convolution of 3 inputs
            nothing is: its images may have 3 channels.

    Returns:
        `Variables` with `like`'s structure. Leaves are JAX arrays, or NumPy arrays where JAX cannot hold the type as
        it is set up (float64 and int64 without x64). A batch norm's counter that the file lacks is 0. Nothing shares
        memory with `state_dict` or `like`.

    Warns:
        AbsentCountersWarning: the file has batch norms without `num_batches_tracked`.
        InflatedInputWarning: the first layer was inflated.

    Raises:
        StateDictMismatchError: counts missing, unexpected, wrong-shape and wrong-dtype keys and names some.
        ConfigurationError: `arch`, `dtype`, `head` or `first_layer` isn't known, or there is no classifier to drop on
            either side.

    Example:
        >>> from byol_jax.types import Variables
        >>> like = Variables({"fc": {"kernel": np.zeros((512, 10), np.float32)}}, {})
        >>> from_torch_state_dict({"fc.weight": np.ones((10, 512), np.float32)}, like=like).params["fc"]["kernel"].shape
        (512, 10)
    """
    if head not in ("keep", "drop"):
        raise ConfigurationError(f'head {head!r} isn\'t known: use "keep" or "drop"')
    if arch is not None:
        _check_architecture(state_dict, arch, strict=strict, counters=False)
    return load_native(
        state_dict,
        like=like,
        dtype=dtype,
        first_layer=first_layer,
        advise=partial(_option_advice, head=head),
        strict=strict,
        drops_head=head == "drop",
    )


def load_native(
    state_dict: Mapping[str, Any],
    *,
    like: Any,
    dtype: str | None,
    first_layer: str,
    advise: Callable[[Mismatch, Mapping[str, Any]], list[str]],
    strict: bool = True,
    drops_head: bool = False,
) -> Any:
    """`from_torch_state_dict` for callers with other options.

    Args:
        advise: of what doesn't fit and the state dict, what to do about it by the caller's own options.
    """
    import jax

    if dtype not in (None, "like"):
        raise ConfigurationError(f'dtype {dtype!r} isn\'t known: use None (types must match) or "like"')
    check_choice(first_layer)
    leaves = named_leaves(like)
    names = torch_names(leaves)
    given, wanted = state_dict, {whole_key(leaf.key) for leaf in names.values()}
    if is_hugging_face(state_dict) and not wanted & set(state_dict):
        state_dict = state_dict if is_another(shapes_of(state_dict)) else torchvision_arrays(state_dict)
    state_dict = _rename_keys(state_dict, wanted)
    if drops_head:
        state_dict = _with_own_head(state_dict, leaves, names)
    shapes, inflated = wanted_shapes(leaves, names), []
    if first_layer == "inflate":
        state_dict, inflated = inflate_first_layers(state_dict, shapes)
    arrays, mismatch = match_leaves(state_dict, leaves, names, strict=strict, cast_to_like=dtype == "like")
    first = find_first_layers(shapes_of(state_dict), shapes) if mismatch.shapes else []
    hint = _hint(mismatch, given, first=first, dtype=dtype, advice=advise(mismatch, state_dict))
    mismatch.raise_if_any("the state dict doesn't fit the network", hint=hint)
    for sentence in inflated:
        warn_caller(InflatedInputWarning(sentence))
    return jax.tree.unflatten(jax.tree.structure(like), [_jax_array(array) for array in arrays.values()])


def wanted_shapes(leaves: Mapping[str, Any], names: Mapping[str, Leaf]) -> dict[str, tuple[int, ...]]:
    """Torch's names of tensors and the shapes wanted; without those that are packed from several leaves."""
    whole = {path: leaf for path, leaf in names.items() if whole_key(leaf.key) == leaf.key}
    return {leaf.key: torch_shape(leaf.rule, tuple(leaves[path].shape)) for path, leaf in whole.items()}


def _rename_keys(state_dict: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """The state dict with timm's names, and older ones, replaced where the network has torchvision's.

    Raises:
        StateDictMismatchError: two keys name one tensor.
    """
    named, origin = {}, {}
    for key, value in state_dict.items():
        name = own_key(key, wanted)
        if name in named:
            raise StateDictMismatchError(f"{origin[name]} and {key} are both {name} of the network: remove one")
        named[name], origin[name] = value, key
    return named


def _with_own_head(
    state_dict: Mapping[str, Any], leaves: Mapping[str, Any], names: Mapping[str, Leaf]
) -> dict[str, Any]:
    """The state dict with the network's classifier in place of the file's; with none where `like` has shapes only."""
    own = {leaf.key: path for path, leaf in names.items() if is_head(leaf.key)}
    if not own and not any(map(is_head, state_dict)):
        raise ConfigurationError(
            'head="drop": neither the network nor the state dict has a classifier by a name that tells '
            f'({", ".join(HEADS)}): leave it at "keep"'
        )
    kept = {key: array for key, array in state_dict.items() if not is_head(key)}
    values = {key: path for key, path in own.items() if not _is_abstract(leaves[path])}
    return kept | {key: to_torch_array(as_numpy(leaves[path], path), names[path].rule) for key, path in values.items()}


def _hint(
    mismatch: Mismatch, given: Mapping[str, Any], *, first: Sequence[str], dtype: str | None, advice: Sequence[str]
) -> str:
    """What to do about it, where that can be told; else ""."""
    hints = [inflation_hint(first)] if first else []
    kind = recognise(shapes_of(given)) if mismatch.missing else ""
    if kind in LEARNERS:
        hints.append(
            f"names tell: {kind}; interop.open_weights(FILE).variables(encoder, like=variables) takes its network out, "
            "as byol-jax import FILE does"
        )
    hints += advice
    if any(entry.startswith("encoder.pos_embedding ") for entry in mismatch.shapes):
        hints.append(
            "positions for another image size: load with a like of the file's size, then nets.resize_positions"
        )
    if dtype is None and any("(given " in entry for entry in mismatch.dtypes):
        hints.append('dtype="like" converts types (byol-jax import: --dtype float32)')
    return "; ".join(hints)


def classifier_differences(mismatch: Mismatch) -> list[str]:
    """What is missing, unexpected or of another shape, where that is the classifier's alone; else nothing.

    Example:
        >>> classifier_differences(Mismatch(missing=["fc.bias"]))
        ['fc.bias']
        >>> classifier_differences(Mismatch(missing=["fc.bias", "conv1.weight"]))
        []
    """
    differing = [*mismatch.missing, *mismatch.unexpected, *mismatch.shapes]
    return differing if all(is_head(entry.partition(" ")[0]) for entry in differing) else []


def _option_advice(mismatch: Mismatch, state_dict: Mapping[str, Any], *, head: str) -> list[str]:
    """Which options of `from_torch_state_dict` make it fit."""
    differing = classifier_differences(mismatch)
    if not differing:
        return ["strict=False ignores unexpected keys"] if mismatch.unexpected and not mismatch.missing else []
    if head == "drop":
        return ["to keep the network's own classifier, give its values in like, not only shapes"]
    if differing == mismatch.unexpected:
        return ['head="drop" leaves the file\'s classifier out']
    return ["head=\"drop\" leaves the file's classifier out and keeps the network's own"]


def match_leaves(
    state_dict: Mapping[str, Any], leaves: dict[str, Any], names: dict[str, Leaf], *, strict: bool, cast_to_like: bool
) -> tuple[dict[str, np.ndarray], Mismatch]:
    """The state dict's arrays by the leaves' paths, in the native layout, and everything that doesn't fit.

    A batch norm's counter that the state dict lacks is 0, and a warning says so where everything else fits.

    Args:
        leaves: arrays or `jax.ShapeDtypeStruct`s by path, which decide shapes and types.
        names: the key and rule of each path in `leaves`.
        strict, cast_to_like: as `strict` and `dtype="like"` of `from_torch_state_dict`.
    """
    wholes = {path: whole_key(leaf.key) for path, leaf in names.items()}
    mismatch = compare_names(list(dict.fromkeys(wholes.values())), list(state_dict))
    arrays = {}
    if not strict:
        mismatch.unexpected = []
        kept = {path: leaf for path, leaf in leaves.items() if wholes[path] not in state_dict}
        arrays = {path: fresh_copy(as_numpy(leaf, path)) for path, leaf in kept.items() if not _is_abstract(leaf)}
        if len(arrays) == len(kept):
            mismatch.missing = []
    counters = set(absent_counters(state_dict, [wholes[path] for path in leaves if path not in arrays]))
    arrays |= {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in leaves.items() if wholes[path] in counters}
    mismatch.missing = [entry for entry in mismatch.missing if entry.partition(" ")[0] not in counters]
    for path, leaf in leaves.items():
        if wholes[path] in state_dict:
            given = as_numpy(state_dict[wholes[path]], wholes[path])
            array = _native_array(given, leaf, *names[path], mismatch, cast_to_like=cast_to_like)
            if array is not None:
                arrays[path] = array
    mismatch.deduplicate()
    if counters and not mismatch:
        warn_caller(
            AbsentCountersWarning(
                f"{len(counters)} batch norms come without num_batches_tracked, as in files of torch before 0.4.1, and "
                f"count from 0: {short_list(sorted(counters), at_most=3)}"
            )
        )
    return {path: arrays[path] for path in leaves if path in arrays}, mismatch


def _native_array(
    array: np.ndarray, like: Any, key: str, rule: str, mismatch: Mismatch, *, cast_to_like: bool
) -> np.ndarray | None:
    """`array`, or its rows for `key`, in the native layout and `like`'s type; None, and an entry in `mismatch`, where
    it doesn't fit."""
    expected, part, key = torch_shape(rule, tuple(like.shape)), key, whole_key(key)
    if part != key:
        expected = (len(PARTS) * expected[0], *expected[1:])
    if array.shape != expected:
        mismatch.shapes.append(f"{key} (given {list(array.shape)}, expected {list(expected)})")
        return None
    array = own_rows(array, part)
    wanted = np.dtype(like.dtype)
    if array.dtype not in (wanted, torch_dtype(rule, wanted)) and not cast_to_like:
        can = array.dtype.kind == wanted.kind or (is_floating(array.dtype) and is_floating(wanted))
        words = f"given {array.dtype}, expected {wanted}" if can else f"{array.dtype} can't become {wanted}"
        mismatch.dtypes.append(f"{key} ({words})")
        return None
    turned = fresh_copy(array.transpose(native_order(rule, array.ndim)))
    reason = cast_problem(turned, wanted)
    if reason:
        (mismatch.values if reason.startswith("value") else mismatch.dtypes).append(f"{key} ({reason})")
        return None
    return cast(turned, wanted)


def cast_problem(array: np.ndarray, dtype: np.dtype) -> str:
    """Why `array` can't become `dtype`; "" where it can. Floats may be rounded, but not become infinite."""
    if array.dtype == dtype:
        return ""
    if _is_integer(array.dtype) and _is_integer(dtype):
        limits = np.iinfo(dtype)
        fits = array.size == 0 or (int(array.min()) >= limits.min and int(array.max()) <= limits.max)
        return "" if fits else f"values up to {int(array.max())} don't fit {dtype}"
    if is_floating(array.dtype) and is_floating(dtype):
        overflow = bool(np.any(np.isfinite(array) & ~np.isfinite(cast(array, dtype))))
        return f"values too large for {dtype}" if overflow else ""
    return f"{array.dtype} can't become {dtype}"


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`array` in `dtype`, rounded to nearest; itself where that is its type already."""
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype, copy=False)


def _is_integer(dtype: np.dtype) -> bool:
    return dtype.kind in "iu"


def is_floating(dtype: np.dtype) -> bool:
    """Whether it is a type of real, floating numbers, bfloat16 and float8 among them."""
    return dtype.kind == "f" or dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def _is_timm(arch: str) -> bool:
    return arch in TRANSFORMERS and TRANSFORMERS[arch].library == "timm"


def _is_abstract(leaf: Any) -> bool:
    import jax

    return isinstance(leaf, jax.ShapeDtypeStruct)


def _jax_array(array: np.ndarray) -> Any:
    import jax

    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return fresh_copy(array)
    return jax.numpy.array(array)


def _check_architecture(
    state_dict: Mapping[str, Any], arch: str, *, strict: bool = True, counters: bool = True
) -> list[str]:
    """The keys that `arch` has, in its order, after a check that `state_dict` has them and no others.

    `counters=False`: those of batch norms may be absent.
    """
    expected = list(expected_shapes(arch))
    if not any(is_head(key) for key in state_dict):
        expected = [key for key in expected if not is_head(key)]
    given = [torchvision_key(key) if key.startswith("encoder.") else key for key in state_dict]  # older files' names
    absent = () if counters else absent_counters(given, expected)
    mismatch = compare_names([key for key in expected if key not in absent], given)
    if not strict:
        mismatch.unexpected = []
    mismatch.raise_if_any(f"these aren't the keys of {arch}")
    return expected
