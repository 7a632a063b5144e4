"""No command writes over what it reads, by whatever name, and `convert` says what it leaves behind."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import interop
from byol_jax.errors import CheckpointFormatError
from interop.__main__ import main as interop_main

WEIGHTS = {"fc.weight": np.ones((2, 3), np.float32)}
STEP = "run/checkpoints/00000001"


@pytest.fixture
def there(files):
    """The folder of `files`, with weights in several formats, a set of shards, and a run's checkpoint."""
    torch.save({"model": {"fc.weight": torch.ones(2, 3)}, "optimizer": {"state": {}}, "epoch": 90}, "c.pth")
    interop.save_state_dict("w.npz", WEIGHTS)
    interop.save_state_dict("w.safetensors", WEIGHTS)
    interop.save_state_dict("set.safetensors", WEIGHTS | {"fc.bias": np.ones(2, np.float32)}, max_shard_bytes=8)
    np.savez("images.npz", images=np.zeros((8, 16, 16, 3), np.uint8))
    os.makedirs(STEP)
    os.makedirs("run/network")
    interop.save_state_dict(f"{STEP}/arrays.safetensors", WEIGHTS)
    interop.save_state_dict("run/network/arrays.safetensors", WEIGHTS)
    np.savez(f"{STEP}/arrays.npz", a=np.zeros(1))
    return files


NETWORK = "embed --network small_cnn"
CALLS = {
    "convert": ("convert c.pth {out}", "c.pth", "IN"),
    "convert a shard": ("convert set.safetensors {out}", "set-00001-of-00002.safetensors", "IN"),
    "convert an index": ("convert set.safetensors.index.json {out}", "set-00002-of-00002.safetensors", "IN"),
    "import": ("import w.safetensors --out {out}", "w.safetensors", "FILE"),
    "embed's images": ("embed run --data images.npz --out {out}", "images.npz", "--data"),
    "embed's array": (f"{NETWORK} --data images.npy --out {{out}}", "images.npy", "--data"),
    "embed's weights": (f"{NETWORK} --init-from w.npz --data images.npy --out {{out}}", "w.npz", "--init-from"),
    "embed's run": ("embed run --data images.npz --out {out}", f"{STEP}/arrays.npz", "RUN"),
    "export's run": ("export run --out {out}", f"{STEP}/arrays.safetensors", "RUN"),
    "export's network": ("export run --out {out}", "run/network/arrays.safetensors", "RUN"),
    "preview's photos": ("preview photos --out {out}", "photos/one.png", "DATA"),
}
OTHER_NAMES = {
    "itself": lambda path: path,
    "another spelling": lambda path: f"photos/../{path}",
    "a link": lambda path: os.symlink(os.path.abspath(path), other_name(path)) or other_name(path),
    "a second name": lambda path: os.link(path, other_name(path)) or other_name(path),
}


def other_name(path):
    return f"other{os.path.splitext(path)[1]}"


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (case, name)
        for case, (_, _, option) in CALLS.items()
        for name in OTHER_NAMES
        if option not in ("RUN", "DATA") or name != "a second name"  # of a folder's files only the path is compared
    ],
)
def test_no_command_replaces_its_input(case, name, there, call):
    words, path, option = CALLS[case]
    out = OTHER_NAMES[name](path)
    before = content(there)
    answer = call(*words.format(out=out).split(), "--overwrite")
    assert (answer.code, answer.out) == (2, "")
    assert f"'{out}' is read as {option} and would be lost, give another name" in answer.complaint
    assert content(there) == before


def test_nor_does_a_folder_of_shards(there, call):
    os.mkdir("folder")
    interop.save_state_dict("folder/m.safetensors", WEIGHTS | {"fc.bias": np.ones(2, np.float32)}, max_shard_bytes=8)
    before = content(there)
    answer = call("import", "folder", "--out", "folder/m-00001-of-00002.safetensors", "--overwrite")
    assert (answer.code, "is read as FILE" in answer.complaint) == (2, True)
    assert content(there) == before


def test_nor_does_the_function_or_the_other_command_line(there, capsys):
    before = content(there)
    with pytest.raises(CheckpointFormatError, match="is the file that is read, and would be lost; give another name"):
        interop.convert_file("c.pth", there / "c.pth", overwrite=True)
    assert interop_main(["convert", "w.npz", "w.npz", "--overwrite"]) == 2
    assert "w.npz: is the file that is read" in capsys.readouterr().err
    assert content(there) == before


def test_nor_does_a_run_delete_what_it_starts_from(there, call):
    os.mkdir("run/exported")
    interop.save_state_dict("run/exported/encoder.safetensors", WEIGHTS)
    before = content(there)
    words = [
        "train",
        "images.npz",
        "--out",
        "run",
        "--network",
        "small_cnn",
        "--steps",
        "1",
        "--overwrite",
        "--init-from",
    ]
    for given in ("run/exported/encoder.safetensors", "run/exported/../exported/encoder.safetensors"):
        answer = call(*words, given)
        assert (answer.code, answer.out) == (2, "")
        assert (
            f"--init-from: '{given}' is part of what --overwrite deletes, copy it to another place" in answer.complaint
        )
    assert content(there) == before


def test_what_is_no_input_is_replaced(there, call):
    """Beside the input, and in the folder of images or of a run, as ever."""
    for out in ("w.npz", "photos/x.npz", "run/x.npz"):
        interop.save_state_dict(out, WEIGHTS)
        assert call("convert", "c.pth", out, "--overwrite").code == 0


def test_convert_says_what_it_leaves_behind(there, call, capsys):
    answer = call("convert", "c.pth", "d.safetensors")
    assert answer.out.splitlines()[1] == "left behind: optimizer, epoch"
    summary = json.loads(call("convert", "c.pth", "e.npz", "--json").out)
    assert summary["left_behind"] == ["optimizer", "epoch"]
    interop.save_state_dict("average.pt", {"n_averaged": np.ones(()), "module.fc.weight": np.ones(2)})
    assert interop_main(["convert", "average.pt", "f.npz"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "left behind: n_averaged"
    interop.save_state_dict("parts.npz", {"a.fc.weight": np.ones(2), "b.fc.weight": np.ones(2), "queue": np.ones(1)})
    assert call("convert", "parts.npz", "g.npz", "--prefix", "a").out.splitlines()[1] == (
        "left behind: b.fc.weight, queue"
    )
    assert len(call("convert", "w.npz", "h.pt").out.splitlines()) == 1


def test_text_about_a_file_goes_with_it(there, call):
    text = {"licence": "cc", "step": "7"}
    save_file(WEIGHTS, "m.safetensors", metadata=text)
    assert len(call("convert", "m.safetensors", "n.safetensors").out.splitlines()) == 1
    with safe_open("n.safetensors", "np") as file:
        assert file.metadata() == text
    assert call("convert", "m.safetensors", "n.npz").out.splitlines()[1] == "left behind: __metadata__"
    assert call("convert", "n.npz", "o.safetensors").code == 0
    with safe_open("o.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    index = {}
    for number, (name, shared) in enumerate((("fc.weight", "cc"), ("fc.bias", "cc"))):
        shard = f"s-0000{number + 1}-of-00002.safetensors"
        save_file({name: np.ones(2)}, shard, metadata={"licence": shared, "part": str(number)})
        index[name] = shard
    (there / "s.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert call("convert", "s.safetensors", "whole.safetensors").code == 0
    with safe_open("whole.safetensors", "np") as file:
        assert file.metadata() == {"licence": "cc"}
