"""The command line keeps what it compiled in the user's cache folder, and the next command reads it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from two_classes import write_two_classes

from byol_jax.cli import compiled

ROOT = Path(__file__).parents[2]
SMALL = ["--network", "small_cnn", "--image-size", "16", "--batch-size", "4"]
SMALL += ["--projection-size", "8", "--projection-hidden-size", "16", "--augment", "none"]


def environment(cache, **more):
    """A person's, with a cache folder of its own: the tests' own variables would decide."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)} | more


def programs(cache):
    return sorted(path.name for path in cache.rglob("*-cache"))


@pytest.mark.slow
def test_the_second_run_compiles_nothing_and_is_the_same(tmp_path):
    cache, images = tmp_path / "cache", tmp_path / "photos"
    write_two_classes(images)
    found, rows = [], []
    for out in ("first", "second"):
        words = [sys.executable, "-m", "byol_jax", "train", images, "--out", tmp_path / out, "--steps", "2", *SMALL]
        subprocess.run([*map(str, words)], env=environment(cache), check=True, capture_output=True)
        found.append(programs(cache))
        rows.append(json.loads((tmp_path / out / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
    assert found[0] == found[1]
    assert any(name.startswith("jit_step") for name in found[0])
    assert rows[0] == rows[1]


CALL = """
from byol_jax.cli.compiled import keep_compiled_programs
import jax
folder = keep_compiled_programs()
jax.jit(lambda x: x + 1)(1.0)
print(folder)
"""


def folder_of(cache, *, call=CALL, **more):
    done = subprocess.run(
        [sys.executable, "-c", call], env=environment(cache, **more), check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_jaxs_own_variables_decide(tmp_path):
    cache, theirs = tmp_path / "cache", tmp_path / "theirs"
    assert folder_of(cache, JAX_COMPILATION_CACHE_DIR=str(theirs)) == "None"
    assert folder_of(cache, JAX_ENABLE_COMPILATION_CACHE="false") == "None"
    assert not cache.exists()


@pytest.mark.slow
def test_a_program_without_its_time_keeps_no_other_from_being_kept(tmp_path):
    """As a process leaves it that is killed between writing the two; JAX then writes nothing and warns each time."""
    folder = Path(folder_of(tmp_path))
    kept = programs(tmp_path)
    for file in folder.glob("*-atime"):
        file.unlink()
    assert folder_of(tmp_path, call=CALL.replace("x + 1", "x * 2"), PYTHONWARNINGS="error") == str(folder)
    assert kept
    assert programs(tmp_path)
    assert not set(programs(tmp_path)) & set(kept)


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert folder_of(tmp_path / "cache") == "None"


def test_each_kind_of_processor_has_a_folder(tmp_path, monkeypatch):
    names = []
    for flags in ("avx2", "avx2 avx512f"):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name : one\nflags : {flags}\ncpu MHz : 1.0\n")
        monkeypatch.setattr(compiled, "CPU_INFO", tmp_path / "cpuinfo")
        names.append(compiled._processor())
    assert names[0] != names[1]
    monkeypatch.setattr(compiled, "CPU_INFO", tmp_path / "absent")
    assert len(compiled._processor()) == 16


@pytest.mark.parametrize(
    ("system", "variables", "folder"),
    [
        ("linux", {"XDG_CACHE_HOME": "/fast"}, "/fast"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/ada/.cache"),
        ("linux", {}, "/home/ada/.cache"),
        ("darwin", {"XDG_CACHE_HOME": "/fast"}, "/home/ada/Library/Caches"),
        ("win32", {}, "/home/ada/AppData/Local"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local"),
    ],
)
def test_the_cache_folder_is_the_systems(system, variables, folder, monkeypatch):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(compiled.sys, "platform", system)
    assert compiled._cache_folder() == Path(folder)
