"""The benchmarks' arithmetic, and the harness as a whole on a tiny network. Nothing here judges a time."""

import doctest
import importlib
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
import torch
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from benchmarks import augmentation, compare, decoding, growth, listing, operators, pipeline, precision
from benchmarks.harness import photos
from benchmarks.harness.contenders import CONTENDERS, PEAKS, available, jax_step
from benchmarks.harness.coordinator import measure
from benchmarks.harness.flops import convolutions, counted_flops, step_flops, taps_inside, taps_with_padding
from benchmarks.harness.machine import describe
from benchmarks.harness.summary import Summary, order, ratio, summarise
from benchmarks.harness.table import workload_table
from benchmarks.harness.workloads import QUICK, WORKLOADS, Resnet, from_json
from benchmarks.step import main
from byol_jax import nets
from byol_jax.ops import conv
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
def test_step_is_jaxs_own_count_within_five_percent(monkeypatch):
    """jax counts element-wise work too, hence more.

    On small maps, where convolutions multiply patches, it counts the padding's zeros: with 160 pixels there are none.
    Winograd's form, which has other sums, is left out.
    """
    monkeypatch.setattr(conv, "suits_winograd", lambda *convolution: False)
    workload = replace(QUICK, batch_size=16, image_size=160)
    assert isinstance(workload.network, Resnet)
    step, state, images = jax_step(nets.resnet(workload.network.stages, block=workload.network.block), workload)
    cost = step.lower(state, images).cost_analysis()
    needed = step_flops(workload, taps_inside)
    assert cost is not None
    assert needed < cost["flops"] < 1.05 * needed


def test_what_torch_counts_is_the_closed_form_with_padding():
    """But for the stem's gradient for its input, which torch's count has."""
    (stem, *_), images = convolutions(QUICK), 2 * QUICK.batch_size
    more = 2 * taps_with_padding(stem.size, stem.kernel, stem.stride) ** 2 * stem.in_channels * stem.out_channels
    assert counted_flops(QUICK) == step_flops(QUICK, taps_with_padding) + images * more


@pytest.mark.parametrize("workload", [QUICK, *WORKLOADS.values()], ids=lambda workload: workload.name)
def test_a_workload_goes_to_its_process_and_back(workload):
    assert from_json(json.loads(json.dumps(asdict(workload)))) == workload


def test_only_resnets_are_run_in_their_native_form():
    assert available(["byol_jax", "traced"], WORKLOADS["resnet18"]) == ["byol_jax", "traced"]
    assert available(["byol_jax", "traced"], WORKLOADS["convnext_atto"]) == ["traced"]


@pytest.mark.parametrize(
    "name", ["listing", "operators", *(f"harness.{name}" for name in ("command", "flops", "machine", "summary"))]
)
def test_examples_in_docstrings(name):
    results = doctest.testmod(importlib.import_module(f"benchmarks.{name}"))
    assert results.attempted > 0
    assert results.failed == 0, "see the captured output"


def test_what_lies_beside_the_folders_is_run():
    files = [path for path in (ROOT / "benchmarks").glob("*.py") if path.name != "__init__.py"]
    assert {"step.py", "torch_modules.py"} <= {path.name for path in files}
    assert [path.name for path in files if 'if __name__ == "__main__":' not in path.read_text()] == []


def test_the_page_names_the_files_without_results():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    commands = " ".join(path.read_text() for path in (ROOT / "benchmarks" / "results").glob("*/command.txt"))
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__", "compare", "state_memory"}
    without = {name for name in files if not re.search(rf"benchmarks[./]{name}\b", commands)} - {"torch_modules"}
    said = re.search(r"There is none yet of (.*?);", page, re.DOTALL)
    assert without == set(re.findall(r"`(\w+)\.py`", said[1] if said else "")), "benchmarks/README.md, first lines"


def made_up(seconds, **more):
    return {
        "seconds": [seconds[:2], seconds[2:]],
        "build_seconds": 5.0,
        "first_step_seconds": 9.0,
        "phase_seconds": {"import": 2.0, "compile": 3.0},
        "peak_memory_bytes": 2**30,
        **more,
    }


def test_table_of_made_up_numbers():
    results = {
        "byol_jax": made_up([1.0, 2.0, 3.0]),
        "eager": made_up([2.0, 4.0, 6.0]),
        "peak jax": made_up([1.0, 0.5, 2.0], flops=100e9),
        "peak torch": made_up([4.0, 2.0, 8.0], flops=100e9),
    }
    table = workload_table("made up", results, {"inside": 100 * 10**9, "with_padding": 150 * 10**9})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    shown = [row[0] for row in rows[2:4]]
    assert shown == ["byol_jax", "byol-pytorch, eager"]
    ours = dict(zip(rows[0], rows[2], strict=True))
    assert [ours[name] for name in ("min s/step", "median", "IQR")] == ["1.0000", "2.0000", "1.0000"]
    assert (ours["to eager"], ours["to channels_last"], ours["to floor"]) == ("0.50 / 0.50", "-", "2.00")
    assert ours["peak memory MiB"] == "1,024"
    until = dict(zip(rows[4], rows[6], strict=True))
    assert [until[name] for name in ("imports", "trace", "compilation", "first step", "together")] == [
        *("2.00", "-", "3.00", "9.00", "14.00"),
    ]
    assert "0.5000 s at the 200 GFLOP/s of jax" in table
    assert "2.0000 s at the 50 GFLOP/s of torch" in table


