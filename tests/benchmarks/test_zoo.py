"""The zoo's measurement finds what is wrong, its page is what was measured, and a fixed tenth of it is measured anew.

The whole zoo takes hours and isn't part of `make long`: `python -m benchmarks.torch_modules` measures it over several
sittings, and its rows are committed. What is always measured here, by `make long` and by `make tenth` alike, is the
tenth that `SAMPLE` names.
"""

import importlib.metadata
import json
import re
import warnings
from types import SimpleNamespace

import jax
import pytest
import torch
from torch import nn

from benchmarks import torch_modules
from benchmarks.torch_modules import RESULTS, code_hash, stored_figures, stored_rows, table
from benchmarks.zoo.measure import LIMIT, measure
from benchmarks.zoo.rows import ROWS, SAMPLE, TIMM, TORCHVISION, build, row_named
from byol_jax import ConfigurationError
from interop.trace.ops import table as operators

PAGE = torch_modules.ROOT / "docs" / "torch_modules.md"
LEAST = {"torchvision": 60, "timm": 80}
"""Rows that the page has at least; it grows by sittings."""
VERSIONS = {name: importlib.metadata.version(name) for name in torch_modules.PACKAGES}
ALWAYS_RUN = 3
"""Networks of the tenth that are run whatever is stored."""
KINDS = ("forward", "gradients", "buffers", "evaluation")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def sigmoid_weighted(gradient_too):
    """SiLU as it is, or with a gradient that is its sigmoid alone."""

    def silu(context, x):
        gate = jax.nn.sigmoid(x.array)
        return x._replace(array=x.array * (gate if gradient_too else jax.lax.stop_gradient(gate)))

    return silu


WRONG = {
    ("forward", "gradients", "evaluation"): {"aten.silu": operators.OPERATORS["aten.relu"]},
    ("gradients",): {"aten.silu": sigmoid_weighted(gradient_too=False)},
    (): {"aten.silu": sigmoid_weighted(gradient_too=True)},
}


@pytest.mark.slow
@pytest.mark.parametrize("kinds", WRONG)
def test_what_is_wrong_is_found_where_it_is(kinds: tuple[str, ...], monkeypatch) -> None:
    monkeypatch.setattr(operators, "OPERATORS", operators.OPERATORS | WRONG[kinds])
    result = measure(small(), image_size=5)
    assert result["outcome"] == ("differs" if kinds else "exact")
    assert {kind for kind in KINDS if result[kind] > 1e-3} == set(kinds)
    assert {kind for kind in KINDS if result[kind] < 1e-9} == set(KINDS) - set(kinds)
    assert result["parameters"] == 3 * 4 * 9 + 4 + 8
    assert result["zero_gradients"] == 1  # the convolution's bias, before a batch norm
    if "forward" in kinds:
        assert "first at 2" in result["reason"]


@pytest.mark.slow
def test_a_wrong_buffer_is_found(monkeypatch) -> None:
    name = "aten._native_batch_norm_legit_functional"
    norm = operators.OPERATORS[name]

    def forgetful(context, x, weight, bias, mean, *rest, **options):
        results = norm(context, x, weight, bias, mean, *rest, **options)
        return (*results[:3], mean, *results[4:])

    monkeypatch.setattr(operators, "OPERATORS", operators.OPERATORS | {name: forgetful})
    result = measure(small(), image_size=5)
    assert result["worst"]["buffers"] == "1.running_mean"
    assert {kind for kind in KINDS if result[kind] > 1e-3} == {"buffers", "evaluation"}


def test_an_unknown_operator_is_refused_by_name(monkeypatch) -> None:
    known = {name: operator for name, operator in operators.OPERATORS.items() if name != "aten.silu"}
    monkeypatch.setattr(operators, "OPERATORS", known)
    result = measure(small(), image_size=5)
    assert result["outcome"] == "refused"
    assert re.match(r"UnsupportedOpError: .*aten\.silu\.default \(in 2\)", result["reason"])


def test_rows_are_found_by_name() -> None:
    assert row_named("resnet18") == row_named("torchvision:resnet18")
    assert len({row.name for row in ROWS}) == len(ROWS) == len(TORCHVISION) + len(TIMM)
    assert len({row_named(name).name for name in SAMPLE}) == len(SAMPLE) >= len(ROWS) // 10
    with pytest.raises(ConfigurationError, match="expected one of"):
        row_named("densenet121")  # both libraries have it


