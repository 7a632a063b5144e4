"""Files of training scripts hold more than weights: the tensors come out bit for bit, the objects beside them unread.

Nothing is run for it: no module is imported, no class is made, no function called. Objects in the weights' own place
are refused by name, and so are functions that run programs, wherever they stand.
"""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import importlib
import io
import pathlib
import random
import re
import sys
import tempfile
import types
import uuid
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_samples import assert_identical, state_dicts

from byol_jax.errors import CheckpointFormatError, UnsafeCheckpointError
from interop import load_state_dict
from interop.arrays import DTYPE_NAMES, as_tensor
from interop.formats.containers import CONTAINERS
from interop.inspect.commands import inspect_file, inspection_text

torch = pytest.importorskip("torch")

RUN = []
"""What unpickling ran, if anything did."""


class Made(dict):
    """What `Loud` becomes."""

    def __setstate__(self, state):
        RUN.append("setstate")

    def __setitem__(self, name, value):
        RUN.append("setitem")

    def append(self, item):
        RUN.append("append")


def remember(*arguments):
    RUN.append("call")
    return Made()


class Loud:
    """Python's own unpickler runs four things of it."""

    def __reduce__(self):
        return remember, (1,), {"state": 1}, iter([1]), iter([("a", 1)])


class Mode(enum.Enum):
    FAST, SLOW = 1, "slow"


class Flags(enum.Flag):
    A, B = 1, 2


class Word(enum.StrEnum):
    GREEN = "green"


@dataclasses.dataclass
class Settings:
    rate: float = 0.1
    mode: Mode = Mode.SLOW
    folder: pathlib.Path = pathlib.Path("runs")


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    rate: float = 0.1


class Point(NamedTuple):
    x: int
    y: Any


class AttributeDict(dict):
    """As Lightning's, EasyDict and others."""

    __getattr__ = dict.__getitem__


class Listed(list):
    pass


class Named:
    """Made with a keyword, which takes an instruction of its own."""

    def __new__(cls, *, name):
        made = super().__new__(cls)
        made.name = name
        return made

    def __getnewargs_ex__(self):
        return (), {"name": self.name}


class Ring:
    def __init__(self):
        self.own, self.pair, self.all = self, (self, 1), {"me": self}


def looped():
    """A tuple that holds itself."""
    inner = []
    loop = (inner, 1, 2, 3)
    inner.append((loop,))
    return loop


def warned(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.14: will go, or is experimental
        return make()


OBJECTS = {
    "argparse": lambda: argparse.Namespace(lr=0.1, out=pathlib.Path("x"), mode=Mode.FAST, text="é" * 5000),
    "NumPy scalar": lambda: np.float64(0.5),
    "NumPy array": lambda: np.asfortranarray(np.ones((2, 3))),
    "NumPy objects": lambda: np.array([{}, None, Mode.FAST], dtype=object),
    "NumPy dtype": lambda: np.dtype("float32"),
    "NumPy generator": lambda: np.random.default_rng(0),
    "path": lambda: pathlib.Path("runs/a.pth"),
    "Windows path": lambda: pathlib.PureWindowsPath("c:\\runs"),
    "datetime": lambda: datetime.datetime(2026, 11, 29, 12, tzinfo=datetime.UTC),
    "timedelta": lambda: datetime.timedelta(hours=1),
    "enum": lambda: Mode.SLOW,
    "flag": lambda: Flags.A | Flags.B,
    "text enum": lambda: Word.GREEN,
    "OrderedDict": lambda: collections.OrderedDict(a=Mode.FAST),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "Counter": lambda: collections.Counter("aab"),
    "deque": lambda: collections.deque([1, 2], maxlen=3),
    "dataclass": Settings,
    "frozen dataclass": Frozen,
    "named tuple": lambda: Point(1, Mode.FAST),
    "partial": lambda: functools.partial(torch.optim.SGD, lr=0.1),
    "torch.Size": lambda: torch.Size([1, 2]),
    "torch.dtype": lambda: torch.float32,
    "torch.device": lambda: torch.device("cpu"),
    "torch layout": lambda: torch.strided,
    "sparse tensor": lambda: torch.zeros(2).to_sparse(),
    "quantised tensor": lambda: warned(lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)),
    "half complex tensor": lambda: warned(lambda: torch.zeros(2, dtype=torch.complex32)),
    "tensor of a rare type": lambda: torch.zeros(2).to(torch.float8_e4m3fnuz),
    "tensor without values": lambda: torch.empty(2, device="meta"),
    "optimiser's state": lambda: torch.optim.SGD([torch.zeros(1)], lr=0.1).state_dict(),
    "module": lambda: torch.nn.Linear(2, 2),
    "function": lambda: torch.nn.functional.relu,
    "set": lambda: {1, "a"},
    "frozenset": lambda: frozenset({1, 2}),
    "bytes": lambda: b"abc" * 3000,
    "bytearray": lambda: bytearray(b"abc"),
    "complex": lambda: 1j,
    "slice and range": lambda: [slice(1, 2), range(3), ..., NotImplemented],
    "pattern": lambda: re.compile("a+"),
    "UUID": lambda: uuid.UUID(int=7),
    "decimal": lambda: decimal.Decimal("0.1"),
    "random state": lambda: (random.getstate(), random.Random(0)),
    "SimpleNamespace": lambda: types.SimpleNamespace(a=1),
    "dict of a kind of its own": lambda: AttributeDict(a=1, b=AttributeDict(c=Mode.FAST)),
    "list of a kind of its own": lambda: Listed([1, 2]),
    "made with keywords": lambda: Named(name="a"),
    "a ring": Ring,
    "a tuple that holds itself": looped,
    "keys of all kinds": lambda: {
        Mode.FAST: 1,
        Mode.SLOW: 2,
        (1, (2, 3)): 3,
        frozenset({1}): 4,
        None: 5,
        Point(1, 2): 6,
    },
    "an exception": lambda: ValueError("diverged"),
    "a file in memory": lambda: io.BytesIO(b"abc"),
    "runs when it is loaded": Loud,
}
KINDS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
WEIGHTS = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "fc.bias": np.zeros(2, np.float16)}