def test_the_floor_of_a_network_without_a_closed_form():
    results = {"traced": made_up([1.0, 2.0]), "peak jax": made_up([1.0, 2.0], flops=100e9)}
    assert "50.00 GFLOP a step as torch counts them" in workload_table("made up", results, {"with_padding": 50 * 10**9})


def written(folder, **seconds):
    folder.mkdir()
    results = {name: made_up(own) for name, own in seconds.items()}
    (folder / "raw.json").write_text(json.dumps({"resnet18": {"title": "a net", "flops": {}, "results": results}}))
    return str(folder)


def test_two_results_are_compared(tmp_path, capsys):
    before = written(tmp_path / "before", traced=[2.0, 4.0, 6.0], eager=[1.0, 1.0, 1.0])
    after = written(tmp_path / "after", traced=[1.0, 3.0, 6.0])
    assert compare.main([before, after]) == 0
    *_, row = capsys.readouterr().out.strip().splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["resnet18", "byol_jax, traced torch module"]
    assert cells[2:7] == ["2.0000", "1.0000", "4.0000", "3.0000", "0.50 / 0.75"]


def test_what_cannot_be_compared_is_one_line(tmp_path, capsys):
    before, after = written(tmp_path / "before", traced=[1.0]), written(tmp_path / "after", eager=[1.0])
    for folders, reason in (([before, after], "no workload"), ([before, str(tmp_path)], "raw.json")):
        assert compare.main(folders) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line


PROGRAM = """
ENTRY %main {
  %fusion.1 = f32[2]{0} fusion(%a), kind=kLoop, metadata={op_name="jit(step)/jvp(net)/add" stack_frame_id=1}
  ROOT %convolution.7 = f32[2]{0} convolution(%a, %b), metadata={op_name="jit(step)/transpose(jvp(net))/conv"}
  %copy.2 = (f32[2]{0}, s32[]) copy(%fusion.1)
  %call.4 = f32[2]{0} call(%a), to_apply=%inner, metadata={op_name="jit(step)/jvp(net)/add"}
}
"""


def test_instructions_are_known_by_what_they_were_compiled_from():
    events = {"fusion.1": 3e6, "convolution.7": 5e6, "copy.2": 1e6, "call.4": 7e6, "new.1": 1e6}
    spent = operators.shares(events, operators.origins(PROGRAM))
    assert spent == {
        ("forward", "add", "fusion"): 3e6,
        ("backward", "conv", "convolution"): 5e6,
        ("other", "copy", "copy"): 1e6,
        ("other", "unknown", "new"): 1e6,
    }
    lines = operators.table(spent, 2, least=0.2).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells == [
        ["backward", "conv", "convolution", "2.50", "50.0%"],
        ["forward", "add", "fusion", "1.50", "30.0%"],
        ["", "everything else", "", "1.00", "20.0%"],
    ]


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
        (["--image-size", "0"], "a whole number above 0"),
        (["--module", "torchvision:resnet19"], "the nearest are resnet18"),
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
        assert 0 < sum(results[name]["phase_seconds"].values()) <= results[name]["build_seconds"]


def test_the_table_of_augmentations_counts_an_image_once_and_a_step_as_its_batches() -> None:
    results = {"byol_jax": {"seconds": [[0.5, 0.4]]}, "kornia": {"seconds": [[2.0], [1.0]]}}
    text = augmentation.table({"image_size": 32, "batch_size": 8, "sets": {"simclr": results}}, "2026-11-30")
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert " 80 " in lines["byol_jax"]  # 4 batches of 8 images in 0.4 s
    assert "2.50 / 3.33" in lines["kornia"]


def test_growth_is_told_by_exponents_and_drawn() -> None:
    def point(seconds, temporaries):
        return {"seconds": [[seconds]], "temporary_bytes": temporaries, "argument_bytes": 2**20}

    raw = {"batch": {"title": "images a step", "results": {"4": point(1.0, 2**24), "8": point(2.0, 2**26)}}}
    *_, last = growth.table(raw, "2026-11-30").splitlines()
    assert [cell.strip() for cell in last.split("|")[1:-1]] == [
        "8",
        "2.0000",
        "2.0000",
        "0.0000",
        "1.00",
        "64.0",
        "2.00",
        "1.0",
    ]
    drawn = ElementTree.fromstring(growth.plot(raw))
    assert [one.get("aria-label") for one in drawn.iter() if one.get("role")] == ["seconds a step", "temporaries, MiB"]