def test_comments_and_docstrings_do_not_count_as_code(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch_modules, "ROOT", tmp_path)
    monkeypatch.setattr(torch_modules, "CODE", ("*.py",))
    file = tmp_path / "a.py"
    hashes = []
    for text in ('"""One."""\nx = 1\n', '"""Two."""\nx = 1  # said\n"""A constant."""\n', "x = 2\n"):
        file.write_text(text)
        hashes.append(torch_modules.code_hash())
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
def test_a_network_whose_program_is_known_is_not_run_again() -> None:
    program = measure(small(), image_size=8)["program"]
    assert measure(small(), image_size=8, known=program) == {"program": program}
    other = measure(nn.Sequential(*small(), nn.Tanh()), image_size=8, known=program)
    assert other["outcome"] == "exact"
    assert other["program"] != program


def stored(**changes):
    row = ROWS[0]
    kept = {"name": row.name, "size": row.size, "options": dict(row.options), "layer": row.layer, "program": "abc"}
    return kept | {"outcome": "exact", "code": "earlier", "verified": ["float64"], "versions": VERSIONS} | changes


@pytest.mark.parametrize(
    ("changes", "program", "runs_again"),
    [
        ({}, "abc", False),
        ({}, "abd", True),
        ({"versions": VERSIONS | {"jax": "0.1"}}, "abc", True),
        ({"verified": []}, "abc", True),
        ({"outcome": "failed"}, "abc", True),
    ],
)
def test_rows_are_kept_where_other_code_makes_the_same_program(tmp_path, monkeypatch, changes, program, runs_again):
    kept = stored(**changes)
    file = tmp_path / f"{kept['name'].replace(':', '-')}.json"
    file.write_text(json.dumps(kept))
    monkeypatch.setattr(torch_modules, "RESULTS", tmp_path)
    monkeypatch.setenv("BYOL_JAX_VERIFY_IN_FLOAT64_ALONE", "1")

    class Worker:
        def submit(self, function, row, known):
            new = {"program": program} | ({} if known == program else {"outcome": "exact", "new": True})
            return SimpleNamespace(result=lambda: new)

        def shutdown(self):
            pass

    monkeypatch.setattr(torch_modules, "_new_worker", lambda old: Worker())
    ((_, result),) = torch_modules._results([ROWS[0]], again=False)
    assert result["code"] == torch_modules.code_hash()
    assert ("new" in result) == runs_again
    if not runs_again:
        assert result == kept | {"code": result["code"]}


def test_the_page_is_made_from_the_rows() -> None:
    page = PAGE.read_text(encoding="utf-8")
    code = re.search(r"Code when this page was written: `(\w+)`", page)
    assert code is not None
    assert page == table(code[1]), "run python -m benchmarks.torch_modules --minutes 0"


def test_at_least_95_in_100_are_exact_and_the_others_refused_by_name() -> None:
    rows = stored_rows()
    assert {json.loads(file.read_text())["name"] for file in RESULTS.glob("*.json")} == {row["name"] for row in rows}
    for library, least in LEAST.items():
        assert sum(row["name"].startswith(f"{library}:") for row in rows) >= least
    exact = [row for row in rows if row["outcome"] == "exact"]
    assert len(exact) >= 0.95 * len(rows)
    assert all(row[kind] <= LIMIT for row in exact for kind in KINDS)
    # else little was compared: where over a third of the gradients are held to the floor, 1e-4 of the largest, all
    # agree so well that those of 1e-8 of the largest are right to 1e-6, too (BEiT's smallest: 4e-7, for a large head)
    assert all(3 * row["zero_gradients"] <= row["tensors"] or row["gradients"] <= 1e-10 for row in exact)
    others = [row for row in rows if row["outcome"] != "exact"]
    assert [row["name"] for row in others if row["outcome"] != "refused"] == []
    assert all(re.match(r"Unsupported(Op|Module)Error: .", row["reason"]) for row in others)


@pytest.mark.long
@pytest.mark.parametrize("name", SAMPLE)
def test_a_tenth_of_the_zoo_is_still_exact(name: str, figure) -> None:
    """The first few are run; of the others, that JAX makes the program whose figures are stored, else they are run."""
    row = row_named(name)
    stored = {} if name in SAMPLE[:ALWAYS_RUN] else stored_figures(row, code_hash())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm and torchvision warn of their own ways
        result = measure(build(row), image_size=row.size, layer=row.layer, known=stored.get("program", ""))
    assert (stored | result)["outcome"] == "exact", result
    if name == SAMPLE[0]:
        figure("zoo, the tenth", cases=len(SAMPLE), result=f"output, gradients and buffers within {LIMIT:.0e}")
