"""The table of jaxlib's known faults: which release has which, what `byol-jax env` warns of, and its page."""

import json

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from byol_jax.cli.main import main
from byol_jax.ops.known_faults import FAULTS, find_faults
from byol_jax.runs import environment
from tests.pages.compatibility import PAGE, page, table

UNIFORM, CHANNELS, AXES = (
    "product with a uniform constant",
    "product of three channels",
    "sum of a product of seven axes",
)


@pytest.mark.parametrize(
    ("release", "names"),
    [
        ("0.9.0.1", set()),
        ("0.9.1", {CHANNELS}),
        ("0.10.1", {CHANNELS}),
        ("0.10.2", {UNIFORM, CHANNELS, AXES}),
        ("0.11.0", {UNIFORM}),
        ("0.12.0.1", {UNIFORM}),
    ],
)
def test_a_release_has_the_faults_that_were_seen(release, names):
    assert {fault.name for fault in find_faults(release, "cpu")} == names
    assert find_faults(release, "tpu") == ()


def test_a_release_that_has_the_fault_of_three_channels_is_in_the_table():
    x = np.random.default_rng(0).standard_normal((32_769, 3)).astype(np.float32)
    found = jax.jit(lambda w, x: jnp.einsum("kd,nd->kn", w, x).max(0))(x[:2], x)
    right = np.allclose(found, (x[:2] @ x.T).max(0), atol=1e-3)
    assert right or CHANNELS in {fault.name for fault in find_faults(jaxlib.__version__, jax.default_backend())}


@pytest.mark.parametrize("words", [["env"], ["env", "--json"]])
def test_env_warns_of_each_fault_of_the_release_in_a_line(words, monkeypatch, capsys):
    version = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: "0.10.2" if name == "jaxlib" else version(name))
    assert main(words) == 0
    answer = capsys.readouterr()
    said = answer.err.splitlines()
    assert len(said) == len(FAULTS)
    assert all(line.startswith("byol-jax env: warning: jaxlib 0.10.2, ") for line in said)
    if "--json" in words:
        assert json.loads(answer.out)["packages"]["jaxlib"] == "0.10.2"


def test_env_is_silent_about_a_release_without_faults(monkeypatch, capsys):
    version = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: "0.9.0.1" if name == "jaxlib" else version(name))
    assert main(["env"]) == 0
    assert capsys.readouterr().err == ""


def test_the_page_has_the_table():
    text = PAGE.read_text(encoding="utf-8")
    assert table() in text
    assert page(text) == text, "python -m tests.pages.compatibility writes it anew"
