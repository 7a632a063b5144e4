"""Pickles read as data: what DeepMind's files need is read, everything else ends the reading, nothing is ever run."""

import codecs
import collections
import io
import os
import pickle
import random
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from deepmind_files import pickles
from hostile_files import Bomb, damage
from hypothesis import given, settings
from hypothesis import strategies as st

import interop
from byol_jax.errors import CheckpointFormatError, InteropError, UnsafeCheckpointError
from interop.formats.dill_pickle import load_pickle
from interop.learners.reading import read_weights

Experiment = collections.namedtuple("Experiment", ["online_params", "target_params", "opt_state"])


def tree(seed=0):
    return {"classifier": {"b": np.random.default_rng(seed).random(3).astype(np.float32), "w": np.ones((2, 3))}}


def store(tmp_path, content):
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    return path


def call_of(name, *arguments):
    """A pickle of `name(*arguments)`, whatever that is; `Named` arguments are names themselves."""

    class Called:
        def __reduce__(self):
            return Named(name), arguments

    return pickling(Called())


class Named:
    """A name in a pickle."""

    def __init__(self, name):
        self.name = name

    def __call__(self):
        """Only callable things may be called in a pickle."""


class Pickler(pickle._Pickler):
    """Python's own, which writes any name that it is told to."""

    def save(self, obj, *rest, **named):
        if isinstance(obj, Named):
            module, _, name = obj.name.rpartition(".")
            return self.write(f"c{module}\n{name}\n".encode())
        return super().save(obj, *rest, **named)


def pickling(content):
    file = io.BytesIO()
    Pickler(file, 2).dump(content)
    return file.getvalue()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pythons_own_pickles_of_arrays_are_read(protocol, tmp_path):
    content = {"a": np.arange(6.0).reshape(2, 3).T, "b": [np.float32(2), -1, 2**70, 0.5, True, None], "c": ("x", b"y")}
    content |= {"d": np.arange(3, dtype=">i2"), "e": np.zeros((2, 0)), "f": np.array(7), "g": {1: {}}}
    got = load_pickle(store(tmp_path, pickle.dumps(content, protocol)))
    assert list(got) == list(content)
    for name in "adef":
        np.testing.assert_array_equal(got[name], content[name])
        assert got[name].dtype == content[name].dtype.newbyteorder("=")
    assert [got[name] for name in "bcg"] == [content[name] for name in "bcg"]


def test_an_experiment_unpickled_by_others_is_read():
    experiment = Experiment(tree(), tree(1), None)
    given = read_weights({"experiment_state": experiment, "step": 3})[1].arrays
    names = [f"{trees}/classifier/{leaf}" for trees in ("online_params", "target_params") for leaf in "bw"]
    assert list(given) == names
    np.testing.assert_array_equal(given["target_params/classifier/b"], tree(1)["classifier"]["b"])
    with pytest.raises(CheckpointFormatError, match="online_params isn't module → leaf → array"):
        read_weights({"experiment_state": {"online_params": {"w": np.zeros(1)}}})
    with pytest.raises(CheckpointFormatError, match="experiment_state is a list, not a named tuple"):
        read_weights({"experiment_state": []})


def test_other_pickles_are_no_learners(tmp_path):
    path = store(tmp_path, pickle.dumps({"net": tree()}, 4))
    with pytest.raises(
        CheckpointFormatError, match=r"without DeepMind's experiment_state; other learners are read from"
    ):
        interop.load_byol_checkpoint(path, like=None)
    with pytest.raises(UnsafeCheckpointError, match="a plain Python pickle can run code"):
        interop.load_state_dict(path)


