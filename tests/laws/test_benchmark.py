"""The benchmarks' arithmetic, and the harness as a whole on a tiny network. Nothing here judges a time."""

import doctest
import importlib
import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
import torch
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from benchmarks.contenders import CONTENDERS, PEAKS
from benchmarks.coordinator import measure
from benchmarks.flops import convolutions, step_flops, taps_inside, taps_with_padding
from benchmarks.machine import describe
from benchmarks.step import main
from benchmarks.summary import Summary, order, ratio, summarise
from benchmarks.table import workload_table
from benchmarks.workloads import HIDDEN_LAYER, QUICK, WORKLOADS
from byol_jax import make_learner, nets
from tests.source_code import ROOT

FILES = ["command.txt", "machine.json", "raw.json", "table.md"]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 31])
def test_summary_is_numpys(count):
    seconds = np.random.default_rng(count).lognormal(size=count).tolist()
    first, median, third = np.percentile(seconds, [25, 50, 75])
    np.testing.assert_allclose(summarise(seconds), (min(seconds), median, third - first), rtol=1e-12)


def test_summary_of_nothing():
    with pytest.raises(ValueError, match="no steps"):
        summarise([])


def test_ratio_of_one_to_itself_and_there_and_back():
    a, b = Summary(0.5, 0.75, 0.1), Summary(1.0, 3.0, 0.1)
    assert ratio(a, a) == (1, 1)
    assert ratio(a, b) == (0.5, 0.25)
    assert np.prod([ratio(a, b), ratio(b, a)], axis=0).tolist() == [1, 1]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_everybody_has_every_place_once(count):
    names = [str(number) for number in range(count)]
    rounds = [order(names, turn) for turn in range(count)]
    assert all(sorted(one) == names for one in rounds)
    assert all(sorted(place) == names for place in zip(*rounds, strict=True))
    assert order(names, count) == names


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 33])
def test_taps_are_what_a_convolution_of_ones_adds_up(size, kernel, stride):
    row, longer, ones = (torch.ones(1, 1, length) for length in (size, size + 2 * (kernel // 2), kernel))
    inside = torch.nn.functional.conv1d(row, ones, stride=stride, padding=kernel // 2)
    padded = torch.nn.functional.conv1d(longer, ones, stride=stride)
    assert taps_inside(size, kernel, stride) == inside.sum()
    assert taps_with_padding(size, kernel, stride) == padded.sum()


@pytest.mark.parametrize(("name", "weights"), [("resnet18", ResNet18_Weights), ("resnet50", ResNet50_Weights)])
def test_forward_pass_is_torchvisions_figure(name, weights):
    """torchvision publishes 10⁹ multiply-adds at 224 px, padding and `fc` included, to three digits."""
    layers = list(convolutions(replace(WORKLOADS[name], image_size=224)))
    products = sum(taps_with_padding(c.size, c.kernel, c.stride) ** 2 * c.in_channels * c.out_channels for c in layers)
    with_fc = products + 1000 * layers[-1].out_channels
    assert with_fc / 1e9 == pytest.approx(weights.IMAGENET1K_V1.meta["_ops"], abs=6e-4)


@pytest.mark.slow
def test_step_is_jaxs_own_count_within_five_percent():
    """jax counts element-wise work too, hence more.

    On small maps, where convolutions multiply patches, it counts the padding's zeros: with 160 pixels there are none.
    """
    workload = replace(QUICK, batch_size=16, image_size=160)
    learner = make_learner(
        nets.resnet(workload.stages, block=workload.block),
        image_size=workload.image_size,
        hidden_layer=HIDDEN_LAYER,
        projection_size=workload.projection_size,
        projection_hidden_size=workload.projection_hidden_size,
        augment_fn=lambda key, image: image,
        optimizer=optax.adam(1e-3),
    )
    state = jax.eval_shape(learner.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((16, 160, 160, 3), "float32")
    cost = jax.jit(learner.step).lower(state, images).cost_analysis()
    needed = step_flops(workload, taps_inside)
    assert cost is not None
    assert needed < cost["flops"] < 1.05 * needed


@pytest.mark.parametrize("name", ["flops", "summary", "machine"])
def test_examples_in_docstrings(name):
    results = doctest.testmod(importlib.import_module(f"benchmarks.{name}"))
    assert results.attempted > 0
    assert results.failed == 0, "see the captured output"


def made_up(seconds, **more):
    return {
        "seconds": [seconds[:2], seconds[2:]],
        "build_seconds": 5.0,
        "first_step_seconds": 9.0,
        "peak_memory_bytes": 2**30,
        **more,
    }


def test_table_of_made_up_numbers():
    results = {
        "byol_jax": made_up([1.0, 2.0, 3.0], flops=120e9),
        "eager": made_up([2.0, 4.0, 6.0]),
        "peak jax": made_up([1.0, 0.5, 2.0], flops=100e9),
        "peak torch": made_up([4.0, 2.0, 8.0], flops=100e9),
    }
    table = workload_table("made up", results, {"inside": 100 * 10**9, "with_padding": 150 * 10**9})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    shown = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert list(shown) == ["byol_jax", "byol-pytorch, eager"]
    ours = shown["byol_jax"]
    assert [ours[name] for name in ("min s/step", "median", "IQR")] == ["1.0000", "2.0000", "1.0000"]
    assert (ours["to eager"], ours["to channels_last"], ours["to floor"]) == ("0.50 / 0.50", "-", "2.00")
    assert (ours["first step s"], ours["peak memory MiB"]) == ("9.00", "1,024")
    assert "0.5000 s at the 200 GFLOP/s of jax" in table
    assert "2.0000 s at the 50 GFLOP/s of torch" in table


def test_results_are_not_overwritten(tmp_path, monkeypatch, capsys):
    """Two runs of a day leave two folders; the measuring is made up."""
    answer = {"device": "cpu", "memory_kept": False, "flops": 1e9}
    monkeypatch.setattr("benchmarks.step.ROOT", tmp_path)
    monkeypatch.setattr(
        "benchmarks.step.measure", lambda _, names, **__: {name: made_up([1.0, 2.0], **answer) for name in names}
    )
    assert [main(["--workload", "resnet18", "--default-allocator", "--rounds", "5"]) for _ in range(2)] == [0, 0]
    first, second = sorted((tmp_path / "benchmarks" / "results").iterdir())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_step", first.name)
    assert second.name == f"{first.name}_2"
    assert sorted(path.name for path in second.iterdir()) == FILES
    command = (first / "command.txt").read_text()
    assert "--workload resnet18 --rounds 5 " in command
    assert command.endswith(" --default-allocator\n")
    assert "the system's default" in capsys.readouterr().out


def test_a_contender_that_fails_ends_the_run(capfd):
    said = []
    with pytest.raises(RuntimeError, match="the process of nobody ended with 1"):
        measure(QUICK, ["nobody"], rounds=1, chunk=1, threads=1, keep_memory=False, tell=said.append)
    assert "nobody" in said[0]
    assert "KeyError: 'nobody'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--contenders", "eager,byol_jacks"], "byol_jax is the nearest"),
        (["--rounds", "0"], "a whole number above 0"),
        (["--threads", "100000"], "cores"),
        (["--out", str(ROOT / "tests")], "something is there already"),
        (["--workload", "resnet51", "--fast"], "--fast is not an option"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(words, reason, capsys):
    assert main(["--quick", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert reason in err


def test_machine_names_no_host_and_no_folder(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/opt/somewhere/libtcmalloc.so")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/home/someone/dump --xla_cpu_x=1")
    machine = describe()
    assert machine["variables"]["LD_PRELOAD"] == "libtcmalloc.so"
    assert machine["variables"]["XLA_FLAGS"] == "--xla_dump_to=dump --xla_cpu_x=1"
    assert machine["packages"]["jax"] == jax.__version__
    assert not re.search(r"(^|[\s\"=:])/\w", json.dumps(machine))


def test_freed_memory_is_kept():
    """Where the function says so: the second block of 64 MiB is the first one again, without a page fault a page."""
    code = (
        "import resource\n"
        "from byol_jax.cli.allocator import keep_freed_memory\n"
        "print(keep_freed_memory())\n"
        "for _ in range(2):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    bytearray(2**26)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, _, faults = done.stdout.split()
    assert kept == str("glibc" in describe()["libc"])
    assert kept == "False" or int(faults) < 100  # 16384 pages otherwise


@pytest.mark.long(tenth=False)
def test_quick_run_writes_everything(tmp_path):
    out = tmp_path / "results"
    words = ["--quick", "--chunk", "2", "--threads", "1", "--out", str(out)]
    command = [sys.executable, str(ROOT / "benchmarks" / "step.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == FILES
    texts = {name: (out / name).read_text() for name in FILES}
    assert done.stdout == texts["table.md"]
    assert str(tmp_path) not in "".join(texts.values())
    assert texts["command.txt"].split()[:3] == ["python", "benchmarks/step.py", "--quick"]
    machine, raw = json.loads(texts["machine.json"]), json.loads(texts["raw.json"])
    assert machine["threads"] == 1
    assert machine["device"] == "cpu"
    results = raw["quick"]["results"]
    assert list(results) == [*CONTENDERS, *(f"peak {name}" for name in PEAKS)]
    for result in results.values():
        assert np.shape(result["seconds"]) == (2, 2)
        assert np.min(result["seconds"]) > 0
        assert result["peak_memory_bytes"] > 2**26
        assert result["memory_kept"] == ("glibc" in machine["libc"])
    for name in CONTENDERS:
        assert 0 < results[name]["loss"] < 8
        assert all(math.isfinite(results[name][f"{what}_seconds"]) for what in ("build", "first_step"))
    assert results["byol_jax"]["flops"] > raw["quick"]["flops"]["inside"]
