"""Files that mean harm, and damaged ones: one clear error, no code run, no file left, no memory taken."""

import io
import os
import pickle
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile_files import Bomb, damage, hostile_files, nest, torch_legacy, torch_zip, zip_bomb, zip_of
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_samples import FORMATS, small_state_dict

from byol_jax.errors import CheckpointFormatError, InteropError, UnsafeCheckpointError
from interop import load_state_dict, save_state_dict
from interop.files import stored_format
from interop.formats.dill_pickle import load_pickle
from interop.learners.reading import read_weights

FORMAT_ERRORS = {
    *("empty.safetensors", "no-pickle.zip", "array.npy", "page.safetensors", "lfs.pt", "random.pt", "zeros.pt"),
    *("short.pt", "lzma.npz", "text.npz", "structured.npz", "negative.npz", "huge-shape.npz", "no-literal.npz"),
    *("deep-header.npz", "lying-size.npz", "header-beyond-the-end.safetensors", "header-not-json.safetensors"),
    *("header-a-list.safetensors", "header-deep.safetensors", "header-long-number.safetensors", "no-dict.safetensors"),
    *("header-not-text.safetensors", "out-of-range.safetensors", "unknown-type.safetensors", "metadata.safetensors"),
    *("extra-field.safetensors", "endless-shape.pt", "endless-shape-legacy.pt"),
    *("module-source.pt", "storage-of-terabytes.pt", "absent-storage.pt", "short-storage.pt"),
}
"""Not harmful in themselves: damaged, or something else. Everything else must be called unsafe."""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What each hostile file was answered with, and what was left in its folder."""
    folder, sentinel = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("sentinel") / "code_was_run"
    contents = hostile_files(str(sentinel))
    errors = {}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        with pytest.raises(InteropError) as caught:
            load_state_dict(folder / name)
        errors[name] = caught.value
    return errors, sorted(os.listdir(folder)) == sorted(contents), sentinel


def test_every_kind_is_refused_with_the_right_error(refusals):
    errors, _, _ = refusals
    unexpected = {name: repr(error) for name, error in errors.items() if type(error) is not kind_of(name)}
    assert not unexpected


def kind_of(name):
    return CheckpointFormatError if name in FORMAT_ERRORS else UnsafeCheckpointError


def test_every_message_is_one_line_that_names_the_file(refusals):
    errors, _, _ = refusals
    for name, error in errors.items():
        assert name in str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 500


def test_no_code_was_run_and_nothing_was_left(refusals):
    _, nothing_new, sentinel = refusals
    assert nothing_new
    assert not sentinel.exists()


def test_the_sentinel_would_have_told(refusals):
    _, _, sentinel = refusals
    pickle.loads(pickle.dumps(Bomb(f"{sentinel}.control"), protocol=2))
    assert Path(f"{sentinel}.control").exists()


def test_a_bomb_takes_no_memory(tmp_path):
    path = tmp_path / "bomb.npz"
    path.write_bytes(zip_bomb(257 << 20))
    tracemalloc.start()
    with pytest.raises(UnsafeCheckpointError, match="give max_bytes if that is meant"):
        load_state_dict(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def repack(content):
    """The same archive, compressed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return zip_of([(name, archive.read(name)) for name in archive.namelist()], method=zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("ending", [ending for ending in FORMATS if ending != ".safetensors"])
def test_max_bytes_counts_what_is_unpacked(ending, tmp_path):
    path = tmp_path / f"zeros{ending}"
    save_state_dict(path, {"x": np.zeros(100_000, np.float32)})
    path.write_bytes(repack(path.read_bytes()))
    assert path.stat().st_size < 10_000
    with pytest.raises(UnsafeCheckpointError, match=r"unpack to 40.*more than 400000"):
        load_state_dict(path, max_bytes=400_000)
    assert load_state_dict(path, max_bytes=410_000)["x"].tolist() == 100_000 * [0.0]


def test_max_bytes_counts_what_tensors_unfold_to(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.zeros(10, 1).expand(10, 10_000), "y": torch.zeros(20_000)[::10_000]}, tmp_path / "x.pt")
    with pytest.raises(UnsafeCheckpointError, match="unfold to 440004 bytes, more than 440003"):
        load_state_dict(tmp_path / "x.pt", max_bytes=440_003)
    assert load_state_dict(tmp_path / "x.pt")["x"].shape == (10, 10_000)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_max_bytes_bounds_the_instructions_of_a_pickle(kind, tmp_path):
    program = b"\x80\x02(" + b"]" * 150_000 + b"t."
    content = torch_zip(program) if kind == "zip" else torch_legacy(program)
    (tmp_path / "x.pt").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UnsafeCheckpointError, match="so many instructions"):
        load_state_dict(tmp_path / "x.pt", max_bytes=len(content))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_text_of_a_pickle_is_not_made_into_more(tmp_path):
    """A thousand times the same megabyte: what makes bytes, sets or tensors of it in torch makes nothing here."""
    many = b"ccollections\nCounter\nh\0\x85R" * 1000
    program = b"\x80\x02X\x00\x00\x10\x00" + b"x" * (1 << 20) + b"q\0" + many + b"t."
    (tmp_path / "x.pt").write_bytes(torch_zip(program.replace(b"X\0", b"(X\0", 1)))
    tracemalloc.start()
    with pytest.raises(CheckpointFormatError, match="holds a tuple"):
        load_state_dict(tmp_path / "x.pt")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_nest_in_a_dill_pickle_is_not_shown(tmp_path):
    for name in (b"numpy\ndtype\n", b"dill._dill\n_create_namedtuple\n", b"_codecs\nencode\n"):
        (tmp_path / "x.pkl").write_bytes(b"\x80\x02(" + nest() + b"c" + name + b"h<h<\x86Rt.")
        with pytest.raises(CheckpointFormatError, match="damaged pickle"):
            load_pickle(tmp_path / "x.pkl")


