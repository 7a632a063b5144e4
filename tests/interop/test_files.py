"""Weight files: what is written is what is read, in every format, by us and by the formats' own libraries."""

import importlib
import os
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from weight_samples import FORMATS, HELD, assert_identical, small_state_dict, state_dicts

from byol_jax.errors import CheckpointFormatError, InteropError, MissingDependencyError, UnsafeCheckpointError
from interop import load_state_dict, save_state_dict
from interop.files import EXTENSIONS, stored_format
from interop.formats.dill_pickle import is_plain_pickle


@pytest.mark.parametrize("ending", FORMATS)
@settings(deadline=None)
@given(data=st.data())
def test_a_round_trip_keeps_names_types_shapes_and_bits(ending, data):
    state_dict = data.draw(state_dicts(HELD[ending]).filter(bool))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/net{ending}"
        save_state_dict(path, state_dict)
        loaded = load_state_dict(path)
        assert os.listdir(folder) == [f"net{ending}"]
    assert_identical(loaded, state_dict, ordered=ending != ".safetensors")
    for array in loaded.values():
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.flags.owndata


@pytest.mark.parametrize("ending", [*EXTENSIONS] if ".pt" in FORMATS else [".safetensors", ".npz"])
def test_the_same_values_give_the_same_bytes_under_every_ending(ending, tmp_path):
    for name in ("one", "two"):
        save_state_dict(tmp_path / f"{name}{ending}", small_state_dict())
    assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("claimed", [".npz", ".pt", ".safetensors", ".txt", ""])
def test_content_decides_the_format_not_the_name(ending, claimed, tmp_path):
    save_state_dict(tmp_path / f"net{ending}", small_state_dict())
    os.rename(tmp_path / f"net{ending}", tmp_path / f"renamed{claimed}")
    assert_identical(load_state_dict(tmp_path / f"renamed{claimed}"), small_state_dict(), ordered=False)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("high", [0, 1])
def test_a_header_whose_length_begins_like_a_pickle_is_read(protocol, high, tmp_path):
    """640 bytes are 80 02 00 …, and a pickle of protocol 2 begins with 80 02."""
    length = 0x80 + (protocol << 8) + (high << 16)
    name = "a" * (length - 58)  # the header is filled with spaces to a multiple of 8
    path = tmp_path / "net.safetensors"
    save_file({name: np.ones(2, np.float32)}, path)
    assert path.read_bytes()[:8] == length.to_bytes(8, "little")
    assert load_state_dict(path)[name].tolist() == [1, 1]
    assert stored_format(path) == "safetensors"
    assert not is_plain_pickle(path)


def test_other_libraries_read_what_is_written(tmp_path):
    from safetensors.numpy import load_file

    torch = pytest.importorskip("torch")
    state_dict = small_state_dict()
    for ending in FORMATS:
        save_state_dict(tmp_path / f"net{ending}", state_dict)
    assert_identical(load_file(tmp_path / "net.safetensors"), state_dict, ordered=False)
    with np.load(tmp_path / "net.npz") as archive:
        plain = {name: archive[name] for name in archive.files}
    plain["fc.bias"] = plain["fc.bias"].view(state_dict["fc.bias"].dtype)  # |V2, as np.savez has it
    assert_identical(plain, state_dict)
    tensors = torch.load(tmp_path / "net.pt", weights_only=True)
    assert tensors["fc.bias"].dtype == torch.bfloat16
    assert tensors["fc.bias"].view(torch.uint16).tolist() == state_dict["fc.bias"].view(np.uint16).tolist()
    assert tensors["bn1.num_batches_tracked"].dtype == torch.int64
    assert tensors["bn1.num_batches_tracked"].shape == ()


def test_what_other_libraries_write_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
        "n": torch.tensor(3),
    }
    expected = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.asarray(3)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "new.pt")
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    np.savez_compressed(tmp_path / "x.npz", **expected)
    np.savez(tmp_path / "fortran.npz", a=np.asfortranarray(expected["a"]).astype(">f4"), n=expected["n"])
    for name in ("x.safetensors", "new.pt", "old.pt"):
        loaded = load_state_dict(tmp_path / name)
        assert loaded.pop("b").view(np.uint16).tolist() == [0x3FC0, 0x8000]
        assert_identical(loaded, expected, ordered=False)
    assert_identical(load_state_dict(tmp_path / "x.npz"), expected)
    assert_identical(load_state_dict(tmp_path / "fortran.npz"), expected)


