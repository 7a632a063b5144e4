"""Every reader of weight files, given files that are damaged with an understanding of their format.

Whatever is in a file: arrays come out, or one of our own errors in one line; no code runs, nothing is written, and no
more memory is asked for than `ROOM`. Quick tests take hypothesis' smallest files, long ones a fixed set of many.
"""

import argparse
import codecs
import contextlib
import os
import pickle
import resource
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from byol_learners import state_of, theirs
from deepmind_files import pickles
from hostile_files import damage, hostile_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutated_files import (
    edit_json,
    edit_legacy,
    edit_members,
    edit_npy,
    edit_pickle,
    edit_records,
    edit_safetensors,
    edit_torch_member,
    one_of,
    splice,
)
from weight_samples import assert_identical, small_state_dict

import interop
from byol_jax.errors import CheckpointFormatError, StateDictMismatchError, UnsafeCheckpointError
from interop import load_state_dict, save_state_dict
from interop.arrays import as_numpy
from interop.formats.containers import choose_weights, without_wrappers
from interop.formats.dill_pickle import load_pickle

torch = pytest.importorskip("torch")

ROOM = 64 << 20
"""Bytes of address space that reading one file may take beside what the process has: 4 MiB pieces, a few of them."""

ALLOWED = (CheckpointFormatError, UnsafeCheckpointError, StateDictMismatchError)
"""By name: the bare parent is never raised."""

HARMFUL = ("os.", "subprocess.", "socket.", "shutil.", "tempfile.", "ctypes.", "pickle.", "marshal.", "exec", "import")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Writes down what Python does outside itself while a file is read (`sys.addaudithook` is for ever)."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if not self.on:
            return
        if event == "open":
            if isinstance(arguments[2], int) and arguments[2] & WRITING:
                self.seen.append((event, arguments))
        elif event.startswith(HARMFUL) and event not in ("os.listdir", "os.scandir"):
            self.seen.append((event, str(arguments)[:200]))


WATCH = Watch()


def reads_or_refuses(read):
    """What was read, or None after one of our errors; nothing happened beside the reading."""
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    said, got, before = "", None, resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, before[1]))
    WATCH.on = True
    try:
        got = read()
    except ALLOWED as error:
        said = str(error)
    finally:
        WATCH.on = False
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert not WATCH.seen
    assert said.isprintable()
    assert len(said) < 3000
    assert "memory" not in said.rpartition(": ")[2].lower(), said
    return got


def are_arrays(loaded):
    if loaded is not None:
        assert all(type(array) is np.ndarray and not array.dtype.hasobject for array in loaded.values())
        assert all(array.flags.owndata and array.flags.c_contiguous for array in loaded.values())


def experiment(protocol):
    """A small pickle of DeepMind's shape."""
    tree = {"classifier": {"b": np.ones(3, np.float32), "w": np.ones((2, 3))}}
    return pickle.dumps(
        {"experiment_state": {"online_params": tree}, "step": 3, "rng": np.zeros(2, np.uint32)}, protocol
    )


def store(folder, ending, state_dict, **options):
    save_state_dict(folder / f"x{ending}", state_dict, **options)
    return (folder / f"x{ending}").read_bytes()


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Sound files by the kind of reader, and harmful ones to splice with."""
    folder = tmp_path_factory.mktemp("originals")
    small, learner = small_state_dict(), theirs("D1")
    old = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in small.items()}
    tensors |= {
        "view": tensors["conv1.weight"][:, 0],
        "last": tensors["fc.weight"].T,
        "p": torch.nn.Parameter(torch.ones(2)),
    }
    container = {"epoch": 3, "state_dict": tensors, "optimizer": {"state": {0: {"step": 1.0}}, "b": b"1", "s": {1}}}
    objects = {"args": argparse.Namespace(out=Path("x"), kinds={1, "a"}), "metric": np.float64(0.5), **container}
    for name, options in old.items():
        torch.save(container, folder / name, **options)
        torch.save(objects, folder / f"objects-{name}", pickle_protocol=4, **options)
    np.savez_compressed(folder / "packed.npz", **{name: array for name, array in small.items() if name != "fc.bias"})
    save_state_dict(folder / "m.safetensors", small, max_shard_bytes=300)
    kinds = {
        "safetensors": [
            store(folder, ".safetensors", small),
            store(folder, ".safetensors", {"a": np.ones(3, np.int8)}),
        ],
        "npz": [store(folder, ".npz", small), (folder / "packed.npz").read_bytes()],
        "torch": [store(folder, ".pt", small), *((folder / name).read_bytes() for name in ("zip", "objects-zip"))],
        "legacy": [(folder / name).read_bytes() for name in ("legacy", "objects-legacy")],
        "pickle": [
            *map(experiment, (2, 4)),
            *(pickles()[f"tiny18/{name}.pkl"][:3000] for name in ("pretrain", "pretrain_2020")),
        ],
        "sharded": [path.read_bytes() for path in sorted(folder.glob("m*"))],
        "learner": [store(folder, ending, learner) for ending in (".safetensors", ".npz", ".pt")],
        "hostile": list(hostile_files(str(folder / "code_was_run")).values()),
    }
    return kinds, folder / "code_was_run"


MUTATIONS = {
    "safetensors": [edit_safetensors],
    "npz": [edit_records, lambda content, choose: edit_members(content, choose, edit_npy)],
    "torch": [edit_records, *2 * [lambda content, choose: edit_members(content, choose, edit_torch_member)]],
    "legacy": [edit_legacy],
    "pickle": [edit_pickle],
}
MUTATIONS["learner"] = [one for kind in ("safetensors", "npz", "torch") for one in MUTATIONS[kind]]


def mutate(originals, kind, choose):
    """One file's content: edited, damaged, or grown together with another one."""
    content = one_of(choose, originals[kind])
    if choose(4) == 0:
        other = one_of(choose, originals[one_of(choose, list(originals))])
        return splice(content, other, choose)
    fitting = [edit for edit in MUTATIONS[kind] if fits(edit, content)]
    return one_of(choose, [*fitting, damage])(content, choose)


