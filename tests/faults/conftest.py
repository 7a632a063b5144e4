"""What tests of whole runs share: one compilation for all runs of a module, and disks that are small or closed."""

import contextlib
import subprocess

import pytest
from tiny_run import save_images

from byol_jax import parallel
from byol_jax.cli.main import main


@pytest.fixture(scope="session")
def compiled_steps():
    return {}


@pytest.fixture(scope="module")
def compiled_once(request, compiled_steps):
    """All runs of a module, and of modules with the same RECIPE, share one compiled step; gives the real `jit`.

    For modules whose runs have one network, recipe and batch: it is the same program each time, and keeping it makes a
    run cost some tenths of a second instead of several seconds.
    """
    real, recipe = parallel.jit, str(getattr(request.module, "RECIPE", request.module.__name__))

    def jit(learner, mesh, **options):
        if recipe not in compiled_steps:
            compiled_steps[recipe] = real(learner, mesh, **options)
        return compiled_steps[recipe]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "jit", jit)
        yield real


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A tiny run's images: a file that nobody changes."""
    return save_images(tmp_path_factory.mktemp("data") / "images.npy")


@pytest.fixture
def command(capsys):
    """`command("train", …)`: the exit code, what was printed, and the lines of standard error."""

    def run(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err.splitlines()

    return run


class Disk:
    """A file system in memory, mounted at `path`; `size` as mount has it: "3000k"."""

    def __init__(self, path):
        self.path = path

    def resize(self, size, *, writable=True):
        options = f"remount,size={size},{'rw' if writable else 'ro'}"
        subprocess.run(["mount", "-o", options, str(self.path)], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk("3000k")`: a real disk that gets full. Needs the right to mount, which root has on Linux."""
    with contextlib.ExitStack() as mounted:

        def mount(size):
            path = tmp_path / f"disk{size}"
            path.mkdir()
            words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
            try:
                subprocess.run(words, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("mounting a file system isn't allowed here")
            mounted.callback(subprocess.run, ["umount", "-l", str(path)], check=True, capture_output=True)
            return Disk(path)

        yield mount
