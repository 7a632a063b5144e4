"""A disk that gets full, or can't be written any more, while `byol-jax train` runs: what is saved stays, and goes on.

A real file system in memory where mounting is allowed, the kernel's limit on the size of a file everywhere, and errors
put into the calls for what can't be had otherwise.
"""

import errno
import json
import os
import resource
import shutil

import pytest
from checkpoint_states import small_state
from tiny_run import RECIPE, contents, plain_rows, states, temporaries

from byol_jax import checkpoint
from byol_jax.runs.folder import lock
from byol_jax.runs.metrics import append_metrics, read_metrics

STEPS = 6
EVERY = ["--checkpoint-every", "1", "--log-every", "1", "--steps", STEPS]


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory, compiled_once):
    """The end of a run that nothing happened to."""
    from byol_jax.cli.main import main

    out = tmp_path_factory.mktemp("expected") / "run"
    assert main([str(word) for word in ("train", images, "--out", out, *RECIPE, *EVERY)]) == 0
    return states(out)[STEPS], plain_rows(out)


def check_left_in_order(out):
    """Nothing half-written in the folder: every checkpoint loads, every JSON and every row is whole."""
    assert temporaries(out) == []
    assert not (out / ".lock").exists()
    newest = checkpoint.latest(out / "checkpoints")  # a warning about a damaged one would be an error here
    saved = states(out)
    assert (newest is None) == (not saved)
    assert newest is None or int(newest.name) == max(saved)
    for path in out.glob("*.json"):
        assert json.loads(path.read_bytes())
    if (out / "metrics.jsonl").exists():
        assert len(plain_rows(out)) >= max(saved, default=0)
    if (out / "views.png").exists():
        assert (out / "views.png").read_bytes().endswith(b"IEND\xaeB`\x82")


def check_full_at(size, disk, images, command, expected):
    """A run on a disk of `size` kilobytes, then on the same with room; what the first one said."""
    out = disk.path / "run"
    code, printed, errors = command("train", images, "--out", out, *RECIPE, *EVERY)
    assert code == 1, f"{size} kilobytes are enough"
    assert printed == ""
    assert "No space left on device" in errors[-1]
    if out.exists():
        check_left_in_order(out)
    before = states(out) if out.exists() else {}
    disk.resize("40m")
    assert command("train", images, "--out", out, *RECIPE, *EVERY, "--resume")[0] == 0
    assert (states(out)[STEPS], plain_rows(out)) == expected
    return errors[-1], before


@pytest.mark.long
def test_a_disk_that_gets_full_anywhere(small_disk, images, command, expected, share, figure):
    # Up to 64 kB in steps of a block: configuration, list, picture, logs. Then in each of the first checkpoints.
    # 1.7 MB each: the fourth is written while three are kept, and doesn't fit into 5.5 MB.
    said, before = check_full_at(5500, small_disk("5500k"), images, command, expected)
    assert "checkpoint of step 4 not saved" in said
    assert "earlier checkpoints are untouched; make room" in said
    assert list(before) == [1, 2, 3]
    sizes = share([*range(4, 68, 4), *range(200, 6800, 300)])
    saved = [list(check_full_at(size, small_disk(f"{size}k"), images, command, expected)[1]) for size in sizes]
    assert max(saved) == [1, 2, 3] or len(sizes) < 30
    figure(
        "a disk that gets full while a run begins or goes on",
        cases=len(sizes) + 1,
        result="exit 1; nothing half-written, the checkpoints before it load; with room again the run ends bit for bit"
        " as it would have",
    )


@pytest.mark.slow
def test_a_disk_that_is_read_only(small_disk, images, command, expected):
    disk = small_disk("40m")
    out = disk.path / "run"
    assert command("train", images, "--out", out, *RECIPE, *EVERY)[0] == 0
    before = contents(out)
    disk.resize("40m", writable=False)
    for words in (["--out", out, "--resume"], ["--out", out, "--overwrite"], ["--out", disk.path / "new"]):
        code, printed, errors = command("train", images, *words, *RECIPE, *EVERY)
        assert (code, printed, len(errors)) == (2, "", 1)
        assert "can't be written (Read-only file system)" in errors[0] or "no permission to write" in errors[0]
    assert contents(out) == before
    assert command("export", out, "--out", disk.path.parent / "net.npz")[0] == 0, "reading is possible"


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_from_the_third_checkpoint_on(tmp_path, images, command, expected, monkeypatch, number):
    out, real = tmp_path / "run", os.mkdir

    def fails(path, *arguments, **options):
        if str(path).startswith(str(out / "checkpoints")) and len(states(out)) == 2:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", fails)
        code, printed, errors = command("train", images, "--out", out, *RECIPE, *EVERY)
    assert (code, printed) == (1, "")
    assert "checkpoint of step 3 not saved" in errors[-1]
    assert os.strerror(number) in errors[-1]
    assert list(states(out)) == [1, 2]
    check_left_in_order(out)
    assert command("train", images, "--out", out, *RECIPE, *EVERY, "--resume")[0] == 0
    assert (states(out)[STEPS], plain_rows(out)) == expected


@pytest.fixture
def limit():
    """`limit(bytes)`: no file of this process may grow beyond; put back at the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_row_of_metrics_is_whole_or_not_there(tmp_path, limit):
    """The kernel writes as much as it may, says so, and refuses the rest: half a row would spoil the next one too."""
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"step": 1})
    before = path.read_bytes()
    limit(len(before) + 7)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        append_metrics(path, {"step": 2, "loss": 0.5})
    assert path.read_bytes() == before
    limit(10_000)
    append_metrics(path, {"step": 2})
    assert read_metrics(path) == ([{"step": 1}, {"step": 2}], 0)


def test_a_lock_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for out in (tmp_path / "new", tmp_path / "here"):
        (tmp_path / "here").mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(ValueError, match=r"can't be written .No space left"), lock(out):
                pass
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert list((tmp_path / "here").iterdir()) == []


def test_room_made_by_hand_is_enough(tmp_path, limit):
    """After a save that failed the next one of the same process succeeds."""
    state = small_state()  # before the limit, which would be met by the programs that make it too
    limit(1500)
    for _ in range(2):
        with pytest.raises(OSError, match="not saved"):
            checkpoint.save(tmp_path, state)
        assert list(tmp_path.iterdir()) == []
    limit(10**6)
    checkpoint.save(tmp_path, state)
    shutil.rmtree(checkpoint.latest(tmp_path))
    assert list(tmp_path.iterdir()) == []
