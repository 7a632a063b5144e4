"""A folder whose files hold several images, other channels, or numbers beyond 16 bits, as one dataset."""

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import tifffile
from PIL import Image

from byol_jax import ConfigurationError, DataError
from byol_jax.data import open_dataset
from byol_jax.data.files import survey
from byol_jax.data.fit import FITS
from byol_jax.data.ranges import estimate_range
from byol_jax.data.readers import guarded
from byol_jax.data.readers import open as open_module
from byol_jax.data.readers.reading import make_reading
from byol_jax.data.unusable import UnusableImageError

NUMBERS = np.random.default_rng(0)
STACK = NUMBERS.integers(0, 65536, (3, 20, 20), np.uint16)


def save(path, data, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, data, **({"photometric": "minisblack", "metadata": None} | options))
    return path


def open_ranged(folder, **options):
    return open_dataset(folder, any_range=True, **options)


@pytest.fixture
def stacks(tmp_path):
    """Two classes: a stack of three pages, and two files of one page each."""
    folder = tmp_path / "images"
    save(folder / "a" / "stack.tif", STACK)
    save(folder / "b" / "one.tif", STACK[0])
    Image.fromarray(STACK[1]).save(folder / "b" / "two.png")
    return folder


def test_each_page_is_an_image_of_its_files_class(stacks, tmp_path):
    verdict = tmp_path / "images.json"
    dataset = open_dataset(stacks, num_channels=1, with_labels=True, verdict_path=verdict)
    assert dataset.names == ("a/stack.tif#1", "a/stack.tif#2", "a/stack.tif#3", "b/one.tif", "b/two.png")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert (dataset.identity["count"], dataset.dtype) == (5, "uint16")
    np.testing.assert_array_equal(dataset.take(range(5))[..., 0], [*STACK, STACK[0], STACK[1]])
    assert dataset.notes == ("1 file read so: axes IYX, 3 x 20 x 20; I: 3 images; the first: 'a/stack.tif'",)
    content = json.loads(verdict.read_text())
    assert content["read_by"] == {"a/stack.tif": ["tiff", 3]}
    again = open_dataset(stacks, num_channels=1, with_labels=True, verdict_path=verdict)
    assert (again.names, again.identity) == (dataset.names, dataset.identity)
    np.testing.assert_array_equal(again.take([2, 4]), dataset.take([2, 4]))


def test_pictures_alone_leave_the_verdict_as_it_was(tmp_path):
    Image.fromarray(STACK[0]).save(tmp_path / "a.png")
    save(tmp_path / "b.tif", STACK[0])
    (tmp_path / "run").mkdir()
    open_dataset(tmp_path, num_channels=1, verdict_path=tmp_path / "run" / "images.json")
    content = json.loads((tmp_path / "run" / "images.json").read_text())
    assert sorted(content) == ["dtype", "files", "format", "is_grey", "skipped", "times"]
    assert content["format"].endswith(", 1")


def test_without_the_package_the_refusal_is_what_it_was_and_names_the_extra(stacks, monkeypatch):
    for module in (survey, open_module):
        monkeypatch.setattr(module, "is_installed", lambda reader: False)
    dataset = open_dataset(stacks, num_channels=1)
    ((name, reason),) = dataset.skipped
    assert name == "a/stack.tif"
    assert reason == (
        "a TIFF of 3 pages, of which only the first would be used: save each by itself, or as an array (.npy);"
        ' or pip install "byol-jax[tiff]", which reads it'
    )
    with pytest.raises(DataError, match=r'tifffile isn.t installed, which reads it: pip install "byol-jax\[tiff\]"'):
        open_dataset(stacks / "a", num_channels=5)