@pytest.mark.long
def test_the_benchmark_of_growth_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(growth.AXES, "image", growth.Axis("image", "side in pixels", (32, 40)))
    monkeypatch.setitem(growth.AXES, "devices", growth.Axis("devices", "simulated devices", (1, 2)))
    for axis in ("image", "devices"):
        assert growth.main(["--axis", axis, "--rounds", "1", "--chunk", "1", "--out", str(tmp_path / axis)]) == 0
        raw = json.loads((tmp_path / axis / "raw.json").read_text())[axis]["results"]
        assert (tmp_path / axis / "growth.svg").read_text().startswith("<svg")
    assert [result["devices"] for result in raw.values()] == [1, 2]
    capsys.readouterr()


def test_a_million_files_are_told_by_the_line_through_the_last_two_numbers() -> None:
    def found(opening, peak):
        def one(times, less):
            seconds, processor = {"opening": opening * times}, {"opening": opening * times / 2}
            return {"seconds": seconds, "processor": processor, "peak_bytes": (peak - less) * 2**20}

        return [one(3, 0), one(1, 5)]

    files = {
        "100000": {"first": found(5.0, 60), "second": found(1.0, 50), "kept_bytes": 5_000_000},
        "200000": {"first": found(9.0, 80), "second": found(1.5, 50), "kept_bytes": 11_000_000},
    }
    lines = listing.table({"empty": 40 * 2**20, "files": files}, "folder", "2026-11-30").splitlines()
    last = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "drawn on |" in line]
    assert last == [  # 9 s and 4 s for each 100,000 more; 40 MiB, and 20 MiB for each
        ["1,000,000, drawn on", "41.00 (20.50)", "200.0", "210"],
        ["1,000,000, drawn on", "5.50 (2.75)", "10.0", "10"],
    ]
    assert lines[-1] == "Kept beside the run: 55 bytes a file."


@pytest.mark.slow
@pytest.mark.parametrize("kind", listing.KINDS)
def test_the_benchmark_of_listing_runs(kind, tmp_path, capsys) -> None:
    words = ["--files", "7,201", "--kind", kind, "--image-size", "16", "--rounds", "1"]
    words += ["--out", str(tmp_path / "results")]
    assert listing.main(words) == 0
    raw = json.loads((tmp_path / "results" / "raw.json").read_text())
    assert [one["count"] for result in raw["files"].values() for one in result["first"] + result["second"]] == [
        7
    ] * 2 + [201] * 2
    assert all(result["first"][0]["peak_bytes"] > raw["empty"] > 0 for result in raw["files"].values())
    capsys.readouterr()


@pytest.mark.long
def test_the_benchmark_of_augmentations_runs(tmp_path, capsys) -> None:
    out = tmp_path / "results"
    words = ["--image-size", "20", "--batch-size", "2", "--rounds", "1", "--chunk", "1", "--set", "byol"]
    assert augmentation.main([*words, "--out", str(out)]) == 0
    assert (out / "table.md").read_text().startswith("# Augmentation")
    raw = json.loads((out / "raw.json").read_text())["sets"]["byol"]
    assert set(raw) == set(augmentation.CONTENDERS)
    assert all(len(result["seconds"]) == 1 for result in raw.values())
    capsys.readouterr()


@pytest.mark.long
def test_the_benchmark_of_the_pipeline_runs(capsys) -> None:
    words = ["--files", "4", "--batch-size", "2", "--image-size", "16", "--rounds", "1", "--json"]
    assert pipeline.main(words) == 0
    raw = json.loads(capsys.readouterr().out)["photos"]
    assert set(raw) == set(photos.available(pipeline.CONTENDERS, lightly=pipeline.LIGHTLY))


@pytest.mark.long
def test_the_benchmark_of_decoding_runs(capsys) -> None:
    words = ["--files", "4", "--batch-size", "2", "--image-size", "16", "--rounds", "1", "--json"]
    assert decoding.main(words) == 0
    raw = json.loads(capsys.readouterr().out)["photos"]
    assert set(raw) == set(photos.available(decoding.CONTENDERS, lightly=decoding.LIGHTLY))


def test_contenders_without_their_package_are_left_out(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for benchmark in (decoding, pipeline):
        found = photos.available(benchmark.CONTENDERS, lightly=benchmark.LIGHTLY)
        assert [name for name in benchmark.CONTENDERS if name not in found] == [benchmark.LIGHTLY]


def test_a_pass_over_files_has_whole_batches(capsys) -> None:
    for benchmark in (decoding, pipeline):
        assert benchmark.main(["--files", "10", "--batch-size", "4"]) == 2
        assert "--files 10: not a multiple of --batch-size 4" in capsys.readouterr().err


@pytest.mark.long
def test_precision_has_memory_and_time_of_every_way():
    fields = asdict(
        replace(precision.JOBS["resnet18"], network="small_cnn", hidden_layer=-2, image_size=16, batch_size=8)
    )
    fields |= {"projection_size": 8, "projection_hidden_size": 16}
    results = {}
    for name in precision.CONTENDERS:
        contender = precision.build(name, fields)
        contender.step()
        results[name] = contender.facts() | {"seconds": [[0.5, 0.25]]}
        assert math.isfinite(results[name]["loss"])
    text = precision.table({"small_cnn": {"title": "small_cnn", "results": results}}, "today")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == list(precision.CONTENDERS)
    assert text.count("0.2500") == 4