def fits(edit, content):
    """Whether the file is of the format that the edit understands."""
    return (edit is edit_safetensors) == (content[8:9] == b"{")


def break_set(folder, files, choose):
    """An index and two shards, one of them damaged, exchanged, taken away, or turned into something else."""
    for path in folder.iterdir():
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    names = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json"]
    contents = dict(zip(names, files, strict=True))
    kind, name = choose(8), one_of(choose, names[:2])
    if kind < 3:
        contents[names[2]] = edit_json(files[2].decode(), choose).encode("utf-8", "surrogatepass")
    elif kind == 3:
        contents[names[2]] = damage(files[2], choose)
    elif kind == 4:
        contents[name] = edit_safetensors(contents[name], choose)
    elif kind == 5:
        contents[name] = contents[one_of(choose, names)]
    else:
        del contents[name]
    for name_there, content in contents.items():
        (folder / name_there).write_bytes(content)
    made = choose(4)
    if name not in contents and made:
        (
            lambda path: os.mkfifo(path),
            lambda path: path.mkdir(),
            lambda path: path.symlink_to(folder.parent / "secret"),
        )[made - 1](folder / name)


def agrees_with_torch(path, got):
    """What torch reads from the same file, if it reads it at all, is the same to the bit."""
    try:
        loaded = torch.load(path, weights_only=True, map_location="cpu")
        theirs = without_wrappers(choose_weights(loaded, where="x", is_tensor=torch.is_tensor).state_dict, where="x")
        theirs = {name: as_numpy(tensor, name) for name, tensor in theirs.items()}
    except Exception:  # torch refuses more than we do (a plain dict that was called, protocol 4), in many ways
        return False
    assert_identical(got, theirs)
    return True


def fuzz(kind, originals, folder, cases):
    """So many files of one kind, always the same; how many of them were read, refused, and read by torch too."""
    kinds, sentinel = originals
    here = folder / "here"
    here.mkdir()
    (folder / "secret").write_bytes(kinds["sharded"][0])
    counts = {"read": 0, "refused": 0, "torch": 0}
    state = state_of("D1") if kind == "learner" else None
    readers = {"pickle": load_pickle, "learner": lambda path: interop.load_byol_checkpoint(path, like=state)}
    read = readers.get(kind, load_state_dict)

    def one(choose):
        if kind == "sharded":
            break_set(here, kinds["sharded"], choose)
            got = reads_or_refuses(lambda: read(here))
        else:
            (here / "x").write_bytes(mutate(kinds, kind, choose))
            got = reads_or_refuses(lambda: read(here / "x"))
            assert os.listdir(here) == ["x"]
        counts["refused" if got is None else "read"] += 1
        if read is load_state_dict and got is not None:
            are_arrays(got)
            if kind in ("torch", "legacy"):
                counts["torch"] += agrees_with_torch(here / "x", got)

    @settings(max_examples=cases, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def drawn(data):
        one(lambda count: data.draw(st.integers(0, count - 1)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an error here, they would hide what comes after them
        warm_up(here / "x", kinds, (load_state_dict, load_pickle, read))
        drawn()
    assert not sentinel.exists()
    return counts


def warm_up(path, kinds, readers):
    """Imports what reading imports, so that it isn't taken for a file's doing."""
    for content in [content for contents in kinds.values() for content in contents]:
        path.write_bytes(content)
        for read in readers:
            with contextlib.suppress(*ALLOWED):
                read(path)
    for codec in ("unicode_escape", "raw_unicode_escape", "utf-8", "latin-1", "ascii", "cp437"):
        codecs.lookup(codec)


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """The working directory; it must stay empty."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


CASES = {"safetensors": 20_000, "npz": 20_000, "torch": 25_000, "legacy": 15_000, "pickle": 15_000, "sharded": 10_000}
CASES |= {"learner": 3_000}
NAMES = {"legacy": "torch files of before 1.6", "pickle": "DeepMind pickles", "learner": "whole learners"}
NAMES |= {"sharded": "sharded safetensors", "torch": "torch archives"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_some_files_damaged_with_understanding(kind, originals, tmp_path, empty_folder):
    counts = fuzz(kind, originals, tmp_path, 60)
    assert counts["read"] + counts["refused"] >= 50
    assert not os.listdir(".")


@pytest.mark.long
@pytest.mark.parametrize("kind", CASES)
def test_many_files_damaged_with_understanding(kind, originals, tmp_path, empty_folder, share, figure):
    counts = fuzz(kind, originals, tmp_path, share(CASES[kind]))
    assert not os.listdir(".")
    same = f", {counts['torch']:,} of them by torch too, with the same bits" if counts["torch"] else ""
    figure(
        f"{NAMES.get(kind, kind)} damaged with an understanding of their format",
        cases=counts["read"] + counts["refused"],
        result=f"{counts['read']:,} read{same}; {counts['refused']:,} refused by our own error in one line; no code "
        f"run, no file left, at most {ROOM >> 20} MiB asked for",
    )
