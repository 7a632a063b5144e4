"""`inspect` of any file: numbers beyond float64, names that command a terminal; JSON and lines stay what they are."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from interop.__main__ import main
from interop.inspect.commands import STATISTICS, inspect_file

ESCAPES = "fc\n\x1b[31mproblem: none\x1b[0m\u202e.bias"
SHOWN = "fc\\n\\x1b[31mproblem: none\\x1b[0m\\u202e.bias"


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=64), max_size=5), st.sampled_from([np.float64, np.float32, np.complex64]))
def test_any_numbers_give_json(values, dtype):
    """Statistics are finite or absent, and no warning of NumPy's comes of them."""
    import tempfile

    with np.errstate(all="ignore"), tempfile.TemporaryDirectory() as folder:
        array = np.array(values).astype(dtype)
        save_file({"fc.bias": array}, f"{folder}/x.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (leaf,) = inspect_file(f"{folder}/x.safetensors")["leaves"]
        assert json.loads(json.dumps(leaf, allow_nan=False)) == leaf
    finite = array[np.isfinite(array)]
    assert (leaf["min"] is None) == (finite.size == 0 or dtype == np.complex64)
    if leaf["min"] is not None:
        assert (leaf["min"], leaf["max"]) == (finite.min(), finite.max())
        with np.errstate(all="ignore"):
            assert (leaf["std"] is None) == (not np.isfinite(finite.astype(np.float64).std()))


@pytest.mark.parametrize("number", [1e200, 1.7e308])
def test_numbers_whose_squares_are_beyond_float64(number, there, capsys):
    save_file({"fc.bias": np.array([number, -number, number, number])}, "big.safetensors")
    assert main(["inspect", "--json", "big.safetensors"]) == 0
    printed = capsys.readouterr()
    (leaf,) = json.loads(printed.out)["leaves"]
    assert ([leaf[word] is None for word in STATISTICS], printed.err) == ([False, number > 1e300, False, True], "")
    assert main(["inspect", "big.safetensors"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[-1] == "-"


def test_names_that_command_a_terminal_are_shown_escaped(there, capsys):
    save_file({ESCAPES: np.ones(4, np.float32)}, "names.safetensors")
    assert main(["inspect", "names.safetensors"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert all(line.isprintable() for line in lines)
    assert sum(SHOWN in line for line in lines) == 2
    assert f"would not convert: refused, a name with characters that can't be printed: {SHOWN}" in lines
    assert json.loads(json.dumps(inspect_file("names.safetensors")))["leaves"][0]["name"] == ESCAPES


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".pt"])
def test_convert_refuses_such_names(ending, there, capsys):
    save_file({ESCAPES: np.ones(4, np.float32), "fc.weight": np.ones(4, np.float32)}, "names.safetensors")
    assert main(["convert", "names.safetensors", f"o{ending}"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert f"no network's names hold characters that can't be printed: '{SHOWN}'" in printed.err
    assert not (there / f"o{ending}").exists()


def test_what_lies_beside_weights_is_escaped_too(there, capsys):
    torch.save({"model": {"fc.bias": torch.ones(2)}, "a\x1b[31m\nb": 1, "epoch": 3}, "beside.pt")
    assert main(["inspect", "beside.pt"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert "beside the weights: a\\x1b[31m\\nb, epoch, epoch 3" in lines
    assert all(line.isprintable() for line in lines)
