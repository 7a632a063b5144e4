"""What an option's value may be: the edges of what is accepted, and that the parser agrees with argparse."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byol_jax import ConfigurationError
from byol_jax.cli import common, values
from byol_jax.cli.commands import embed
from byol_jax.cli.parsing import Parser, wrong_words
from byol_jax.data import arrays, fit
from byol_jax.data.files import file_list
from byol_jax.runs import reopen
from byol_jax.runs.config import encode_config


@pytest.mark.parametrize(
    ("convert", "word", "value"),
    [
        (values.positive_int, "1", 1),
        (values.positive_int, "2147483647", 2**31 - 1),
        (values.whole_number, "0", 0),
        (values.probability, "0", 0.0),
        (values.probability, "1", 1.0),
        (values.positive_number, "1e-8", 1e-8),
        (values.non_negative_number, "0", 0.0),
        (values.image_size, "96", 96),
        (values.image_size, "96x96", 96),
        (values.image_size, "96x128", (96, 128)),
        (values.image_size, "96X128", (96, 128)),
        (values.hidden_layer, "-2", -2),
        (values.hidden_layer, "layer4.1.bn2", "layer4.1.bn2"),
        (values.data_source, "fashion-mnist", "fashion-mnist"),
    ],
)
def test_accepted(convert, word, value):
    assert convert(word) == value
    assert type(convert(word)) is type(value)


@given(st.integers())
def test_positive_int_is_int_above_nought(number):
    if 0 < number < 2**31:
        assert values.positive_int(str(number)) == number
    else:
        with pytest.raises(argparse.ArgumentTypeError):
            values.positive_int(str(number))


@given(st.floats())
def test_probability_is_a_number_from_nought_to_one(number):
    if 0 <= number <= 1:
        assert values.probability(repr(number)) == number
    else:
        with pytest.raises(argparse.ArgumentTypeError):
            values.probability(repr(number))


def test_a_folder_of_folders_has_classes(tmp_path):
    for name in ("cats", "dogs", ".cache"):
        (tmp_path / name).mkdir()
    assert embed.has_labels(str(tmp_path))
    for name in ("README.txt", "._cats.png", ".hidden.png", "labels.csv"):
        (tmp_path / name).write_bytes(b"")
    assert embed.has_labels(str(tmp_path))
    (tmp_path / "stray.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"no labels are written, .* 'stray\.png' for one \(1 in all\)"):
        assert not embed.has_labels(str(tmp_path))
    assert not embed.has_labels("fashion-mnist")
    (tmp_path / "flat" / "run").mkdir(parents=True)
    (tmp_path / "flat" / "run" / "config.json").write_bytes(encode_config({}))
    assert not embed.has_labels(str(tmp_path / "flat"))


def test_folders_beside_pictures_are_not_looked_into(tmp_path, monkeypatch):
    (tmp_path / "cats").mkdir()
    for name in ("b.png", "a.PNG", "labels.npy", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(file_list, "_walk", None)
    assert values.first_level(str(tmp_path)) == (["cats"], ["a.PNG", "b.png"])


def test_the_folder_above_may_be_missing_too(tmp_path):
    assert values.new_path(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()


def _parser():
    parser = Parser("byol-jax try", "DATA", "Tries.")
    parser.add_argument("data", metavar="DATA", help="anything")
    parser.add_argument("--steps", type=values.positive_int, metavar="N", required=True)
    parser.add_argument("--layer", type=values.hidden_layer, metavar="L", default=-1)
    parser.add_argument("--fast", action="store_true")
    return parser


@pytest.mark.parametrize(
    "words",
    [
        ["here", "--steps", "3"],
        ["--steps=3", "here", "--fast"],
        ["--fast", "--steps", "3", "--layer", "-2", "here"],
        ["--steps", "3", "--layer=-2", "--", "--here"],
        ["--steps", "1", "a b", "--steps", "3"],
        ["--steps", "3", "-5"],
        ["--fast", "-5", "--steps", "3"],
    ],
)
def test_what_argparse_takes_is_taken(words):
    expected = argparse.ArgumentParser.parse_args(_parser(), words)
    assert _parser().read(words) == expected
    assert expected.steps == 3


@given(st.lists(st.sampled_from(["here", "--steps", "3", "-3", "--fast", "--fast=1", "--no", "--layer", "-2", "--"])))
def test_words_are_read_or_refused_and_nothing_else(words):
    problems = list(wrong_words(_parser(), words))
    if problems:
        with pytest.raises(ConfigurationError) as refused:
            _parser().read(words)
        assert str(refused.value) == f"{'; '.join(problems)}; see byol-jax try --help"
    else:
        options = _parser().read(words)
        assert options.steps == 3
        assert options.data in words


def test_the_words_of_options_are_those_of_the_library():
    """The command line has them a second time, so that its help loads neither Pillow, NumPy nor JAX."""
    assert tuple(fit.FITS) == common.FITS
    assert arrays.LAYOUTS == common.LAYOUTS
    assert reopen.READING == common.READING