def test_what_compresses_well_is_no_bomb_yet(tmp_path):
    (tmp_path / "zeros.npz").write_bytes(zip_bomb(4 << 20))
    assert load_state_dict(tmp_path / "zeros.npz")["a"].size == 4 << 20


def test_code_in_files_that_torch_wrote_is_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    sentinel = tmp_path / "code_was_run"
    for legacy in (False, True):
        torch.save(
            {"w": torch.zeros(2), "x": Bomb(str(sentinel))},
            tmp_path / "x.pt",
            _use_new_zipfile_serialization=not legacy,
        )
        with pytest.raises(UnsafeCheckpointError, match=r"posix\.system, nothing was run"):
            load_state_dict(tmp_path / "x.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UnsafeCheckpointError, match=r"Linear.*; nothing was run, save module\.state_dict\(\)"):
        load_state_dict(tmp_path / "module.pt")
    assert not sentinel.exists()


def test_what_a_process_allowed_torch_to_unpickle_stays_refused_here(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.zeros(2), "path": Path("x")}, tmp_path / "x.pt")
    with (
        torch.serialization.safe_globals([type(Path("x")), Path]),
        pytest.raises(UnsafeCheckpointError, match="pathlib"),
    ):
        load_state_dict(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_programs_that_torch_wrote_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "x.pt")
    with pytest.raises(UnsafeCheckpointError, match="TorchScript"):
        load_state_dict(tmp_path / "x.pt")


def test_a_few_bytes_seen_as_many_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.zeros(1).expand(1 << 40)}, tmp_path / "x.pt")
    with pytest.raises(UnsafeCheckpointError, match="unfold to"):
        load_state_dict(tmp_path / "x.pt")


def test_a_flipped_bit_in_a_torch_files_values_is_found(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.full((100,), 1.0)}, tmp_path / "x.pt")
    content = bytearray((tmp_path / "x.pt").read_bytes())
    content[content.find(b"\x00\x00\x80\x3f") + 40] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointFormatError, match="Bad CRC-32"):
        load_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["absent.pt", "folder", "pipe", "unreadable"])
def test_what_is_no_readable_file_is_refused_at_once(name, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "unreadable").symlink_to("unreadable")
    for read in (load_state_dict, read_weights, stored_format):
        with pytest.raises(CheckpointFormatError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_cut_short_anywhere_is_refused(ending, tmp_path):
    path = tmp_path / f"net{ending}"
    save_state_dict(path, {"x": np.arange(1000.0), "y": np.arange(10)})
    content = path.read_bytes()
    lengths = {*range(0, len(content), max(1, len(content) // 40)), *range(0, 100, 7), len(content) - 1}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        with pytest.raises(InteropError):
            load_state_dict(path)


def test_a_flipped_byte_in_a_safetensors_header_is_refused_or_harmless(tmp_path):
    path = tmp_path / "net.safetensors"
    save_state_dict(path, {"x": np.arange(4, dtype=np.int32)})
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for at in range(header):
        for bit in (0, 3, 7):
            path.write_bytes(content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :])
            loads_whole_or_refuses(path, most=16)


def loads_whole_or_refuses(path, *, most):
    """Nothing but arrays of at most `most` bytes, or nothing but our own errors."""
    try:
        loaded = load_state_dict(path)
    except (CheckpointFormatError, UnsafeCheckpointError) as error:
        message = str(error)
    else:
        message = ""
        assert all(type(array) is np.ndarray and not array.dtype.hasobject for array in loaded.values())
        assert sum(array.nbytes for array in loaded.values()) <= most
    assert "\n" not in message


def originals():
    contents = []
    with tempfile.TemporaryDirectory() as folder:
        for ending in FORMATS:
            save_state_dict(f"{folder}/x{ending}", small_state_dict())
            contents.append(Path(f"{folder}/x{ending}").read_bytes())
        if ".pt" in FORMATS:
            import torch

            torch.save({"w": torch.ones(5)}, f"{folder}/old.pt", _use_new_zipfile_serialization=False)
            contents.append(Path(f"{folder}/old.pt").read_bytes())
            np.savez_compressed(f"{folder}/small.npz", x=np.arange(50))
            contents.append(Path(f"{folder}/small.npz").read_bytes())
    return contents


ORIGINALS = originals()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_files_give_arrays_or_our_own_errors(data):
    original = data.draw(st.sampled_from(ORIGINALS))
    content = damage(original, lambda count: data.draw(st.integers(0, count - 1)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(content)
        loads_whole_or_refuses(path, most=1 << 20)
        assert os.listdir(folder) == ["x"]


def test_a_learners_names_are_shown_and_so_must_be_plain(tmp_path):
    save_state_dict(tmp_path / "x.npz", {"online\n\x1b[2Jencoder": np.zeros(1), "fc": np.zeros(1)})
    with pytest.raises(CheckpointFormatError, match=r"names like 'online\\n\\x1b\[2Jencoder'$"):
        read_weights(tmp_path / "x.npz")
