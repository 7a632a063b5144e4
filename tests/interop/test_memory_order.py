"""What a file holds doesn't depend on how an array lies in memory: every writer, column-major arrays and JAX's layouts.

safetensors' writer for NumPy (0.8.0) writes memory as it lies, whatever the strides, and the array that NumPy makes of
a JAX array has the strides of the device's layout. Each file is read by another reader than ours too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec
from weight_samples import FORMATS, assert_identical

import interop
from byol_jax import checkpoint, nets
from byol_jax.cli.row_files import About, open_rows
from byol_jax.types import TrainState
from interop.files import write_arrays

VALUES = np.arange(48, dtype=np.float32).reshape(2, 4, 6)
"""What each of `ARRAYS` holds."""


def mesh():
    return jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2])


def placed(values, spec, order):
    """On two devices, the last of `order` running fastest."""
    return jax.device_put(values, Format(Layout(order), NamedSharding(mesh(), spec)))


def computed(values):
    layout = Format(Layout((2, 0, 1)), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return jax.jit(lambda array: array[::1], out_shardings=layout)(values)


IN_PARTS = "JAX, in parts, columns first"
"""NumPy makes a new array of it: in rows with jax 0.10, in the device's layout with 0.12."""

ARRAYS = {
    "rows first": lambda values: values.copy(),
    "column-major": np.asfortranarray,
    "transposed": lambda values: np.ascontiguousarray(values.transpose(1, 2, 0)).transpose(2, 0, 1),
    "reversed": lambda values: np.ascontiguousarray(values[::-1, :, ::-1])[::-1, :, ::-1],
    "every third": lambda values: np.repeat(values, 3, axis=-1)[..., ::3],
    "JAX, computed": computed,
    "JAX, columns first": lambda values: placed(values, PartitionSpec(), order=(2, 1, 0)),
    IN_PARTS: lambda values: placed(values, PartitionSpec("batch"), order=(1, 2, 0)),
}


def sample():
    """One array of each kind, and small ones in which order can't show."""
    arrays = {name: make(VALUES) for name, make in ARRAYS.items()}
    return arrays | {"number": np.float32(3)[None][0:1].reshape(()), "none": np.zeros((3, 0, 2), np.float32).T}


def expected(names):
    return {name: VALUES for name in names if name in ARRAYS}


def test_the_arrays_lie_as_they_are_called():
    arrays = {name: make(VALUES) for name, make in ARRAYS.items()}
    in_rows = {name for name, array in arrays.items() if np.asarray(array).flags.c_contiguous}
    assert in_rows - {IN_PARTS} == {"rows first"}
    assert_identical(arrays, dict.fromkeys(ARRAYS, VALUES))


def read_by_others(path):
    """By the format's own library."""
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    import torch

    return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}


@pytest.mark.parametrize("ending", FORMATS)
def test_a_state_dict_is_written_in_rows(ending, tmp_path):
    interop.save_state_dict(tmp_path / f"x{ending}", sample())
    for loaded in (interop.load_state_dict(tmp_path / f"x{ending}"), read_by_others(tmp_path / f"x{ending}")):
        assert set(loaded) == set(sample())
        assert_identical({name: loaded[name] for name in ARRAYS}, expected(loaded), ordered=False)
        assert loaded["none"].shape == (2, 0, 3)


def test_shards_and_a_networks_tensors_are_written_in_rows(tmp_path):
    interop.save_state_dict(tmp_path / "set.safetensors", sample(), max_shard_bytes=400)
    shards = [read_by_others(path) for path in sorted(tmp_path.glob("set-*.safetensors"))]
    assert len(shards) > 2
    together = {name: array for shard in shards for name, array in shard.items()}
    assert_identical({name: together[name] for name in ARRAYS}, expected(ARRAYS), ordered=False)
    write_arrays(tmp_path / "tensors.safetensors", sample())
    tensors = read_by_others(tmp_path / "tensors.safetensors")
    assert_identical({name: tensors[name] for name in ARRAYS}, expected(ARRAYS), ordered=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4", "float8_e4m3fn", "complex64"])
def test_a_checkpoint_is_written_in_rows(dtype, tmp_path):
    wanted = (VALUES % 8).astype(jnp.dtype(dtype))
    leaves = {name: make(wanted) for name, make in ARRAYS.items()}
    assert {leaf.dtype for leaf in leaves.values()} == {jnp.dtype(dtype)}
    state = TrainState(jnp.int32(7), jax.random.key(0), leaves, {}, ())
    folder = checkpoint.save(tmp_path, state)
    like = state.replace(online={name: jax.ShapeDtypeStruct(wanted.shape, wanted.dtype) for name in leaves})
    restored = checkpoint.restore(folder, like=like).state.online
    assert_identical(restored, dict.fromkeys(ARRAYS, wanted), ordered=False)
    if dtype == "float32":
        (path,) = folder.glob("*.safetensors")
        stored = safetensors.numpy.load_file(path)
        assert_identical({name: stored[f"online/{name}"] for name in ARRAYS}, dict.fromkeys(ARRAYS, wanted))


@pytest.mark.parametrize("ending", [".npz", ".npy"])
def test_embeddings_are_written_in_rows(ending, tmp_path):
    for name, make in ARRAYS.items():
        with open_rows(tmp_path / f"x{ending}", About(None, None, None)) as write:
            write(np.asarray(make(VALUES)), np.arange(len(VALUES)))
        loaded = np.load(tmp_path / f"x{ending}")
        np.testing.assert_array_equal(loaded["embeddings"] if ending == ".npz" else loaded, VALUES, err_msg=name)


def test_a_networks_kernels_may_lie_in_any_layout(tmp_path):
    """From leaves on the device to a file in torch's layout, by way of the transposes in between."""
    encoder = nets.small_cnn((4, 8))
    variables = encoder.init(jax.random.key(0), (8, 8, 3))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def columns_first(leaf):
        return jax.device_put(leaf, Format(Layout(tuple(reversed(range(leaf.ndim)))), device))

    turned = jax.tree.map(columns_first, variables)
    kernels = [leaf for leaf in jax.tree.leaves(turned.params) if leaf.ndim > 1]
    assert not any(np.asarray(kernel).flags.c_contiguous for kernel in kernels)
    wanted = interop.encoder_state_dict(encoder, variables)
    for ending in FORMATS:
        interop.save_state_dict(tmp_path / f"x{ending}", interop.encoder_state_dict(encoder, turned))
        assert_identical(read_by_others(tmp_path / f"x{ending}"), wanted, ordered=False)
    assert (
        interop.open_weights(wanted).sha256
        == interop.open_weights({name: np.asfortranarray(array) for name, array in wanted.items()}).sha256
    )
