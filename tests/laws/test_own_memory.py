"""Every way in takes a copy of memory that isn't ours: what is refilled afterwards changes nothing that was taken.

Buffers start at a multiple of 64 bytes, where JAX on a CPU would use them in place, and at another byte, where it would
copy them later. They are large enough (4 MiB) for that.
"""

import jax
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec

import interop
from byol_jax import checkpoint, make_learner, nets, parallel
from byol_jax.data import Dataset, IterableLoader, Loader, open_dataset
from byol_jax.memory import copy_aligned, empty_aligned
from byol_jax.parallel.placement import shard_in_place
from byol_jax.types import TrainState

SHAPE = (8, 512, 1024, 1)
STEPS = 4


@pytest.fixture(params=[0, 16], ids=["aligned", "not aligned"])
def buffer(request):
    """uint8 `SHAPE`, to be refilled."""
    size = int(np.prod(SHAPE))
    return empty_aligned((size + 64,), np.uint8)[request.param : request.param + size].reshape(SHAPE)


@pytest.fixture
def mesh():
    return parallel.make_mesh()


def refill(buffer, fill):
    """The same buffer again and again, holding 1, 2, 3, …, passed through `fill`."""
    for number in range(1, STEPS + 10):
        buffer[:] = number
        yield fill(buffer)


PLACES = {
    "default": lambda mesh: None,
    "shard": lambda mesh: lambda batch: parallel.shard(batch, mesh),
    "in place": lambda mesh: lambda batch: shard_in_place(batch, mesh),
    "the user's": lambda mesh: jax.device_put,
}


def check_batches(loader):
    with loader:
        batches = [next(loader) for _ in range(STEPS)]
    assert [np.unique(batch).tolist() for batch in batches] == [[number] for number in range(1, STEPS + 1)]


@pytest.mark.parametrize("place", PLACES)
def test_an_iterable_may_refill_its_batch(buffer, mesh, place):
    check_batches(IterableLoader(refill(buffer, lambda batch: batch), place=PLACES[place](mesh)))


@pytest.mark.parametrize("kind", [torch.from_numpy, lambda buffer: (buffer, None)])
def test_a_batch_of_another_kind_may_be_refilled_too(buffer, kind):
    check_batches(IterableLoader(refill(buffer, kind)))


