"""`python -m interop`: what it prints, how it ends, and that it loads neither torch nor JAX."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from byol_learners import torch_learner
from deepmind_files import pickles
from weight_samples import FORMATS, assert_identical, small_state_dict

from byol_jax.errors import CheckpointFormatError
from interop import convert_file, load_state_dict, save_state_dict
from interop.__main__ import main
from interop.inspect.commands import inspect_file
from interop.weights.architectures import expected_shapes


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "interop", *map(str, arguments)], capture_output=True, text=True)


def test_convert_keeps_every_bit_whatever_the_formats(tmp_path):
    save_state_dict(tmp_path / "start.npz", small_state_dict())
    for source in FORMATS:
        convert_file(tmp_path / "start.npz", tmp_path / f"one{source}")
        for target in FORMATS:
            summary = convert_file(tmp_path / f"one{source}", tmp_path / f"two{target}", overwrite=True)
            assert_identical(load_state_dict(tmp_path / f"two{target}"), small_state_dict(), ordered=False)
            assert summary["tensors"] == 5
            assert summary["bytes"] == sum(array.nbytes for array in small_state_dict().values())


def test_an_existing_file_stays_without_overwrite(tmp_path):
    save_state_dict(tmp_path / "in.npz", small_state_dict())
    (tmp_path / "out.npz").write_bytes(b"precious")
    with pytest.raises(CheckpointFormatError, match="exists already; give another name or --overwrite"):
        convert_file(tmp_path / "in.npz", tmp_path / "out.npz")
    assert (tmp_path / "out.npz").read_bytes() == b"precious"
    assert main(["convert", str(tmp_path / "in.npz"), str(tmp_path / "out.npz"), "--overwrite"]) == 0
    assert_identical(load_state_dict(tmp_path / "out.npz"), small_state_dict())


def test_inspect_tells_what_is_inside(tmp_path):
    path = tmp_path / "net.safetensors"
    state_dict = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes("resnet18").items()}
    state_dict["fc.weight"][0, :3] = np.nan, np.inf, 4
    state_dict["bn1.running_var"][:] = -1
    state_dict["fc.bias"] = np.arange(1000, dtype=np.float32)
    save_state_dict(path, state_dict)
    inspection = inspect_file(path)
    assert inspection["kind"] == "torchvision resnet18"
    assert inspection["format"] == "safetensors"
    assert (inspection["tensors"], inspection["parameters"]) == (122, 11_689_512)
    assert inspection["problems"] == [
        "bn1.running_var: a variance below zero (-1)",
        "fc.weight: 1 NaN of 512000 values",
        "fc.weight: 1 infinite of 512000 values",
    ]
    leaf = next(leaf for leaf in inspection["leaves"] if leaf["name"] == "fc.bias")
    assert leaf["shape"] == [1000]
    assert (leaf["min"], leaf["mean"], leaf["max"]) == (0, 499.5, 999)
    assert leaf["std"] == pytest.approx(np.arange(1000).std(), rel=1e-15)


def test_inspect_prints_a_table_or_json(tmp_path, capsys):
    path = str(tmp_path / "x.npz")
    save_state_dict(path, small_state_dict() | {"none": np.zeros((0, 3)), "complex": np.ones(2, complex)})
    assert main(["inspect", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: unknown (npz)"
    assert lines[1].split() == ["name", "dtype", "shape", "min", "mean", "max", "std"]
    assert lines[4].split() == ["bn1.num_batches_tracked", "int64", "[]", "7", "7", "7", "0"]
    assert lines[-1] == "no problems"
    assert main(["inspect", path, "--json"]) == 0
    inspection = json.loads(capsys.readouterr().out)
    assert [leaf["name"] for leaf in inspection["leaves"]] == [*small_state_dict(), "none", "complex"]


def test_inspect_tells_whose_learner_it_is(tmp_path, capsys):
    path = str(tmp_path / "x.ckpt")
    learner = torch_learner("C").state_dict() | {"online_predictor.1.bias": torch.zeros(32, dtype=torch.float16)}
    state_dict = {f"module.learner.{name}": tensor for name, tensor in learner.items()}
    content = {"state_dict": state_dict, "epoch": 2, "global_step": 70, "optimizer_states": [{"state": {}}]}
    torch.save(content, path)
    inspection = inspect_file(path)
    assert inspection["kind"] == f"BYOL learner, {inspection['source']}"
    assert inspection["source"].startswith("byol-pytorch, layout C (0.6.0 to 0.8.2")
    assert (inspection["prefixes"], inspection["owner"], inspection["target"]) == (["module."], "learner.", True)
    first = {"name": "0", "kind": "linear", "in": 112, "out": 32, "bias": True}
    assert inspection["heads"]["projector"][0] == first
    assert [layer["kind"] for layer in inspection["heads"]["predictor"]] == ["linear", "batch norm", "linear"]
    assert inspection["container"]["step"] == 70
    assert inspection["container"]["optimiser"]
    (refused,) = inspection["would_not_convert"]
    assert (refused["name"], refused["verdict"]) == ("learner.online_predictor.1.bias", "refused")
    assert main(["inspect", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: {inspection['kind']} (torch)"
    for line in (
        "taken off the names: module.",
        "before all names: learner.",
        "projector: Linear 112 -> 32, batch norm 32, Linear 32 -> 16",
        "target network: present",
        "beside the weights: epoch, global_step, optimizer_states, step 70, epoch 2",
        "optimiser's state: present",
        "would not convert: refused, float16, where a learner has float32: byol-jax import FILE --layout NAME "
        "--dtype float32 converts: learner.online_predictor.1.bias",
    ):
        assert line in lines
    assert main(["inspect", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspection


def test_inspect_and_convert_read_deepminds_pickles(tmp_path, capsys):
    (tmp_path / "x.pkl").write_bytes(pickles()["tiny18/pretrain.pkl"])
    assert main(["inspect", str(tmp_path / "x.pkl")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("x.pkl: BYOL learner, DeepMind's pre-training (pickle)")
    assert "projector: Linear 8 -> 32, batch norm 32, Linear 32 -> 16 without bias" in lines
    assert any(line.startswith("architecture: ResNet with 1 + 1 + 1 + 1 basic blocks") for line in lines)
    assert any("padding SAME" in line for line in lines)
    one, other = inspect_file(tmp_path / "x.pkl"), tmp_path / "x.safetensors"
    assert convert_file(tmp_path / "x.pkl", other)["tensors"] == one["tensors"]
    two = inspect_file(other)
    for key in ("kind", "architecture", "heads", "target", "parameters", "values", "problems"):
        assert one[key] == two[key]
    for key in ("leaves", "would_not_convert"):  # safetensors has an order of its own
        assert sorted(one[key], key=lambda leaf: leaf["name"]) == sorted(two[key], key=lambda leaf: leaf["name"])
    assert one["parameters"] == sum(
        np.prod(leaf["shape"], dtype=int) for leaf in one["leaves"] if "_params/" in leaf["name"]
    )


@pytest.mark.parametrize(
    "content", [b"\x80\x02}q\x00.", b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", b"\x80\x04"]
)
def test_other_pickles_are_refused_and_leave_the_old_file(content, tmp_path, capsys):
    (tmp_path / "x.pkl").write_bytes(content)
    (tmp_path / "old.npz").write_bytes(b"precious")
    for arguments in (
        ["inspect", "x.pkl"],
        ["convert", "x.pkl", "old.npz", "--overwrite"],
        ["convert", "x.pkl", "y.npz"],
    ):
        words = [str(tmp_path / word) if "." in word else word for word in arguments]
        assert main(words) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.npz", "x.pkl"]
    assert (tmp_path / "old.npz").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "absent.npz"], "absent.npz: cannot be read: No such file"),
        (["inspect", "."], "is a folder"),
        (["convert", "absent.npz", "x.onnx"], "unknown ending"),
        (["convert", "absent.npz", "x.npz"], "cannot be read"),
        (["convert", "absent.npz"], "required: OUT"),
        (["convrt"], "invalid choice"),
        (["inspect", "x", "--jsn"], "unrecognized arguments: --jsn"),
        ([], "required: COMMAND"),
    ],
)
def test_what_goes_wrong_is_one_line_and_exit_code_2(arguments, words, capsys):
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    assert code == 2
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_help_has_usage_with_capitals(capsys):
    for arguments, usage in (
        (
            ["convert", "--help"],
            "usage: python -m interop convert [-h] [--overwrite] [--which-weights NAME] [--prefix PREFIX] IN OUT",
        ),
        (
            ["inspect", "--help"],
            "usage: python -m interop inspect [-h] [--which-weights NAME] [--prefix PREFIX] [--json] FILE",
        ),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        assert capsys.readouterr().out.partition("\n\n")[0].split() == usage.split()


def test_the_command_works_in_a_process_of_its_own(tmp_path):
    save_state_dict(tmp_path / "x.safetensors", small_state_dict())
    done = run("convert", tmp_path / "x.safetensors", tmp_path / "x.npz")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'x.npz'}: 5 tensors, 476 bytes, unknown\n"
    done = run("inspect", tmp_path / "absent")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"interop: {tmp_path / 'absent'}: cannot be read: No such file or directory\n"


def test_neither_torch_nor_jax_is_loaded(tmp_path):
    save_state_dict(tmp_path / "x.safetensors", small_state_dict())
    (tmp_path / "x.pkl").write_bytes(pickles()["tiny18/pretrain.pkl"])
    code = (
        "import sys; from interop.__main__ import main\n"
        f"assert main(['inspect', {str(tmp_path / 'x.safetensors')!r}]) == 0\n"
        f"assert main(['convert', {str(tmp_path / 'x.safetensors')!r}, {str(tmp_path / 'y.npz')!r}]) == 0\n"
        f"assert main(['inspect', {str(tmp_path / 'x.pkl')!r}]) == 0\n"
        f"assert main(['convert', {str(tmp_path / 'x.pkl')!r}, {str(tmp_path / 'z.safetensors')!r}]) == 0\n"
        "print([name for name in ('torch', 'jax', 'jaxlib', 'flax', 'optax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    save_state_dict(tmp_path / "x.npz", {f"layer{index}.weight": np.zeros(1) for index in range(3000)})
    command = f"{sys.executable} -m interop inspect {tmp_path / 'x.npz'} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