def tensors(arrays):
    return {name: as_tensor(array) for name, array in arrays.items()}


@pytest.fixture(autouse=True)
def nothing_ran_before():
    RUN.clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTS)
def test_weights_beside_any_object_are_read(name, kind, tmp_path):
    thing = OBJECTS[name]()
    for protocol in (2, 5):
        content = {"epoch": 3, "args": thing, "state_dict": tensors(WEIGHTS), "more": [thing, {"it": thing}]}
        torch.save(content, tmp_path / "x.pth", pickle_protocol=protocol, **KINDS[kind])
        RUN.clear()
        assert_identical(load_state_dict(tmp_path / "x.pth"), WEIGHTS)
        assert not RUN


def test_the_guard_would_have_told(tmp_path):
    torch.save({"args": OBJECTS["runs when it is loaded"]()}, tmp_path / "x.pth")
    RUN.clear()
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert RUN == ["call", "append", "setitem", "setstate"]


def test_a_module_that_a_file_names_is_not_imported(tmp_path, monkeypatch):
    """Its class stands in the file twice: as itself, and as what an object is of."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_training_code.py").write_text("class Config:\n    pass\n")
    module = importlib.import_module("their_training_code")
    torch.save({"model": tensors(WEIGHTS), "config": module.Config(), "kind": module.Config}, tmp_path / "x.pth")
    del sys.modules["their_training_code"]
    assert_identical(load_state_dict(tmp_path / "x.pth"), WEIGHTS)
    inspection = inspect_file(tmp_path / "x.pth")
    assert inspection["container"]["beside"] == ["config", "kind"]
    assert "beside the weights: config, kind" in inspection_text(inspection)
    assert "their_training_code" not in sys.modules


def test_omegaconfs_names_are_read_without_it(tmp_path, monkeypatch):
    """Names of omegaconf 2.3's DictConfig, by classes that stand in for it."""
    modules = {"omegaconf": [], "omegaconf.base": ["ContainerMetadata", "Metadata"], "omegaconf.nodes": ["AnyNode"]}
    made = {}
    for module, classes in (modules | {"omegaconf.dictconfig": ["DictConfig"]}).items():
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        for name in classes:
            made[name] = type(name, (), {"__module__": module})
            setattr(sys.modules[module], name, made[name])
    config, metadata, node = (made[name]() for name in ("DictConfig", "ContainerMetadata", "AnyNode"))
    metadata.__dict__ = {"ref_type": Any, "object_type": dict, "optional": True, "key": None}
    node.__dict__ = {"_metadata": metadata, "_parent": config, "_val": 0.1}
    config.__dict__ = {"_metadata": metadata, "_parent": None, "_content": {"lr": node}}
    torch.save({"state_dict": tensors(WEIGHTS), "hyper_parameters": config}, tmp_path / "x.ckpt")
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    assert_identical(load_state_dict(tmp_path / "x.ckpt"), WEIGHTS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: torch.nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear, not a state dict"),
        (lambda: {"model": torch.nn.Linear(2, 2), "ema": None, "epoch": 1}, r"model \(torch\.nn\.modules\.linear\.Li"),
        (lambda: {**tensors(WEIGHTS), "mode": Mode.FAST}, r"holds mode \(.*\.Mode\) beside tensors"),
        (lambda: {"state_dict": {**tensors(WEIGHTS), "x": np.float64(1)}}, r"x \(numpy\._?core\.multiarray\.scalar\)"),
        (lambda: {"state_dict": AttributeDict(tensors(WEIGHTS))}, r"state_dict \(.*\.AttributeDict\)"),
    ],
)
def test_objects_in_the_place_of_weights_are_refused_by_name(content, words, kind, tmp_path):
    torch.save(content(), tmp_path / "x.pth", **KINDS[kind])
    with pytest.raises(UnsafeCheckpointError, match=words) as caught:
        load_state_dict(tmp_path / "x.pth")
    assert "nothing was run, save module.state_dict() instead of objects" in str(caught.value)


