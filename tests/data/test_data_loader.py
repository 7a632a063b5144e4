"""The loaders: what step k sees is decided by (seed, k) alone; threads, processes and resumes change nothing."""

import gc
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from byol_jax import ConfigurationError, DataError
from byol_jax.data import IterableLoader, Loader, batch_indices, open_dataset
from byol_jax.data.dataset import Dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 8, 6, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(IMAGES):
        Image.fromarray(pixels).save(root / f"{number:02}.png")
    return root


def first(loader, count):
    with loader:
        return [np.asarray(next(loader)) for _ in range(count)]


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "byol_jax images"]


def test_batches_are_the_images_of_the_stated_indices_on_the_device():
    with Loader(open_dataset(IMAGES), batch_size=16, seed=5) as loader:
        for step, batch in zip(range(8), loader, strict=False):
            indices = batch_indices(step, seed=5, count=50, batch_size=16)
            assert isinstance(batch, jax.Array)
            assert loader.position == step + 1
            np.testing.assert_array_equal(np.asarray(batch), IMAGES[indices])


@pytest.mark.parametrize("start", [0, 1, 3, 7])
def test_resuming_at_a_step_equals_having_skipped_to_it(start):
    options = {"batch_size": 16, "seed": 5}
    whole = first(Loader(open_dataset(IMAGES), **options), start + 4)[start:]
    resumed = first(Loader(open_dataset(IMAGES), start_step=start, **options), 4)
    np.testing.assert_array_equal(resumed, whole)


def test_workers_and_prefetch_change_no_bit(folder):
    expected = first(Loader(open_dataset(folder, workers=1), batch_size=20, seed=1, workers=1, prefetch=1), 6)
    for workers, prefetch, cache_bytes in ((1, 3, 0), (4, 1, 0), (4, 3, 10**9)):
        dataset = open_dataset(folder, cache_bytes=cache_bytes)
        batches = first(Loader(dataset, batch_size=20, seed=1, workers=workers, prefetch=prefetch), 6)
        np.testing.assert_array_equal(batches, expected)