NUMPY = Named("numpy._core.multiarray._reconstruct")
ARRAY = (Named("numpy.ndarray"), (0,), b"b")
HOSTILE = {
    "another name": (call_of("os.system", "true"), "asks for os.system, nothing was run"),
    "an attribute": (call_of("builtins.getattr", NUMPY, "__globals__"), "asks for builtins.getattr"),
    "an import": (call_of("dill._dill._import_module", "os"), r"asks for dill\._dill\._import_module"),
    "a class": (call_of("dill._dill._create_type", "x"), r"asks for dill\._dill\._create_type"),
    "calling a noun": (call_of("numpy.ndarray", (3,)), "calls something that isn't a function"),
    "calling what was made": (pickle.PROTO + b"\x02" + b"}(tR.", "calls something that isn't a function"),
    "an old object": (b"\x80\x02(S'true'\nios\nsystem\n.", "builds objects"),
    "a registered one": (b"\x80\x02\x82\x01.", r"builds objects \(EXT1\)"),
    "an outside one": (b"\x80\x02]Q.", r"builds objects \(BINPERSID\)"),
}
DAMAGED = {
    "another encoding": call_of("_codecs.encode", "x", "zip"),
    "a compressed text": call_of("_codecs.encode", codecs.encode(b"x" * 99, "bz2").decode("latin1"), "bz2_codec"),
    "an array of another class": call_of("numpy._core.multiarray._reconstruct", NUMPY, (0,), b"b"),
    "an array made by another function": call_of("dill._dill._create_array", Named("_codecs.encode"), ("x", "y"), ()),
    "objects": call_of("numpy.dtype", "O8", False, True),
    "a dtype's text": call_of("numpy.dtype", "f4,f4", False, True),
    "fields twice": call_of("dill._dill._create_namedtuple", "x", ("a", "a"), "m"),
    "a mapping of nothing": call_of("haiku._src.data_structures.FlatMapping", 3),
    "tuples as keys": pickle.dumps({(1, 2): 3}, 2),
    "a number that never ends": b"\x80\x02\x8b\xff\xff\xff\x7f",
    "text of exabytes": b"\x80\x04\x8d" + (2**61).to_bytes(8, "little") + b"x.",
    "an empty stack": b"\x80\x02R.",
    "an absent reference": b"\x80\x02h\x07.",
    "no end": b"\x80\x02}",
    "two results": b"\x80\x02}}.",
    "a list that is none": b"\x80\x02}K\x01a.",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_outside_the_list_is_called(kind, tmp_path):
    content, words = HOSTILE[kind]
    with pytest.raises(UnsafeCheckpointError, match=words) as caught:
        load_pickle(store(tmp_path, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_no_checkpoint_holds_is_damage(kind, tmp_path):
    with pytest.raises(CheckpointFormatError, match=r"x\.pkl: damaged pickle") as caught:
        load_pickle(store(tmp_path, DAMAGED[kind]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_bomb_does_not_go_off(protocol, tmp_path):
    sentinel = tmp_path / "code_was_run"
    content = {"experiment_state": {"online_params": tree(), "x": Bomb(str(sentinel))}}
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        interop.load_byol_checkpoint(store(tmp_path, pickle.dumps(content, protocol)), like=None)
    assert not sentinel.exists()


class Array:
    """One of dill's arrays, of the bytes that it is given."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        state = (1, (len(self.data),), np.dtype("u1"), False, self.data)
        return Named("dill._dill._create_array"), (NUMPY, ARRAY, state, None)


@pytest.mark.parametrize(
    ("size", "error", "words"),
    [(4000, UnsafeCheckpointError, "unfold to more bytes than the file has"), (5000, CheckpointFormatError, "damaged")],
)
def test_a_few_bytes_dont_become_many(size, error, words, tmp_path):
    """The same text as the data of a thousand arrays; longer text isn't kept at all."""
    data = bytes(range(32, 127)) * 60
    content = pickling([Array(data[:size])])
    assert load_pickle(store(tmp_path, content))[0].tobytes() == data[:size]
    shared = data[:size]
    content = pickling([Array(shared) for _ in range(1000)])
    assert len(content) < 200_000
    with pytest.raises(error, match=words):
        load_pickle(store(tmp_path, content))


ORIGINAL = pickle.dumps({"experiment_state": {"online_params": tree()}, "step": 3, "rng": np.zeros(2, np.uint32)}, 2)
SMALL = (ORIGINAL, pickles()["tiny18/pretrain_2020.pkl"][:3000])


def reads_or_refuses(path):
    said = ""
    tracemalloc.start()
    try:
        load_pickle(path)
    except InteropError as error:
        said = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert "\n" not in said
    assert peak < 1 << 21


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_pickles_give_data_or_our_own_errors(data):
    content = damage(data.draw(st.sampled_from(SMALL)), lambda count: data.draw(st.integers(0, count - 1)))
    with tempfile.TemporaryDirectory() as folder:
        reads_or_refuses(store(Path(folder), content))
        assert os.listdir(folder) == ["x.pkl"]


@pytest.mark.long
def test_many_damaged_pickles_give_data_or_our_own_errors(tmp_path, share, figure):
    source, cases = random.Random(0), share(50_000)
    for _ in range(cases):
        reads_or_refuses(store(tmp_path, damage(source.choice(SMALL), source.randrange)))
    assert os.listdir(tmp_path) == ["x.pkl"]
    figure("damaged DeepMind pickles read", cases=cases, result="plain data of at most 2 MiB, or our own error")