@pytest.mark.slow
@pytest.mark.parametrize(("package", "name"), [("tifffile", "a.tif"), ("pydicom", "a.dcm")])
def test_a_package_that_is_absent_is_named_with_its_extra(tmp_path, package, name):
    """In a process of its own, as somebody meets it who hasn't installed it."""
    save(tmp_path / "images" / name, np.zeros((20, 20, 5), np.uint16), planarconfig="contig")
    program = (
        f"import sys; sys.modules['{package}'] = None\n"
        "from byol_jax.data import open_dataset\n"
        f"try: open_dataset({str(tmp_path / 'images')!r}, num_channels=5, any_range=True)\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    extra = {"tifffile": "tiff", "pydicom": "dicom"}[package]
    (line,) = done.stdout.splitlines()
    assert f'{package} isn\'t installed, which reads it: pip install "byol-jax[{extra}]"' in line


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8", "float32"])
@pytest.mark.filterwarnings("ignore::byol_jax.data.sources.ImageWarning")
def test_channels_are_resized_in_their_own_numbers(tmp_path, fit, dtype):
    """Beside Pillow's own resize of each channel as floats."""
    data = NUMBERS.normal(100, 40, (30, 50, 5)).clip(0, 255).astype(dtype)
    save(tmp_path / "a.tif", data, planarconfig="contig")
    dataset = open_ranged(tmp_path, num_channels=5, image_size=14, fit=fit)
    found = dataset.take([0])[0]
    size = dataset.image_shape[:2]
    for channel in range(5):
        plane = Image.fromarray(data[..., channel].astype(np.float32))
        expected = np.asarray(FITS[fit].resize(plane, size))
        if fit == "contain" and dtype == "int16":
            expected = np.where(expected == 0, data[..., channel].min(), expected)  # around it, the least number
        atol = 1e-3 if found.dtype == np.float32 else 1 if dtype == "uint8" else 0.51
        np.testing.assert_allclose(found[..., channel], expected, atol=atol)


def test_other_channels_are_as_stored_and_their_range_is_looked_for(tmp_path):
    folder = tmp_path / "images"
    bands = NUMBERS.integers(300, 4000, (4, 20, 20, 5), np.uint16)
    for number, data in enumerate(bands):
        save(folder / f"{number}.tif", data, planarconfig="contig")
    dataset = open_ranged(folder, num_channels=5)
    assert (dataset.image_shape, dataset.dtype, dataset.range_is_known) == ((20, 20, 5), "uint16", False)
    np.testing.assert_array_equal(dataset.take(range(4)), bands)
    low, high = estimate_range(dataset, percentile=100, seed=0).value_range
    assert (low, high) == (tuple(bands.min((0, 1, 2))), tuple(bands.max((0, 1, 2))))
    chosen = open_ranged(folder, bands=(4, 1))
    np.testing.assert_array_equal(chosen.take([2]), bands[2:3][..., [3, 0]])
    assert chosen.identity == dataset.identity


def test_pictures_by_bands_are_as_stored_too(tmp_path):
    colour = NUMBERS.integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.png")
    found = open_dataset(tmp_path, bands=(3, 1)).take([0])
    np.testing.assert_array_equal(found[0], colour[..., [2, 0]])
    Image.fromarray(colour[..., 0]).save(tmp_path / "grey.png")
    dataset = open_dataset(tmp_path, bands=(3, 1))
    assert dataset.skipped == (("grey.png", "1 channel, and band 3 is asked for"),)


def test_signed_numbers_are_exact_and_rounded_ones_are_spoken_of(tmp_path):
    data = NUMBERS.integers(-32768, 32768, (20, 20), np.int16)
    save(tmp_path / "i" / "a.tif", data)
    np.testing.assert_array_equal(open_ranged(tmp_path / "i", num_channels=1).take([0])[0, ..., 0], data)
    save(tmp_path / "u" / "a.tif", np.full((20, 20), 2**24 + 1, np.uint32))
    with pytest.warns(UserWarning, match=r"1 of 1 images hold numbers that float32 rounds: .* above 16,777,216"):
        open_ranged(tmp_path / "u", num_channels=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bands": ()}, "bands"),
        ({"bands": (0,)}, "bands"),
        ({"bands": (1, 2), "num_channels": 3}, "2 bands for 3 channels"),
        ({"tiff_axes": "YX"}, "tiff_axes 'YX'"),
        ({"num_channels": 0}, "num_channels 0"),
    ],
)
def test_impossible_options_are_refused(stacks, options, said):
    with pytest.raises(ConfigurationError, match=said):
        open_dataset(stacks, **options)
    if "num_channels" not in options:
        with pytest.raises(ConfigurationError, match="only for a folder of image files"):
            open_dataset(np.zeros((4, 8, 8, 3), np.uint8), **options)


