"""Whatever is typed, a command ends with 0, 1 or 2, in one line where something is wrong, and nothing is half done.

What takes minutes (training, the demo, the benchmark, a preview) is replaced by nothing: this is about everything that
happens before, and about the commands that read files.
"""

import contextlib
import importlib
import io
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from byol_jax.cli.main import COMMANDS, main
from byol_jax.cli.parsing import Parser

LONG_WORDS = ("train", "demo", "bench", "preview")

NUMBERS = ["0", "1", "-1", "-0", "3", "8", "1.5", "0.5", "nan", "inf", "-inf", "1e400", "1e-400", "-1e3", "0x10"]
NUMBERS += ["1_000", "٣", "9" * 5000, "2147483648", " 7", "7 ", "+3", "1e", "½", "16x16", "16x", "x", "16x-16", "1,3"]
NAMES = ["photos", "run", "full", "images.npy", "notes.txt", "weights.safetensors", "done.npz", "pipe.npy", "loop.npy"]
NAMES += [
    "new",
    "new.npz",
    "new.npy",
    "new.png",
    "new.safetensors",
    "new.pt",
    "NEW.NPZ",
    "a/b/new.npz",
    "notes.txt/new",
]
NAMES += [
    "",
    " ",
    ".",
    "..",
    "/",
    "~",
    "/dev/null",
    "/dev/full",
    "/proc/self/status",
    "a" * 300,
    "a/" * 2500,
    "new\n.npz",
]
NAMES += [
    "é.npz",
    "\udcff.npz",
    "日本",
    "\x1b[31m",
    "-",
    "--",
    "-x",
    "--=",
    "=",
    "'",
    "%s",
    "{}",
    "$HOME",
    "fashion-mnist",
]
CHOICES = ["adam", "adamw", "lars", "sgd", "cosine", "constant", "simclr", "byol", "none", "online", "target"]
CHOICES += ["imagenet-300", "small_grey", "separate"]
CHOICES += [
    "small_cnn",
    "resnet18",
    "resnet50-cifar",
    "torchvision:vgg61",
    "no.where:net",
    "avgpool",
    "-2",
    "a:1",
    "a:99999",
    ":1",
]

ARGUMENTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
VALUES = st.one_of(*(st.sampled_from(words) for words in (NUMBERS, NAMES, CHOICES)), ARGUMENTS)


def options_of(name):
    """Every option of a sub-command but --debug, which asks for a traceback."""
    command = importlib.import_module(f"byol_jax.cli.commands.{name}{'_' if name == 'import' else ''}")
    parser = Parser(name, command.USAGE, "")
    command.add_arguments(parser)
    return [option for action in parser._actions for option in action.option_strings if option != "--debug"]


OPTIONS = {name: options_of(name) for name in COMMANDS}


@st.composite
def command_lines(draw):
    """A sub-command, most often one that exists, and words, many of which are options of it or of another."""
    name = draw(st.one_of(st.sampled_from(list(COMMANDS)), VALUES))
    known = st.sampled_from(OPTIONS.get(name, OPTIONS["train"]))
    any_option = st.sampled_from(sorted({option for options in OPTIONS.values() for option in options}))
    with_value = st.tuples(known, VALUES)
    joined = st.builds("{}={}".format, any_option, VALUES)
    pieces = draw(st.lists(st.one_of(with_value, with_value, known, any_option, joined, VALUES), max_size=9))
    words = [name, *(word for piece in pieces for word in (piece if isinstance(piece, tuple) else [piece]))]
    return [word for word in words if word != "--debug"]


RIGHT = {
    "train": "photos --out new --steps 3 --batch-size 8 --seed 1 --checkpoint-every 2 --log-every 2 --workers 1"
    " --network small_cnn --image-size 16 --channels 3 --init-from weights.safetensors --hidden-layer -2"
    " --projection-size 8 --projection-hidden-size 8 --augment byol --moving-average-decay 0.9 --optimizer adamw"
    " --learning-rate 0.1 --weight-decay 0.1 --schedule cosine --warmup-steps 1 --views separate --preset imagenette",
    "evaluate": "run --data photos --which online --k 3,1 --seed 1 --batch-size 8 --workers 1 --linear-epochs 2"
    " --protocol knn,logistic,linear,finetune --label-fraction 0.1,1 --finetune-epochs 2 --finetune-learning-rate 0.1"
    " --finetune-batch-size 8 --finetune-augment none",
    "embed": "run --data images.npy --out new.npz --which target --batch-size 8 --workers 1",
    "export": "run --out new.pt --which target",
    "import": "weights.safetensors --out new.safetensors --network small_cnn --channels 1 --image-size 16",
    "convert": "weights.safetensors new.npz",
    "preview": "images.npy --out new.png --image-size 16 --channels 3 --augment none --count 2 --seed 1",
    "demo": "--out new --steps 3 --seed 1",
    "bench": "--out new",
    "presets": "--json",
    "env": "--json",
}
"""A call of each sub-command with every option at a value that it accepts."""


@st.composite
def nearly_right_command_lines(draw):
    """One of the calls above with one or two words replaced, left out or doubled."""
    name = draw(st.sampled_from(list(RIGHT)))
    words = RIGHT[name].split()
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, len(words) - 1)) if words else 0
        words[place : place + draw(st.integers(0, 2))] = draw(st.lists(VALUES, max_size=2))
    return [word for word in (name, *words) if word != "--debug"]


@pytest.fixture
def harmless(files, monkeypatch):
    """The files of the other tests, and commands that take minutes end at once."""
    os.mkfifo("pipe.npy")
    monkeypatch.setattr("byol_jax.parallel.processes.connect", lambda *_, **__: None)
    monkeypatch.setattr("byol_jax.train.train_recipe", lambda *_, **__: None)
    for name in LONG_WORDS[1:]:
        monkeypatch.setattr(f"byol_jax.cli.commands.{name}.run", lambda options: 0)
    return files


def snapshot(folder):
    return {path: path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def check_ending(words, folder):
    """Runs one command line; returns its exit code after all that can be said of it."""
    before, out, err = snapshot(folder), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    lines = err.getvalue().splitlines()
    assert code in (0, 1, 2)
    assert "Traceback" not in err.getvalue()
    if code != 0:
        assert len(lines) == 1, lines
        assert lines[0].startswith("byol-jax")
        assert out.getvalue() == ""
        assert snapshot(folder) == before
    assert code != 1, f"an error that nobody thought of: {lines}"
    return code


OPTIONS_OF_THE_TEST = {"suppress_health_check": [HealthCheck.function_scoped_fixture], "derandomize": True}


@given(words=st.one_of(command_lines(), nearly_right_command_lines()))
@settings(max_examples=60, **OPTIONS_OF_THE_TEST)
def test_any_words(harmless, words):
    check_ending(words, harmless)


@pytest.mark.long
def test_many_words(harmless, share, figure):
    codes = []

    @given(words=st.one_of(command_lines(), nearly_right_command_lines()))
    @settings(max_examples=share(10_000), database=None, **OPTIONS_OF_THE_TEST)
    def search(words):
        codes.append(check_ending(words, harmless))

    search()
    figure(
        "command lines of random words",
        cases=len(codes),
        result=f"exit 2 in one line ({codes.count(2):,}) or 0 ({codes.count(0):,}); no traceback, no other exit code,"
        " nothing written by a wrong one",
    )