def test_the_processes_slices_make_the_global_batch():
    options = {"batch_size": 12, "seed": 2, "start_step": 3}
    whole = first(Loader(open_dataset(IMAGES), **options), 5)
    parts = [
        first(Loader(open_dataset(IMAGES), process_index=index, process_count=3, **options), 5) for index in range(3)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_place_decides_where_a_batch_goes():
    loader = Loader(
        open_dataset(IMAGES), batch_size=8, seed=0, place=lambda batch: jax.device_put(batch, jax.devices()[3])
    )
    with loader:
        assert next(loader).devices() == {jax.devices()[3]}


def stubborn(take):
    return Dataset(take, 100, (2, 2, 1), {})


def test_an_exception_in_the_thread_reaches_the_consumer_in_its_turn():
    calls = []

    def take(indices, *, workers):
        calls.append(len(indices))
        if len(calls) == 3:
            raise DataError("the third batch is broken")
        return np.zeros((len(indices), 2, 2, 1), np.uint8)

    with Loader(stubborn(take), batch_size=10, seed=0) as loader:
        assert [next(loader).shape[0] for _ in range(2)] == [10, 10]
        for _ in range(2):  # and again, whenever asked
            with pytest.raises(DataError, match="the third batch is broken"):
                next(loader)
        assert loader.position == 2
    assert len(calls) == 3


def test_the_thread_works_ahead_by_prefetch_and_no_further():
    made = threading.Semaphore(0)

    def take(indices, *, workers):
        made.release()
        return np.zeros((len(indices), 2, 2, 1), np.uint8)

    with Loader(stubborn(take), batch_size=10, seed=0, prefetch=3):
        assert all(made.acquire(timeout=10) for _ in range(3))
        assert not made.acquire(timeout=0.2)


def test_waiting_is_counted_and_only_waiting():
    def take(indices, *, workers):
        time.sleep(0.05)
        return np.zeros((len(indices), 2, 2, 1), np.uint8)

    with Loader(stubborn(take), batch_size=10, seed=0, prefetch=1) as loader:
        assert loader.wait_seconds == 0
        next(loader)
        next(loader)
        assert loader.wait_seconds > 0.04


def test_closing_ends_the_thread_and_the_iteration_even_within_a_batch():
    entered, go_on = threading.Event(), threading.Event()

    def take(indices, *, workers):
        entered.set()
        go_on.wait(10)
        return np.zeros((len(indices), 2, 2, 1), np.uint8)

    loader = Loader(stubborn(take), batch_size=100, seed=0)
    assert entered.wait(10)
    threading.Timer(0.05, go_on.set).start()
    loader.close()
    loader.close()
    assert loader_threads() == []
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.slow
def test_a_forgotten_loader_ends_its_thread():
    loader = Loader(open_dataset(IMAGES), batch_size=10, seed=0)
    next(loader)
    del loader
    gc.collect()
    assert loader_threads() == []


INTERRUPTED = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
import numpy as np
from byol_jax.data import Loader
from byol_jax.data.dataset import Dataset

def take(indices, *, workers):
    time.sleep(0.1)
    return np.zeros((len(indices), 2, 2, 1), np.uint8)

with Loader(Dataset(take, 64_000, (2, 2, 1), {}), batch_size=64_000, seed=0, place=lambda batch: batch) as loader:
    print("jax" in sys.modules, flush=True)
    next(loader)  # a hundred seconds
"""


def test_ctrl_c_while_waiting_ends_the_process_at_once_and_nothing_here_loads_jax():
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"False\n"
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=20)
    assert errors.splitlines()[-1] == b"KeyboardInterrupt"
    assert child.returncode not in (0, None)


REFUSED = [
    ({"batch_size": 51}, DataError, "batch size 51 is larger than the data, 50 images"),
    ({"batch_size": 0}, ConfigurationError, "batch size 0"),
    ({"batch_size": 10, "process_count": 3}, ConfigurationError, "multiple of the number of processes"),
    ({"batch_size": 10, "process_index": 2, "process_count": 2}, ConfigurationError, "process 2 of 2"),
    ({"batch_size": 10, "workers": 0}, ConfigurationError, "workers 0: at least 1"),
    ({"batch_size": 10, "prefetch": 0}, ConfigurationError, "prefetch 0: at least 1"),
    ({"batch_size": 10, "start_step": -1}, ConfigurationError, "start_step -1: at least 0"),
    ({"batch_size": 10, "seed": -1}, ConfigurationError, "seed -1: at least 0"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_impossible_numbers_are_refused_before_a_thread_starts(options, error, message):
    with pytest.raises(error, match=message):
        Loader(open_dataset(IMAGES), **({"seed": 0} | options))
    assert loader_threads() == []


BATCHES = [IMAGES[:10], IMAGES[10:20], IMAGES[20:30]]


@pytest.mark.parametrize("start", [0, 2, 4])
def test_any_iterable_goes_round_and_resumes(start):
    batches = first(IterableLoader(BATCHES, start_step=start), 4)
    np.testing.assert_array_equal(batches, [BATCHES[step % 3] for step in range(start, start + 4)])


def test_kinds_of_batches():
    labels = np.arange(10)
    for batch in (
        BATCHES[0],
        jax.device_put(BATCHES[0]),
        torch.from_numpy(BATCHES[0]),
        (BATCHES[0], labels),
        [BATCHES[0]],
    ):
        np.testing.assert_array_equal(first(IterableLoader([batch], num_channels=3), 1), BATCHES[:1])
    floats = (BATCHES[0] / 255).astype(np.float32)
    assert first(IterableLoader([floats]), 1)[0].dtype == np.float32
    for shape, channels in ((4, 64, 8, 8), 8), ((4, 13, 8, 12), 12), ((4, 8, 8, 8), 8), ((4, 20, 20, 13), None):
        assert first(IterableLoader([np.zeros(shape, np.uint8)], num_channels=channels), 1)[0].shape == shape
    grey = BATCHES[0][..., 0]
    np.testing.assert_array_equal(first(IterableLoader([grey]), 1)[0], grey)
    series = np.random.default_rng(0).normal(size=(4, 100, 3)).astype(np.float32)
    np.testing.assert_array_equal(first(IterableLoader([series]), 1)[0], series)
    signal = np.random.default_rng(0).normal(size=(4, 100)).astype(np.float32)
    np.testing.assert_array_equal(first(IterableLoader([signal]), 1)[0], signal)


def test_a_torch_data_loader():
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(IMAGES), torch.arange(50))
    batches = first(IterableLoader(torch.utils.data.DataLoader(pairs, batch_size=25)), 3)
    np.testing.assert_array_equal(batches, [IMAGES[:25], IMAGES[25:], IMAGES[:25]])
    with IterableLoader(torch.utils.data.DataLoader(pairs, batch_size=20)) as loader:
        next(loader), next(loader)
        with pytest.raises(DataError, match=r"batch 2: shape \(10, 8, 6, 3\).*drop_last=True"):
            next(loader)


def test_a_generator_serves_as_long_as_it_lasts():
    with IterableLoader((batch for batch in BATCHES), start_step=1) as loader:
        next(loader), next(loader)
        with pytest.raises(DataError, match="gave nothing more after 3 batches: give one that can be iterated again"):
            next(loader)
        assert loader.position == 3


BAD_BATCHES = {
    "channels": (BATCHES[0], 1, "batch 0: images of 3 channels"),
    "range": (BATCHES[0].astype(np.float32), None, "batch 0: float32 values from"),
    "range in jax": (jax.numpy.float32, None, "batch 0: float32 values from"),
    "dtype": (BATCHES[0].astype(np.int32), None, "batch 0: dtype int32"),
    "masked": (np.ma.masked_array(BATCHES[0], mask=True), None, "batch 0: a masked array, .* fill it first"),
    "masked, and labels": ((np.ma.masked_array(BATCHES[0]), np.arange(10)), None, "batch 0: a masked array"),
    "other bands first": (np.zeros((4, 13, 8, 12), np.uint8), 3, "batch 0: .*say which layout"),
    "13 bands": (np.zeros((4, 13, 8, 8), np.uint8), None, r"may be 13 × 8 pixels of 8 channels \(NHWC\) or 8 × 8"),
    "64 maps": (np.zeros((4, 64, 8, 8), np.uint8), None, r"or 8 × 8 pixels of 64 channels \(NCHW\): say which layout"),
    "one image": (BATCHES[0][0], None, "may be 8 grey images of 6 × 3 pixels or one of 8 × 6 pixels and 3 channels"),
    "dict": (
        {"x": BATCHES[0], "label": 1},
        None,
        "batch 0: a dict of x, label: expected one entry that is named image",
    ),
    "ragged": ([[1, 2], [3]], None, "batch 0: "),
    "a number": (np.float32(0.5), None, r"batch 0: shape \(\)"),
    "no batches": (None, None, "gave nothing more after 0 batches"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_batches_that_are_none(case):
    batch, num_channels, message = BAD_BATCHES[case]
    batch = jax.device_put(BATCHES[0].astype(np.float32)) if case == "range in jax" else batch
    loader = IterableLoader([] if batch is None else [batch], num_channels=num_channels)
    with loader, pytest.raises(DataError, match=message):
        next(loader)


def test_what_cannot_be_iterated_is_refused_at_once():
    with pytest.raises(DataError, match="int: not an iterable of image batches"):
        IterableLoader(7)
