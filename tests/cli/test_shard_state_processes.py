"""`byol-jax train --shard-state` in two processes: each writes its part, and the run goes on anywhere.

All are long, as those of test_train_processes.py.
"""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
from training_processes import alone, finish, said, together, wait_for_step

from byol_jax.runs.metrics import read_metrics
from byol_jax.runs.reopen import open_run
from byol_jax.tree import leaf_names

WIDE = ("--projection-size", 64, "--projection-hidden-size", 256)
"""Heads whose larger kernels are spread; options that come later win."""

FLOAT32 = 2e-5
"""As in test_train_processes.py."""

LENGTH = 100
"""Steps of a run that is to be stopped."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def leaves(out):
    """The newest checkpoint's, as any reader sees them: in one process, whole."""
    state = open_run(out).state
    values = [jax.random.key_data(leaf) if leaf is state.key else leaf for leaf in jax.tree.leaves(state)]
    return {name: np.asarray(leaf) for name, leaf in zip(leaf_names(state), values, strict=True)}


def difference(left, right):
    ours, wanted = leaves(left), leaves(right)
    assert ours["step"] == wanted["step"]
    return float(max(np.abs(ours[name].astype(np.float64) - wanted[name].astype(np.float64)).max() for name in wanted))


def by_two(out, images, cache, *options):
    with together(out, images, *WIDE, *options, cache=cache) as processes:
        codes, _ = finish(processes)
    assert codes == [0, 0], said(out, 0) + said(out, 1)


def manifest(out, step):
    return json.loads((out / "checkpoints" / f"{step:08d}" / "manifest.json").read_bytes())


@pytest.mark.long
def test_two_processes_each_write_their_part_and_the_run_goes_on_anywhere(images, cache, tmp_path, call, figure):
    whole, first, single = tmp_path / "whole", tmp_path / "first", tmp_path / "single"
    labelled = tmp_path / "labelled.npz"
    np.savez(labelled, images=np.load(images), labels=np.arange(40) % 2)
    by_two(whole, images, cache, "--shard-state", "--steps", 5, "--probe", labelled, "--probe-every", 2)
    rows, _ = read_metrics(whole / "metrics.jsonl")
    assert [row["step"] for row in rows if "probe_knn" in row] == [0, 2, 4, 5]
    by_two(first, images, cache, "--shard-state", "--steps", 3)
    assert "spread over 8 devices" in (first / "train.log").read_text()
    found = manifest(first, 3)
    assert (found["version"], len(found["files"])) == (2, 2)
    assert any(name.startswith("opt_state") for name in found["parts"])
    alone(single, images, *WIDE, "--steps", 5, devices=1, cache=cache)
    assert difference(whole, single) <= FLOAT32

    again = tmp_path / "again"
    shutil.copytree(first, again)
    by_two(again, images, cache, "--shard-state", "--steps", 5, "--resume")
    assert manifest(again, 5) == manifest(whole, 5), "bit for bit: every file's hash is in it"
    differences = []
    for name, options, devices in (("eight", ["--shard-state"], 8), ("one", [], 1)):
        out = tmp_path / name
        shutil.copytree(first, out)
        alone(out, images, *WIDE, "--steps", 5, "--resume", *options, devices=devices, cache=cache)
        differences.append(difference(out, whole))
        assert manifest(out, 5)["version"] == 1
    begun = tmp_path / "begun"
    alone(begun, images, *WIDE, "--steps", 3, devices=4, cache=cache)
    by_two(begun, images, cache, "--shard-state", "--steps", 5, "--resume")
    differences.append(difference(begun, whole))
    assert max(differences) <= FLOAT32

    for words in (
        ("embed", whole, "--data", images, "--out", tmp_path / "features.npz"),
        ("export", whole, "--out", tmp_path / "net.safetensors"),
        ("evaluate", whole, "--data", labelled),
    ):
        assert call(*words).code == 0, words
    exported = [(run / "exported" / "encoder.safetensors").read_bytes() for run in (whole, again)]
    assert exported[0] == exported[1]
    figure(
        "two processes with --shard-state; stopped and gone on in two, in one of eight devices, of one without it;"
        " begun by one without it",
        cases=4,
        result=f"the same number of processes bit-identical, else at most {max(differences):.1e} apart; evaluate, embed"
        " and export read the parts",
    )


@pytest.mark.long
def test_a_spread_run_that_is_stopped_or_loses_a_process_goes_on(images, cache, tmp_path, figure):
    for number in (signal.SIGTERM, signal.SIGKILL):
        out = tmp_path / number.name
        with together(out, images, *WIDE, "--shard-state", "--steps", LENGTH, cache=cache) as processes:
            wait_for_step(out, processes)
            processes[1].send_signal(number)
            codes, _ = finish(processes, 80)
        assert (codes == [130, 130]) == (number == signal.SIGTERM)
        assert 0 not in codes
        step = int(leaves(out)["step"])
        assert 2 <= step < LENGTH
        alone(out, images, *WIDE, "--shard-state", "--steps", LENGTH, "--resume", devices=8, cache=cache)
        assert leaves(out)["step"] == LENGTH
    figure(
        "SIGTERM or kill -9 to one of two processes whose state is spread over both",
        cases=2,
        result="both end, the newest checkpoint is intact and the run goes on in one process",
    )


@pytest.mark.long
def test_a_folder_that_not_all_processes_see_is_refused_before_the_first_step(images, cache, tmp_path):
    """A path that leads elsewhere in process 1, as on a machine whose disk is its own."""
    out, other = tmp_path / "run", tmp_path / "other"
    with together(out, images, *WIDE, "--shard-state", "--steps", 3, own=((), ("--out", other)), cache=cache) as both:
        codes, _ = finish(both, 120)
    assert codes == [2, 2], said(out, 0) + said(out, 1)
    for number, folder in enumerate((out, other)):
        line = f"byol-jax train: process 1 doesn't see the folder {folder} of process 0: with shard_state give a folder"
        assert said(out, number).rstrip().splitlines()[-1] == f"{line} that all processes share"
    assert not out.exists()
    assert not other.exists()
