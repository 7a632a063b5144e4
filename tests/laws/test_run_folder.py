"""Laws of a run's folder: nothing foreign is touched, nothing that decides a result changes unseen, one writer."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import ConfigurationError, TrainState, checkpoint, nets
from byol_jax.runs.artifacts import torch_difference
from byol_jax.runs.config import read_config
from byol_jax.runs.environment import environment, hide_credentials
from byol_jax.runs.folder import lock, prepare, run_paths
from byol_jax.runs.metrics import append_metrics, read_metrics, truncate_metrics
from byol_jax.types import EncoderFacts

CONFIG = {
    "network": {"name": "resnet18", "num_classes": 1000},
    "learner": {"hidden_layer": -2, "augment": "simclr", "learning_rate": 0.1},
    "data": {"kind": "array", "count": 8, "sha256": "00"},
    "image_size": [8, 8],
    "steps": 10,
    "seed": 0,
    "init_from": None,
    "out": "runs/first",
    "workers": 2,
    "log_every": 5,
    "checkpoint_every": 5,
}


def start(out, config=CONFIG, *, resume=False, overwrite=False):
    return prepare(out, config, resume=resume, overwrite=overwrite)


def save_step(paths, step):
    checkpoint.save(paths.checkpoints, TrainState(jnp.int32(step), jax.random.key(0), {}, {}, ()))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_refused_unchanged(out, message, *arguments, **options):
    """`prepare` refuses in one line that matches, and not a byte in the folder changes."""
    before = contents(out)
    with pytest.raises(ConfigurationError, match=message) as caught:
        start(out, *arguments, **options)
    assert "\n" not in str(caught.value)
    assert contents(out) == before


def test_a_fresh_folder(tmp_path):
    paths, resumed = start(tmp_path / "deep" / "run")
    assert not resumed
    assert paths == run_paths(tmp_path / "deep" / "run")
    assert sorted(path.name for path in paths.root.iterdir()) == ["config.json", "environment.json"]
    assert read_config(paths.root) == CONFIG
    names = [path.name for path in paths[1:]]
    files = (
        "config.json environment.json images.json images.index metrics.jsonl train.log views.png network checkpoints"
        " exported tensorboard"
    )
    assert names == [*files.split(), "report.html", "evaluation.json", "neighbours.png"]


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    for options in ({}, {"resume": True}, {"overwrite": True}):
        out = tmp_path / str(len(options) + len(list(tmp_path.iterdir())))
        out.mkdir()
        assert start(out, **options)[1] is False
        assert read_config(out) == CONFIG


def test_not_empty_is_refused_without_resume_or_overwrite(tmp_path):
    start(tmp_path)
    check_refused_unchanged(tmp_path, "is not empty: --resume .*--overwrite .*another folder")


def test_both_at_once_are_refused(tmp_path):
    check_refused_unchanged(tmp_path, "contradict", resume=True, overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigurationError, match="is a file: give a folder"):
        start(tmp_path / "run", overwrite=True)


def test_resume_goes_on_where_there_is_a_checkpoint(tmp_path):
    paths, _ = start(tmp_path)
    save_step(paths, 5)
    append_metrics(paths.metrics, {"step": 5})
    paths.log.write_text("a line\n")
    again, resumed = start(tmp_path, CONFIG | {"steps": 20, "workers": 9, "out": "elsewhere"}, resume=True)
    assert (again, resumed) == (paths, True)
    assert read_config(tmp_path)["steps"] == 20
    assert paths.log.read_text() == "a line\n"
    assert checkpoint.latest(paths.checkpoints) is not None


def test_resume_without_a_complete_checkpoint_starts_afresh(tmp_path):
    paths, _ = start(tmp_path)
    append_metrics(paths.metrics, {"step": 5})
    (paths.checkpoints / "00000005").mkdir(parents=True)
    with pytest.warns(checkpoint.DamagedCheckpointWarning):
        _, resumed = start(tmp_path, CONFIG | {"seed": 1}, resume=True)
    assert not resumed
    assert read_config(tmp_path)["seed"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "environment.json"]


def test_resume_names_every_key_that_differs(tmp_path):
    paths, _ = start(tmp_path)
    save_step(paths, 5)
    other = CONFIG | {"seed": 1, "image_size": [8, 9], "extra": True, "network": {"name": "resnet18"}, "steps": 9}
    other |= {"learner": CONFIG["learner"] | {"learning_rate": 0.2}, "data": CONFIG["data"] | {"sha256": "01"}}
    del other["init_from"]
    faults = [
        "network/num_classes: stored 1000, given nothing",
        "learner/learning_rate: stored 0.1, given 0.2",
        'data/sha256: stored "00", given "01"',
        r"image_size: stored \[8, 8\], given \[8, 9\]",
        r"steps: stored 10, given 9 \(may only grow\)",
        "seed: stored 0, given 1",
        "init_from: stored null, given nothing",
        "extra: stored nothing, given true",
    ]
    check_refused_unchanged(tmp_path, f"another configuration: {'; '.join(faults)}; give", other, resume=True)


@pytest.mark.parametrize("key", ["out", "workers", "log_every", "checkpoint_every", "num_processes", "process_id"])
def test_what_does_not_decide_the_result_may_change(tmp_path, key):
    paths, _ = start(tmp_path)
    save_step(paths, 5)
    assert start(tmp_path, CONFIG | {key: 17}, resume=True)[1] is True


@pytest.mark.parametrize(("kind", "allowed"), [("iterable", True), ("array", False)])
@pytest.mark.parametrize("stored", [256, 8, None])
def test_the_batch_size_of_an_iterable_is_not_compared(tmp_path, kind, allowed, stored):
    """Runs of version 0.1.0 say 256 there, whatever the batches were."""
    config = CONFIG | {"data": {"kind": kind}}
    paths, _ = start(tmp_path, config | {"batch_size": stored})
    save_step(paths, 5)
    other = config | {"batch_size": 16}
    if allowed:
        assert start(tmp_path, other, resume=True)[1] is True
        assert start(tmp_path, config, resume=True)[1] is True
    else:
        check_refused_unchanged(tmp_path, "batch_size: stored", other, resume=True)


def test_resume_of_a_copy(tmp_path):
    paths, _ = start(tmp_path / "run")
    save_step(paths, 5)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert start(tmp_path / "moved", resume=True)[1] is True


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"3", b'{"steps": 10}', b'{"format": "byol_jax.run"}'])
def test_resume_with_a_damaged_configuration(tmp_path, content):
    paths, _ = start(tmp_path)
    save_step(paths, 5)
    paths.config.unlink()
    if content is not None:
        paths.config.write_bytes(content)
    check_refused_unchanged(tmp_path, r"config\.json ", resume=True)


def test_overwrite_removes_only_what_a_run_writes(tmp_path):
    paths, _ = start(tmp_path)
    save_step(paths, 5)
    append_metrics(paths.metrics, {"step": 5})
    paths.exported.mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.png").write_bytes(b"mine too")
    assert start(tmp_path, CONFIG | {"seed": 1}, overwrite=True)[1] is False
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["config.json", "environment.json", "images", "notes.txt"]
    assert (tmp_path / "images" / "cat.png").read_bytes() == b"mine too"


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}])
@pytest.mark.parametrize("config", [None, b'{"model_type": "vit"}', b"not JSON"])
@pytest.mark.parametrize("beside", ["thesis.tex", "metrics.jsonl"])
def test_a_folder_that_is_not_a_run_is_never_touched(tmp_path, options, config, beside):
    (tmp_path / beside).write_text("years of work")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "other.ckpt").write_bytes(b"of another program")
    if config is not None:
        (tmp_path / "config.json").write_bytes(config)
    check_refused_unchanged(tmp_path, rf"holds .*{beside}.* and is no run's folder", **options)


def test_overwrite_does_not_follow_links(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("kept")
    paths, _ = start(tmp_path / "run")
    paths.checkpoints.symlink_to(tmp_path / "elsewhere")
    start(tmp_path / "run", overwrite=True)
    assert (tmp_path / "elsewhere" / "precious").read_text() == "kept"
    assert not paths.checkpoints.exists()


@pytest.mark.parametrize("value", [float("nan"), object(), np.ones(2)])
def test_a_configuration_that_is_not_json_is_refused_first(tmp_path, value):
    start(tmp_path)
    check_refused_unchanged(tmp_path, "isn't JSON", CONFIG | {"seed": value}, overwrite=True)


def test_environment_tells_what_matters_and_no_secrets(monkeypatch):
    home = str(Path.home())
    arguments = ["/opt/tools/byol-jax", "train", f"{home}/images", "--hub-token", "t0ps3cret", "--api-key=t0ps3cret"]
    arguments += ["--probe", "simplecache::s3://me:t0ps3cret@there/a.tar?X-Amz-Signature=t0ps3cret"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--coordinator-address", "node7:1234", "--seed", "3"])
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["packages"]["jax"] == jax.__version__
    assert facts["devices"]["count"] == 8
    command = ["byol-jax", "train", "~/images", "--hub-token", "…", "--api-key=…"]
    command += ["--probe", "simplecache::s3://…@there/a.tar?…", "--coordinator-address", "…", "--seed", "3"]
    assert facts["command"] == command
    assert hide_credentials("s3://a/train-???.tar") == "s3://a/train-???.tar"
    text = json.dumps(facts)
    for hidden in ("t0ps3cret", "node7", os.uname().nodename, f"{home}/"):
        assert hidden not in text


def test_metrics_come_back_and_are_plain_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == ([], 0)
    append_metrics(path, {"step": 1, "loss": jnp.float32(0.5), "note": "ä\n", "count": np.int64(3)})
    append_metrics(path, {"step": 2, "loss": float("inf"), "skipped": None})
    first, second = {"step": 1, "loss": 0.5, "note": "ä\n", "count": 3}, {"step": 2, "loss": None, "skipped": None}
    assert read_metrics(path) == ([first, second], 0)
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("torn", [b"", b'{"step": 4, "lo', b"\0\0\0\n", b"[4]\n", b"\xff\n", b"NaN"])
def test_metrics_tolerate_a_torn_last_line(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_metrics(path, {"step": step})
    with path.open("ab") as file:
        file.write(torn)
    assert read_metrics(path) == ([{"step": 1}, {"step": 2}, {"step": 3}], int(torn != b""))
    truncate_metrics(path, 2)
    append_metrics(path, {"step": 3, "again": True})
    assert read_metrics(path) == ([{"step": 1}, {"step": 2}, {"step": 3, "again": True}], 0)


def test_truncating_metrics_that_are_not_there(tmp_path):
    truncate_metrics(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def hold(out):
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(Path(__file__).with_name("hold_a_run.py")), str(out)]
    holder = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.slow
def test_two_processes_cannot_train_into_one_folder(tmp_path):
    with hold(tmp_path / "run") as holder:
        with pytest.raises(ConfigurationError, match=f"in use by process {holder.pid}: "), lock(tmp_path / "run"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / "run" / ".lock").exists(), "the killed one left its lock file behind"
    with lock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == f"{os.getpid()}\n"
        start(tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_lock_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "run"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigurationError, match=r"can't be written .*give another folder"),
        lock(tmp_path / "file/run"),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "differs"), [({}, False), ({"padding": "torch"}, False), ({"padding": "same"}, True)]
)
def test_weights_for_a_network_that_pads_otherwise_are_said_to_be(options, differs):
    encoder = nets.resnet((1,), width=8, **options)
    assert (torch_difference(encoder) is not None) == differs
    assert torch_difference(encoder._replace(facts=EncoderFacts())) is None