READING = make_reading(1)


def read(path, index=0, workers=None):
    request = guarded._request("read", "tiff", path, READING)
    options = {"size": None, "fit": "cover", "dtype": "uint16"}
    answer, content = (workers or guarded._workers()).ask(request | {"index": index, "options": options})
    return np.frombuffer(content, answer["dtype"]).reshape(answer["shape"])


@pytest.mark.slow
def test_the_death_of_a_decoder_costs_one_image_and_the_next_is_read(tmp_path):
    path, workers = save(tmp_path / "a.tif", STACK), guarded.Workers()
    try:
        np.testing.assert_array_equal(read(path, 1, workers)[..., 0], STACK[1])
        (process,) = workers.idle
        process.send_signal(signal.SIGSTOP)  # it is at work, for all that anyone can see
        killer = threading.Timer(
            0.2, lambda: process.send_signal(signal.SIGSEGV) or process.send_signal(signal.SIGCONT)
        )
        killer.start()
        np.testing.assert_array_equal(read(path, 2, workers)[..., 0], STACK[2])  # asked for once more
        assert workers.idle[0].pid != process.pid
        os.kill(workers.idle[0].pid, signal.SIGKILL)
        workers.idle[0].wait()
        np.testing.assert_array_equal(read(path, 0, workers)[..., 0], STACK[0])  # died idle: another is started
    finally:
        workers.close()


@pytest.mark.slow
def test_what_stops_a_run_damages_no_file(tmp_path):
    """SIGTERM to each process, as schedulers send it, or to the group, as Ctrl-C does SIGINT."""
    path, workers = save(tmp_path / "a.tif", STACK), guarded.Workers()
    try:
        starting = guarded._start()
        assert os.getpgid(starting.pid) == starting.pid != os.getpgid(0)
        starting.terminate()
        workers.idle.append(starting)
        np.testing.assert_array_equal(read(path, 0, workers)[..., 0], STACK[0])
        (running,) = workers.idle
        running.terminate()
        np.testing.assert_array_equal(read(path, 1, workers)[..., 0], STACK[1])
        assert workers.idle == [running]
        running.stdin.close()
        assert running.wait(60) == 0
    finally:
        workers.close()


ENDINGS = {
    "dies": ("import os; input(); os.kill(os.getpid(), 11)", r"its decoder ended its process \(SIGSEGV\): the file is"),
    "hangs": ("import time; time.sleep(100)", r"its decoder took longer than 0.5 s"),
    "ends": ("input(); raise SystemExit(3)", r"the process that reads it ended with exit code 3"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_ends_its_decoder_twice_is_bad(tmp_path, monkeypatch, ending):
    program, said = ENDINGS[ending]
    started = []

    def start():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, "-S", "-c", program], **pipes))
        return started[-1]

    monkeypatch.setattr(guarded, "_start", start)
    workers = guarded.Workers(seconds=0.5 if ending == "hangs" else 60)
    with pytest.raises(UnusableImageError, match=said):
        read(tmp_path / "a.tif", 0, workers)
    assert len(started) == 2
    assert not workers.idle
    assert all(process.returncode is not None for process in started)


def test_many_threads_have_a_worker_each_and_all_get_their_own(stacks):
    dataset = open_dataset(stacks, num_channels=1, cache_bytes=0, workers=3)
    rows = NUMBERS.integers(0, 5, 60)
    expected = np.stack([*STACK, STACK[0], STACK[1]])[rows]
    np.testing.assert_array_equal(dataset.take(rows, workers=3)[..., 0], expected)
