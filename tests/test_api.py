"""What users see: every public name is there, says what it is, is listed in docs/api.md, and its example runs."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.source_code import ROOT, modules

PUBLIC = ["byol_jax", "interop"]
PUBLIC += [f"byol_jax.{name}" for name in ("nets", "augment", "schedules", "presets", "parallel", "checkpoint")]
PUBLIC += ["byol_jax.evaluate", "byol_jax.data"]

SLOW_EXAMPLES = ("train", "byol", "report", "nets", "augment", "evaluate", "data", "ops", "weights", "learners")
SLOW_EXAMPLES += ("accumulation", "batchnorm_groups", "online_probe")
"""Rooms whose examples compile something."""
TORCH_EXAMPLES = ("interop.arrays", "interop.optimizers.state", "interop.trace.")
"""How modules begin whose examples use torch."""

HEAVY = ("jax", "jaxlib", "flax", "optax", "torch", "torchvision", "timm", "safetensors", "PIL")


def public_names():
    return [(module, name) for module in PUBLIC for name in importlib.import_module(module).__all__]


def is_described(thing):
    """A docstring of its own; for a module, a class or a function."""
    return bool((inspect.getdoc(thing) or "").strip())


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_there_and_described(module):
    namespace = importlib.import_module(module)
    assert namespace.__all__, "a public module lists its names"
    assert len(set(namespace.__all__)) == len(namespace.__all__)
    absent = [name for name in namespace.__all__ if not hasattr(namespace, name)]
    assert not absent, "\n".join(absent)
    silent = [name for name in namespace.__all__ if callable(getattr(namespace, name))]
    silent = [name for name in silent if not is_described(getattr(namespace, name))]
    assert not silent, "\n".join(silent)
    assert set(namespace.__all__) <= set(dir(namespace))


def test_public_functions_speak_of_their_arguments():
    """`Args:`, or the arguments' names in the text."""
    faults = []
    for module, name in public_names():
        function = getattr(importlib.import_module(module), name)
        if not inspect.isfunction(function):
            continue
        text, parameters = inspect.getdoc(function) or "", list(inspect.signature(function).parameters)
        if parameters and "Args:" not in text and not any(re.search(rf"\b{one}\b", text) for one in parameters):
            faults.append(f"{module}.{name}({', '.join(parameters)})")
    assert not faults, "\n".join(faults)


def test_public_functions_are_typed():
    faults = []
    for module, name in public_names():
        function = getattr(importlib.import_module(module), name)
        if inspect.isfunction(function) and not function.__annotations__:
            faults.append(f"{module}.{name}")
    assert not faults, "\n".join(faults)


def example_modules():
    lines = {name: path.read_text().splitlines() for name, path in modules().items()}
    found = [name for name in lines if any(">>>" in line and "+SKIP" not in line for line in lines[name])]
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(name, marks=marks[name.split(".")[1] in SLOW_EXAMPLES]) for name in found]


@pytest.mark.parametrize("name", example_modules())
def test_examples_in_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.startswith(TORCH_EXAMPLES):
        pytest.importorskip("torch")
    customary = {"jax": jax, "jnp": jax.numpy, "np": np}
    results = doctest.testmod(importlib.import_module(name), extraglobs=customary, optionflags=doctest.ELLIPSIS)
    assert results.attempted > 0
    assert results.failed == 0, "see the captured output"


@pytest.mark.parametrize(
    "statement",
    [
        "import byol_jax, interop",
        "import byol_jax.errors, byol_jax.tree, byol_jax.hidden",
        "import byol_jax; dir(byol_jax); byol_jax.errors.ConfigurationError",
        "import interop; dir(interop); interop.InteropError",
        "import byol_jax.cli.main",
        "import byol_jax.parallel; dir(byol_jax.parallel)",
    ],
)
def test_loading_is_light(statement):
    code = f"{statement}\nimport sys\nprint(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [], "loaded by it"


@pytest.mark.parametrize("name", ["weights.names", "weights.architectures", "weights.state_dict", "files"])
def test_numpy_is_enough_for_files(name):
    """With JAX, Flax, Optax and PyTorch not even installed."""
    blocked = "import sys\nfor name in ('jax', 'jaxlib', 'flax', 'optax', 'torch'): sys.modules[name] = None\n"
    code = f"{blocked}import interop.{name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def documented():
    """docs/api.md: the names listed under each heading that is a module."""
    sections, current = {}, None
    for line in (ROOT / "docs" / "api.md").read_text().splitlines():
        if heading := re.fullmatch(r"## `([\w.]+)`.*", line):
            current = sections.setdefault(heading[1], [])
        elif (entry := re.match(r"- `(\w+)`: \S", line)) and current is not None:
            current.append(entry[1])
    return sections


@pytest.mark.parametrize("module", PUBLIC)
def test_the_list_of_names_in_the_docs_is_complete(module):
    listed = documented().get(module, [])
    assert sorted(listed) == sorted(importlib.import_module(module).__all__)


def test_the_docs_list_no_other_modules():
    assert sorted(documented()) == sorted(PUBLIC)


@pytest.mark.parametrize("package", ["byol_jax", "byol_jax.parallel", "interop"])
def test_the_stub_is_what_runs(package):
    """`__init__.pyi`, which type checkers and lazy_loader read, against the names at run time."""
    stub = (ROOT / package.replace(".", "/") / "__init__.pyi").read_text()
    imported = set(re.findall(r"import \w+ as (\w+)", stub))
    assert imported == set(importlib.import_module(package).__all__)


def test_the_version_is_the_packages():
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert importlib.import_module("byol_jax").__version__ == declared[1]
