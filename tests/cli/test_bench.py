"""`byol-jax bench` hands its words on to a checkout's benchmark and its exit code back."""

import pytest

from byol_jax.cli.commands import bench
from byol_jax.cli.main import main


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose benchmark prints its options and ends with the code that `--code` names."""
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    script = "import sys\nprint(sys.argv[1:])\nsys.exit(int(sys.argv[sys.argv.index('--code') + 1]))\n"
    (tmp_path / "benchmarks" / "step.py").write_text(script)
    (tmp_path / "benchmarks" / "compare.py").write_text("import sys\nprint('compare', sys.argv[1:])\n")
    return tmp_path


@pytest.mark.parametrize(("code", "ours"), [(0, 0), (1, 1), (2, 2), (77, 1)])
def test_words_go_there_and_the_code_comes_back(checkout, capfd, code, ours):
    assert main(["bench", "--out", str(checkout / "new"), "--", "--code", str(code), "--debug"]) == ours
    assert capfd.readouterr().out == f"{['--out', str(checkout / 'new'), '--code', str(code), '--debug']}\n"


def test_two_folders_are_compared(checkout, capfd):
    assert main(["bench", "compare", "before", "after"]) == 0
    assert capfd.readouterr().out == "compare ['before', 'after']\n"


def test_an_installed_package_has_no_benchmarks(tmp_path, monkeypatch, call):
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    answer = call("bench")
    assert answer.code == 2
    assert "in a checkout" in answer.complaint
