"""What the tests of the command line share: how a command is called, and files for it to read."""

import json
import os

import numpy as np
import pytest

from byol_jax.cli.main import main


class Answer:
    """What a command answered: `code`, `out` (standard output) and `err` (standard error)."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def complaint(self) -> str:
        """The one line of standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].strip()
        return lines[0]


@pytest.fixture
def call(capsys):
    """`call("train", "DATA", ...)` runs the command line in this process."""

    def run(*words: object) -> Answer:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A working directory with a folder of images, arrays, a run, and what is none of these."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("kept")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    (tmp_path / "done.npz").write_bytes(b"")
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8, 3), np.uint8))
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "loop.npy").symlink_to("loop.npy")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"network": None}))
    return tmp_path