@pytest.mark.parametrize("ending", FORMATS)
def test_strides_and_shared_memory_of_tensors_do_not_matter(ending, tmp_path):
    torch = pytest.importorskip("torch")
    image = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    tied = torch.nn.Parameter(torch.arange(4.0))
    state_dict = {"last": image.to(memory_format=torch.channels_last), "one": tied, "two": tied, "part": image[0, 0]}
    save_state_dict(tmp_path / f"net{ending}", state_dict)
    loaded = load_state_dict(tmp_path / f"net{ending}")
    assert_identical(loaded, {name: value.detach().numpy() for name, value in state_dict.items()}, ordered=False)
    assert not np.shares_memory(loaded["one"], loaded["two"])


def test_shared_storage_in_a_torch_file_is_read_as_separate_arrays(tmp_path):
    torch = pytest.importorskip("torch")
    tied = torch.arange(4.0)
    torch.save({"one": tied, "two": tied, "part": tied[1:3]}, tmp_path / "net.pt")
    loaded = load_state_dict(tmp_path / "net.pt")
    assert loaded["part"].tolist() == [1, 2]
    assert not np.shares_memory(loaded["one"], loaded["two"])


def test_jax_arrays_are_written_as_they_are(tmp_path):
    import jax.numpy as jnp

    save_state_dict(tmp_path / "net.safetensors", {"x": jnp.ones(3, jnp.bfloat16), "y": jnp.int32(2)})
    loaded = load_state_dict(tmp_path / "net.safetensors")
    assert loaded["x"].dtype == jnp.bfloat16
    assert loaded["y"].dtype == np.int32


@pytest.mark.parametrize(
    ("name", "state_dict", "error", "words"),
    [
        ("net.onnx", {}, CheckpointFormatError, r"unknown ending; use \.safetensors, \.pt, \.pth, \.ckpt, \.npz"),
        ("no/net.npz", {}, CheckpointFormatError, "doesn't exist"),
        ("folder.npz", {}, CheckpointFormatError, "is a folder"),
        ("net.npz", [1], CheckpointFormatError, "expected a dict"),
        ("net.npz", {1: np.zeros(1)}, CheckpointFormatError, "names must be text"),
        ("net.npz", {"\ud800": np.zeros(1)}, CheckpointFormatError, "valid text"),
        ("net.npz", {"x": 1.0}, CheckpointFormatError, "x: expected an array, got float"),
        ("net.npz", {"x": np.array([{}])}, UnsafeCheckpointError, "Python objects"),
        ("net.npz", {"../x": np.zeros(1)}, UnsafeCheckpointError, "leads out"),
        ("net.npz", {"x" * 70_000: np.zeros(1)}, CheckpointFormatError, "too long"),
        ("net.npz", {"x": np.array(["a"])}, CheckpointFormatError, "is no"),
        ("net.safetensors", {"__metadata__": np.zeros(1)}, CheckpointFormatError, "reserves"),
        ("net.safetensors", {"x": np.zeros(1, complex)}, CheckpointFormatError, "can't hold complex128"),
    ],
)
def test_what_cannot_be_saved_is_one_line_and_leaves_nothing(name, state_dict, error, words, tmp_path):
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(error, match=words) as caught:
        save_state_dict(tmp_path / name, state_dict)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npz"]


def test_writing_asks_for_torch_by_name_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "byol-jax\[torch\]"'):
        save_state_dict(tmp_path / "new.pt", {})
    save_state_dict(tmp_path / "net.npz", {"x": np.zeros(1)})
    assert load_state_dict(tmp_path / "net.npz")["x"].tolist() == [0]