IN_JAX = {
    "asarray": jax.numpy.asarray,
    "device_put": jax.device_put,
    "dlpack": lambda buffer: jax.dlpack.from_dlpack(torch.from_numpy(buffer)),
    "dlpack, with labels": lambda buffer: (jax.dlpack.from_dlpack(buffer), None),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", IN_JAX)
def test_a_buffer_below_a_jax_array_may_be_refilled_too(buffer, mesh, place, kind):
    if kind.startswith("dlpack") and buffer.ctypes.data % 64:
        buffer = empty_aligned(SHAPE, np.uint8)
    check_batches(IterableLoader(refill(buffer, IN_JAX[kind]), place=PLACES[place](mesh)))


def test_jax_arrays_over_several_devices_stay_where_they_are(mesh):
    spread = NamedSharding(mesh, PartitionSpec(parallel.AXIS))
    batch = jax.device_put(np.arange(mesh.size * 4 * 20 * 20, dtype=np.uint8).reshape(-1, 20, 20, 1), spread)
    with IterableLoader([batch], place=lambda images: images) as loader:
        copy = next(loader)
    assert copy.sharding == batch.sharding
    assert not set(pointers(copy)) & set(pointers(batch))
    np.testing.assert_array_equal(copy, batch)


@pytest.mark.parametrize("place", PLACES)
def test_a_dataset_may_refill_what_it_gives(buffer, mesh, place):
    numbers = iter(range(1, 100))

    def take(indices, *, workers=None):
        buffer[:] = next(numbers)
        return buffer[: len(indices)]

    dataset = Dataset(take, 80, SHAPE[1:], {})
    check_batches(Loader(dataset, batch_size=8, seed=0, place=PLACES[place](mesh)))


def test_an_array_and_a_memory_map_may_change_after_a_batch(buffer, tmp_path):
    buffer[:] = 1
    np.save(tmp_path / "images.npy", buffer)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r+")
    for source in (buffer, mapped):
        dataset = open_dataset(source)
        taken = dataset.take(range(8))
        with Loader(dataset, batch_size=8, seed=0, prefetch=1) as loader:
            batch = next(loader)
        source[:] = 2
        assert np.unique(taken).tolist() == np.unique(batch).tolist() == [1]


def test_replicate_and_shard_copy(buffer, mesh):
    for function in (parallel.replicate, parallel.shard):
        for wrap in (np.asarray, jax.device_put, jax.numpy.asarray):
            for _ in range(3):
                buffer[:] = 1
                placed = function(wrap(buffer), mesh)
                buffer[:] = 2
                assert np.unique(placed).tolist() == [1]


def pointers(array):
    return [part.data.unsafe_buffer_pointer() for part in array.addressable_shards]


def check_fresh(array, *others):
    """Each device has a buffer of its own, which XLA may use for a result: JAX owns it."""
    before = pointers(array)
    assert len({*before, *(pointer for other in others for pointer in pointers(other))}) == len(before) + len(others)
    after = pointers(jax.jit(lambda x: x + 1, donate_argnums=0)(array))
    assert after == before


def test_what_is_replicated_is_in_fresh_buffers(mesh):
    leaf = jax.numpy.ones((512, 512))
    check_fresh(parallel.replicate(leaf, mesh), leaf)
    check_fresh(parallel.replicate(copy_aligned(leaf), mesh))
    np.testing.assert_array_equal(leaf, np.ones((512, 512)))


def test_what_is_restored_is_in_fresh_buffers(mesh, tmp_path):
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = TrainState(jax.numpy.int32(3), jax.random.key(0), {"scale": jax.numpy.ones((512, 512))}, {}, ())
    checkpoint.save(tmp_path, state)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), state)
    for wanted in (like, state):
        check_fresh(checkpoint.restore(tmp_path, like=wanted).state.online["scale"])


def refilled(state_dict):
    """Weights in memory of somebody else, and a function that writes over them."""
    mine = {name: copy_aligned(array) for name, array in state_dict.items()}

    def spoil():
        for array in mine.values():
            array[...] = 77

    return mine, spoil


def check_unspoiled(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    assert leaves
    assert not any((np.asarray(leaf) == 77).any() for leaf in leaves)


def test_weights_are_copied_out_of_a_dict(mesh):
    encoder = nets.small_cnn()
    variables = encoder.init(jax.random.key(0), (16, 16, 3))
    mine, spoil = refilled(interop.encoder_state_dict(encoder, variables))
    weights = interop.open_weights(mine)
    given = weights.variables(encoder, like=parallel.replicate(variables, mesh))
    also = interop.from_torch_state_dict(mine, like=variables)
    spoil()
    check_unspoiled((given, also))


@pytest.mark.slow
def test_a_learner_is_copied_out_of_a_dict(mesh, tmp_path):
    learner = make_learner(
        nets.small_cnn(), image_size=16, num_channels=1, projection_size=8, projection_hidden_size=16
    )
    state = learner.init(jax.random.key(0))
    interop.save_byol_checkpoint(tmp_path / "learner.safetensors", state, layout="byol_pytorch")
    mine, spoil = refilled(interop.load_state_dict(tmp_path / "learner.safetensors"))
    loaded = interop.load_byol_checkpoint(mine, like=parallel.replicate(state, mesh))
    spoil()
    check_unspoiled((loaded.online, loaded.target))


def test_a_traced_network_keeps_what_the_module_held():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    encoder = interop.from_torch_module(module, image_size=8, verify=False)
    mine, spoil = refilled(interop.encoder_state_dict(encoder, encoder.init(jax.random.key(0), (8, 8, 3))))
    given = interop.open_weights(mine).variables(encoder, like=encoder.init(jax.random.key(0), (8, 8, 3)))
    spoil()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(77)
    check_unspoiled((given, encoder.init(jax.random.key(0), (8, 8, 3))))
