"""Every public name of commit f664bb0 is still there: public_names.txt has them, one a line.

    package.function(positional, other=, *, keyword=)    = behind an argument that needn't be given
    package.Class{field, field}
    byol-jax COMMAND --option VALUE    python -m interop COMMAND --option

Arguments of functions by name and place, fields of classes, options of commands and what they may be.
"""

import contextlib
import dataclasses
import importlib
import inspect
import io
import re
from functools import cache
from pathlib import Path

import pytest

from byol_jax.cli.main import main as byol_jax_command
from interop.__main__ import main as interop_command

LINES = (Path(__file__).parent / "public_names.txt").read_text().splitlines()
PYTHON = [line for line in LINES if " " not in line.partition("(")[0].partition("{")[0]]
WORDS = [line for line in LINES if line not in PYTHON]


def found(name):
    """What a dotted name stands for."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def test_the_list_is_whole():
    assert len(PYTHON) > 150
    assert len(WORDS) > 150


@pytest.mark.parametrize("line", [line for line in PYTHON if "(" not in line and "{" not in line])
def test_a_name_is_there(line):
    assert found(line) is not None


@pytest.mark.parametrize("line", [line for line in PYTHON if "(" in line])
def test_a_function_takes_what_it_took(line):
    """The same words, those before the star in the same places; nothing more is asked for."""
    name, _, words = line.removesuffix(")").partition("(")
    words = [word for word in words.split(", ") if word]
    star = next((place for place, word in enumerate(words) if word.startswith("*")), len(words))
    signature = inspect.signature(found(name))
    positional = [word.removesuffix("=") for word in words[:star]]
    keywords = [word.removesuffix("=") for word in words[star + 1 :]]
    bound = signature.bind(*positional, **{word: word for word in keywords})
    assert all(bound.arguments.get(word, word) == word for word in positional + keywords)
    assert [*bound.arguments][: len(positional)] == positional
    needed = {word: word for word in words if "*" not in word and "=" not in word}
    signature.bind(**needed)


@pytest.mark.parametrize("line", [line for line in PYTHON if "{" in line])
def test_a_class_has_its_fields(line):
    name, _, words = line.removesuffix("}").partition("{")
    kind, fields = found(name), words.split(", ")
    named = getattr(kind, "_fields", None)
    if named is not None:  # a tuple, which is unpacked by place
        assert list(named)[: len(fields)] == fields
    own = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set(named or ())
    assert not [field for field in fields if field not in own and not hasattr(kind, field)]


@cache
def help_words(command):
    """Every word of a command's help."""
    text = io.StringIO()
    program, words = (interop_command, command[3:]) if command[0] == "python" else (byol_jax_command, command[1:])
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        program([*words, "--help"])
    return set(re.split(r"[\s,;:()\[\]|]+", text.getvalue()))


@pytest.mark.parametrize("line", WORDS)
def test_a_command_knows_its_words(line, monkeypatch):
    """As its help tells."""
    monkeypatch.setenv("COLUMNS", "100000")  # else the help breaks words at their hyphens
    words = line.split()
    start = 3 if words[0] == "python" else 1
    command = words[: start + 1] if words[start][0].islower() else words[:start]
    assert not [word for word in words[len(command) :] if word not in help_words(tuple(command))]