class Harmful:
    """Calls a function of Python's own; harmless, as they are called here."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (functools.partial(Harmful, eval, "1"), r"builtins\.eval|__builtin__\.eval"),
        (functools.partial(Harmful, importlib.import_module, "math"), r"importlib\.import_module"),
        (functools.partial(Harmful, sys.getrecursionlimit), r"sys\.getrecursionlimit"),
    ],
)
def test_what_runs_programs_is_refused_beside_weights_too(function, name, kind, tmp_path):
    torch.save({"state_dict": tensors(WEIGHTS), "extra": function()}, tmp_path / "x.pth", **KINDS[kind])
    with pytest.raises(UnsafeCheckpointError, match=rf"asks for ({name}), nothing was run"):
        load_state_dict(tmp_path / "x.pth")


def test_a_dict_made_from_pairs_is_not_taken_for_an_empty_one(tmp_path):
    """As Python 2 pickled OrderedDict; its content isn't read, so it is refused, and not called empty."""
    program = b"\x80\x02ccollections\nOrderedDict\n]X\x01\0\0\0aK\x01\x86a\x85R."
    torch.save({}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content.replace(b"\x80\x02}q\x00.\x80\x02]q\x00.", program + b"\x80\x02]q\x00."))
    with pytest.raises(UnsafeCheckpointError, match=r"holds a collections\.OrderedDict"):
        load_state_dict(tmp_path / "x.pth")


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
foreign = st.sampled_from([name for name in OBJECTS if name != "keys of all kinds"]).map(lambda name: OBJECTS[name]())
hashable = st.text(max_size=4) | st.integers() | st.sampled_from([Mode.FAST, Frozen(), None, torch.float16, Flags.B])
names = st.text(st.characters(categories=["Ll"], max_codepoint=127), min_size=1, max_size=6)


def holders(inner):
    """What objects are put into; some of them objects themselves."""
    several = st.lists(inner, max_size=3)
    named = st.dictionaries(names, inner, max_size=3)
    return st.one_of(
        several,
        several.map(tuple),
        several.map(Listed),
        several.map(collections.deque),
        st.dictionaries(hashable, inner, max_size=3),
        named.map(AttributeDict),
        named.map(collections.OrderedDict),
        named.map(lambda content: collections.defaultdict(list, content)),
        named.map(lambda content: argparse.Namespace(**content)),
        named.map(lambda content: types.SimpleNamespace(**content)),
        named.map(lambda content: functools.partial(remember, 1, **content)),
        st.builds(Point, st.integers(), inner),
        st.builds(Settings, inner),
        inner.map(lambda thing: [thing, thing, (thing,)]),
    )


anything = st.recursive(plain | foreign | st.builds(lambda: torch.arange(3.0)), holders, max_leaves=8)
beside = st.dictionaries(names.filter(lambda name: name not in CONTAINERS), anything, max_size=4)


def is_dense(thing):
    if not isinstance(thing, torch.Tensor) or thing.layout != torch.strided or thing.is_meta or thing.is_quantized:
        return False
    return str(thing.dtype).removeprefix("torch.") in DTYPE_NAMES


def tensors_come_out(data):
    """One random checkpoint, with objects beside its weights, and sometimes one in their place."""
    weights = data.draw(state_dicts(DTYPE_NAMES).filter(bool))
    container = data.draw(st.sampled_from(["state_dict", "model", "network", "ema"]))
    content: Any = {container: tensors(weights), **data.draw(beside)}
    intruder = data.draw(st.none() | anything) if data.draw(st.integers(0, 3)) == 0 else None
    if intruder is not None:
        content[container]["intruder"] = intruder
    items = data.draw(st.permutations(list(content.items())))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x.pth"
        kind = KINDS[data.draw(st.sampled_from(list(KINDS)))]
        torch.save(dict(items), path, pickle_protocol=data.draw(st.integers(2, 5)), **kind)
        RUN.clear()
        if intruder is None or is_dense(intruder):
            loaded = load_state_dict(path)
            loaded.pop("intruder", None)
            assert_identical(loaded, weights)
        else:
            with pytest.raises((CheckpointFormatError, UnsafeCheckpointError), match=r"intruder|no state dict found"):
                load_state_dict(path)
        assert not RUN


@settings(max_examples=40)
@given(data=st.data())
def test_of_random_checkpoints_the_tensors_come_out_bit_for_bit(data):
    tensors_come_out(data)


@pytest.mark.long
def test_of_many_random_checkpoints_the_tensors_come_out_bit_for_bit(share, figure):
    cases = share(5_000)

    @settings(max_examples=cases, derandomize=True, database=None)
    @given(data=st.data())
    def drawn(data):
        tensors_come_out(data)

    drawn()
    figure(
        "random checkpoints with objects beside and among the weights, by torch.save",
        cases=cases,
        result="every tensor bit for bit, or a refusal that names the object; no import, no call",
    )