def test_an_old_torch_writes_nothing(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(MissingDependencyError, match=r"2\.9\.1\+cpu is too old"):
        save_state_dict(tmp_path / "net.pt", {})
    assert not list(tmp_path.iterdir())


def test_reading_needs_no_torch(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    for name, zipped in (("new.pt", True), ("old.pt", False)):
        torch.save({"state_dict": module.state_dict()}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    expected = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("new.pt", "old.pt"):
        assert_identical(load_state_dict(tmp_path / name), expected)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_fault_while_writing_leaves_the_old_file_and_nothing_else(ending, step, tmp_path, monkeypatch):
    path = tmp_path / f"net{ending}"
    save_state_dict(path, small_state_dict())
    before = path.read_bytes()

    def fault(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fault)
    with pytest.raises(OSError, match="No space left"):
        save_state_dict(path, small_state_dict(seed=1))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
def test_a_full_disk_is_an_os_error_and_leaves_the_old_file_and_nothing_else(ending, tmp_path):
    path = tmp_path / f"net{ending}"
    save_state_dict(path, small_state_dict())
    before = path.read_bytes()
    code = (
        "import resource, numpy; from interop.files import save_state_dict\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        f"try: save_state_dict({str(path)!r}, {{'x': numpy.zeros(10_000)}})\n"
        "except OSError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", FORMATS)
def test_permissions_are_the_umasks_or_the_old_files(ending, tmp_path):
    (tmp_path / "reference").touch()
    save_state_dict(tmp_path / f"net{ending}", small_state_dict())
    assert (tmp_path / f"net{ending}").stat().st_mode == (tmp_path / "reference").stat().st_mode
    (tmp_path / f"net{ending}").chmod(0o600)
    save_state_dict(tmp_path / f"net{ending}", small_state_dict())
    assert (tmp_path / f"net{ending}").stat().st_mode & 0o777 == 0o600


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real.npz").write_bytes(b"old")
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    save_state_dict(tmp_path / "link.npz", small_state_dict())
    assert (tmp_path / "link.npz").is_symlink()
    assert_identical(load_state_dict(tmp_path / "real.npz"), small_state_dict())


@pytest.mark.parametrize("ending", FORMATS)
def test_an_archive_without_a_single_tensor_is_refused(ending, tmp_path):
    with pytest.raises(CheckpointFormatError, match="an archive without a single tensor"):
        save_state_dict(tmp_path / f"net{ending}", {})
    assert not list(tmp_path.iterdir())
    write = {".npz": np.savez, ".safetensors": lambda path: save_file({}, path)}
    write.get(ending, lambda path: importlib.import_module("torch").save({}, path))(tmp_path / f"net{ending}")
    with pytest.raises(CheckpointFormatError, match=rf"net\{ending}: an archive without a single tensor"):
        load_state_dict(tmp_path / f"net{ending}")
    (tmp_path / "empty").write_bytes(b"PK\x05\x06" + bytes(18))  # a zip archive's end and nothing before it
    with pytest.raises(CheckpointFormatError, match="an archive without a single tensor"):
        load_state_dict(tmp_path / "empty")


def test_an_old_pytorch_file_without_a_single_tensor_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    for content in ({}, {"state_dict": {}, "epoch": 3}):
        torch.save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=False)
        with pytest.raises(CheckpointFormatError, match="an archive without a single tensor"):
            load_state_dict(tmp_path / "net.pt")


def test_max_bytes_is_a_cap_on_every_format(tmp_path):
    for ending in FORMATS:
        save_state_dict(tmp_path / f"net{ending}", {"x": np.zeros(1000, np.float32)})
        with pytest.raises(UnsafeCheckpointError, match="more than"):
            load_state_dict(tmp_path / f"net{ending}", max_bytes=3999)
        assert load_state_dict(tmp_path / f"net{ending}", max_bytes=10_000)["x"].shape == (1000,)


def test_every_error_here_is_a_child_of_one_parent():
    assert issubclass(CheckpointFormatError, InteropError)
    assert issubclass(UnsafeCheckpointError, InteropError)


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_torch_file_of_either_byte_order_is_read(order, tmp_path):
    torch = pytest.importorskip("torch")
    values = np.array([[1.5, -2.0], [3.0, 4e-9]], np.float32)
    torch.save({"x": torch.from_numpy(values), "n": torch.tensor(3)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        for name, data in members.items():
            if name.endswith("byteorder"):
                data = order.encode()
            elif "/data/" in name and order == "big":
                data = np.frombuffer(data, "<f4" if len(data) == 16 else "<i8").byteswap().tobytes()
            archive.writestr(name, data)
    assert_identical(load_state_dict(tmp_path / "y.pt"), {"x": values, "n": np.asarray(3)})


def test_marks_of_torchs_tensors_are_heeded(tmp_path):
    torch = pytest.importorskip("torch")
    one, two = torch.tensor([1 + 2j, 3 - 4j]), torch.tensor([5 + 6j])
    state_dict = {"conjugate": one.conj(), "imaginary": two.conj().imag, "part": torch.arange(9.0)[2:5]}
    assert state_dict["imaginary"].is_neg()
    for (
        name,
        tensor,
    ) in state_dict.items():  # together, torch may take copies for one memory
        torch.save({name: tensor}, tmp_path / "x.pt")
        expected = tensor.resolve_conj().resolve_neg().numpy().copy()
        assert_identical(load_state_dict(tmp_path / "x.pt"), {name: expected})


def test_files_without_check_sums_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"x": torch.arange(3.0)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_state_dict(tmp_path / "x.pt")["x"].tolist() == [0, 1, 2]
