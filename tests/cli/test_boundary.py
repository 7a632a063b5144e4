"""Every way in which a command can end, and the one line and exit code that come of it."""

import errno
import warnings

import pytest

from byol_jax import errors
from byol_jax.cli.boundary import guard


def _ends_with(capsys, error, *, debug=False):
    def work():
        raise error

    code = guard("byol-jax train", work, debug=debug)
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err.splitlines()


WRONG_INPUT = [
    *(kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ValueError)),
]


@pytest.mark.parametrize("kind", WRONG_INPUT)
def test_wrong_input_is_two(capsys, kind):
    assert _ends_with(capsys, kind("what is wrong")) == (2, ["byol-jax train: what is wrong"])


def test_every_error_on_purpose_was_tried():
    assert len(WRONG_INPUT) >= 11


@pytest.mark.parametrize("kind", [FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError])
def test_a_users_path_is_two(capsys, kind):
    error = kind(errno.EACCES, "no way in", "photos/one.png")
    assert _ends_with(capsys, error) == (2, ["byol-jax train: photos/one.png: no way in"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE])
def test_a_full_or_failing_disk_is_one(capsys, number):
    code, lines = _ends_with(capsys, OSError(number, "the disk is to blame", "run/metrics.jsonl"))
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith("byol-jax train: failed: ")
    assert "the disk is to blame" in lines[0]


@pytest.mark.parametrize("error", [RuntimeError("out of\n  memory"), ZeroDivisionError("x"), OSError("no file named")])
def test_anything_else_is_one(capsys, error):
    code, lines = _ends_with(capsys, error)
    assert code == 1
    assert lines == [
        f"byol-jax train: failed: {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)"
    ]


@pytest.mark.parametrize("kind", [errors.DivergedError, errors.CollapsedError])
def test_a_run_that_went_wrong_speaks_for_itself(capsys, kind):
    assert _ends_with(capsys, kind("20 steps; lower the rate")) == (
        1,
        ["byol-jax train: failed: 20 steps; lower the rate"],
    )


def test_the_keyboard_is_130(capsys):
    code, lines = _ends_with(capsys, KeyboardInterrupt())
    assert (code, len(lines)) == (130, 1)


def test_debug_shows_where(capsys):
    code, lines = _ends_with(capsys, errors.DataError("what is wrong"), debug=True)
    assert code == 2
    assert lines[0].startswith("Traceback")
    assert any("test_boundary.py" in line for line in lines)
    assert lines[-1] == "byol-jax train: what is wrong"


def test_an_exit_code_is_passed_on(capsys):
    assert guard("byol-jax", lambda: 7) == 7
    assert _ends_with(capsys, SystemExit(0)) == (0, [])
    assert _ends_with(capsys, SystemExit(3)) == (3, [])


def test_a_warning_is_one_line(capsys):
    def work():
        warnings.simplefilter("always")
        warnings.warn("checkpoint 7\n  passed over", UserWarning, stacklevel=1)
        return 0

    assert guard("byol-jax evaluate", work) == 0
    assert capsys.readouterr().err == "byol-jax evaluate: warning: checkpoint 7 passed over\n"


def test_the_way_warnings_are_shown_is_put_back():
    before = warnings.showwarning
    guard("byol-jax", lambda: 0)
    assert warnings.showwarning is before


def test_one_line():
    assert errors.one_line(" a\n\tb  c\n") == "a b c"
    assert errors.one_line("abc", at_most=2) == "ab"
    assert errors.one_line("\x1b[31mred \udcff") == r"\x1b[31mred \udcff"
    assert errors.one_line(KeyError()) == "KeyError"
