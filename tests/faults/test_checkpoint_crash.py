"""Killed, out of space, read-only, several at once: the last good checkpoint stays; nothing half-written is taken."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from checkpoint_states import assert_identical, small_state

from byol_jax import checkpoint, disk

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    "JAX_PLATFORMS": "cpu",
}


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def check_survives_kills(directory, kills):
    """Kill a writer `kills` times at random moments; after each, the newest checkpoint is whole and as it was saved."""
    generator = random.Random(kills)
    first = 1
    for _ in range(kills):
        command = [sys.executable, str(HERE / "save_in_a_loop.py"), str(directory), str(first)]
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(generator.uniform(0, 0.3))
            writer.send_signal(signal.SIGKILL)
            reported = [first, *map(int, writer.stdout.read().split())]
        restored = checkpoint.restore(directory, like=small_state())
        step = int(restored.state.step)
        assert step >= reported[-1]
        assert restored.position in ([step, "new"], [step, "again"])
        assert_identical(restored.state, small_state(step=step))
        first = step + 1
    checkpoint.save(directory, small_state(step=first), keep=2)
    assert len(names(directory)) == 2, "temporary folders of the killed are removed by the next save"
    assert all(len(list(folder.iterdir())) == 2 for folder in directory.iterdir() if folder.name != f"{first - 1:08d}")


@pytest.mark.slow
def test_kill_at_random_moments(tmp_path):
    check_survives_kills(tmp_path, 6)


@pytest.mark.long
def test_kill_at_many_random_moments(tmp_path, share, figure):
    kills = share(60)
    check_survives_kills(tmp_path, kills)
    figure("kill -9 while saving", cases=kills, result="the newest checkpoint whole and as it was saved, every time")


NOT_CALLED = {("os.replace", 20), ("os.rename", 10)}  # adding is one rename, replacing is two replacements
CALLS = ["os.fsync", "os.replace", "os.rename", "os.mkdir", "os.chmod"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("step", [10, 20])
def test_any_call_that_fails_leaves_the_old_ones(tmp_path, monkeypatch, call, number, step):
    """Adding step 20, and replacing step 10, with each call to the system failing the first time and later ones."""
    checkpoint.save(tmp_path, small_state(step=10), position="old")
    for successes in range(4):
        left = [successes]
        real = getattr(os, call.removeprefix("os."))

        def fails(*arguments, _left=left, _real=real, **options):
            if _left[0] == 0:
                raise OSError(number, os.strerror(number))
            _left[0] -= 1
            return _real(*arguments, **options)

        failed = None
        with monkeypatch.context() as patch:
            patch.setattr(call, fails)
            try:
                checkpoint.save(tmp_path, small_state(step=step), position="new")
            except OSError as error:
                failed = error
        if failed is not None:
            assert failed.errno == number
            assert f"checkpoint of step {step} not saved" in str(failed)
            assert "\n" not in str(failed)
        assert failed is not None or successes > 0 or (call, step) in NOT_CALLED
        restored = checkpoint.restore(tmp_path, like=small_state())
        assert_identical(restored.state, small_state(step=int(restored.state.step)))
        assert (int(restored.state.step), restored.position) in [(10, "old"), (step, "new")]
        assert set(names(tmp_path)) <= {"00000010", f"{step:08d}"}, "nothing temporary is left"


def test_a_file_that_cannot_grow(tmp_path):
    """A real refusal by the kernel in the middle of a write: a limit on the size of a file, as a quota would be."""
    checkpoint.save(tmp_path, small_state(step=10))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(OSError, match="checkpoint of step 20 not saved") as caught:
            checkpoint.save(tmp_path, small_state(step=20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert names(tmp_path) == ["00000010"]
    assert_identical(checkpoint.restore(tmp_path, like=small_state()).state, small_state(step=10))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="give a folder that can be written"):
        checkpoint.save(tmp_path / "file" / "checkpoints", small_state())


def test_an_old_one_that_cannot_be_removed_is_no_failure(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, small_state(step=10))

    def refuse(folder):
        raise PermissionError(errno.EACCES, "no")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "discard", refuse)
        checkpoint.save(tmp_path, small_state(step=20), keep=1)
    assert names(tmp_path) == ["00000010", "00000020"]
    checkpoint.save(tmp_path, small_state(step=30), keep=1)
    assert names(tmp_path) == ["00000030"]


def test_temporary_folders_of_the_living_stay(tmp_path):
    (tmp_path / ".tmp-dead").mkdir()
    (tmp_path / ".tmp-dead" / "state.safetensors").write_bytes(b"half")
    with disk.temporary_folder(tmp_path) as living:
        checkpoint.save(tmp_path, small_state())
        assert names(tmp_path) == sorted([living.name, "00000003"])
    assert names(tmp_path) == ["00000003"]


def test_several_threads_into_one_directory(tmp_path):
    """Not something to do, but nothing is lost by it."""
    threads = [
        threading.Thread(target=checkpoint.save, args=(tmp_path, small_state(step=step)), kwargs={"keep": None})
        for step in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for step in range(1, 9):
        assert_identical(checkpoint.restore(tmp_path / f"{step:08d}", like=small_state()).state, small_state(step=step))


def test_atomic_write_of_one_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    disk.write_atomically(path, b"old")
    disk.write_atomically(path, b"new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            disk.write_atomically(path, b"newer")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["config.json"]


def test_an_atomic_write_keeps_links_and_permissions(tmp_path):
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "reference").touch()
    disk.write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "real").stat().st_mode == (tmp_path / "reference").stat().st_mode
    (tmp_path / "real").chmod(0o604)
    disk.write_atomically(tmp_path / "link", b"newer")
    assert (tmp_path / "link").is_symlink()
    assert ((tmp_path / "real").read_bytes(), (tmp_path / "real").stat().st_mode & 0o777) == (b"newer", 0o604)


KILLED = """
import os, sys
from pathlib import Path
from byol_jax import disk
with disk.replacement(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    path = tmp_path / "net.npz"
    path.write_bytes(b"old")
    (tmp_path / ".tmp-of-somebody-else").mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(path)], env=ENVIRONMENT, check=False)
    (left,) = set(names(tmp_path)) - {"net.npz", ".tmp-of-somebody-else"}
    assert disk.is_temporary(tmp_path / left)
    assert path.read_bytes() == b"old"
    with disk.replacement(path) as living:
        disk.write_atomically(tmp_path / "other", b"new")
        assert names(tmp_path) == sorted([living.parent.name, ".tmp-of-somebody-else", "net.npz", "other"])
    assert names(tmp_path) == [".tmp-of-somebody-else", "net.npz", "other"]


def test_files_that_cannot_be_put_back_stay_under_their_names(tmp_path, monkeypatch):
    """A disk that takes no more renames after the old files went aside: they are there for a person to find."""
    for name in "ab":
        (tmp_path / name).write_bytes(b"old")
    real, calls = os.replace, iter(range(100))

    def fails(source, target):
        if next(calls) > 1:
            raise OSError(errno.EIO, "no more")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="no more"), disk.replacements([tmp_path / "a", tmp_path / "b"]):
            pass
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith(".replaced-byol-jax-")
    disk.remove_abandoned(tmp_path)
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == {"a": b"old", "b": b"old"}
