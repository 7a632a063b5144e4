"""Paths that aren't text: any bytes but "/" and nought may be a name, and are printed and logged all the same."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from byol_jax.cli.common import folder_for
from byol_jax.runs.progress import TrainingLog

NAMES = [b"\xff\xfe", "é 日本".encode(), b"two\nlines", b"'$(x)\\"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_printed_is_the_very_name(tmp_path, name):
    np.savez(tmp_path / "in.npz", **{"fc.bias": np.zeros(3, np.float32)})
    target = os.fsencode(tmp_path) + b"/" + name + b".npz"
    words = [sys.executable, "-m", "byol_jax", "convert", tmp_path / "in.npz", target]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(words, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(target + b"\n")
    assert os.path.exists(target)


@pytest.mark.parametrize("name", NAMES)
def test_the_log_takes_any_name(tmp_path, name):
    with TrainingLog(tmp_path / "train.log", total_steps=1, show=False) as log:
        log.say(f"done, in {os.fsdecode(name)}")
    assert "done, in " in (tmp_path / "train.log").read_text(encoding="utf-8")


def fail_in(path, beside):
    with folder_for(path):
        if beside:
            (path.parent / beside).touch()
        raise ZeroDivisionError


def test_a_folder_made_for_a_file_goes_with_it(tmp_path):
    with folder_for(tmp_path / "a" / "b" / "kept"):
        (tmp_path / "a" / "b" / "kept").touch()
    for place, beside in (("a/c/d", None), ("e", "others")):
        with pytest.raises(ZeroDivisionError):
            fail_in(tmp_path / place / "file", beside)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert found == ["a", "a/b", "a/b/kept", "e", "e/others"]
