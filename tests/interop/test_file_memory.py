"""Reading or converting a file takes its arrays' memory and little more; writing takes none of their size.

Measured in a process of its own as the highest resident memory beyond what importing took (VmHWM of
/proc/self/status: `ru_maxrss` would begin at the parent's).
"""

import subprocess
import sys

import numpy as np
import pytest
from weight_samples import FORMATS

from interop import save_state_dict

SIDE = 2500
LAYERS = 8
"""200 MB of float32 in tensors of 25 MB."""

CHILD = """
import sys
import numpy as np
from interop.inspect.commands import convert_file
from interop.files import load_state_dict, save_state_dict

def highest():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))

what, source, target = sys.argv[1:]
save_state_dict(target, {"x": np.zeros(1)})  # imports
given = {f"layer{n}.weight": np.full((2500, 2500), n, np.float32) for n in range(8)} if what == "save" else {}
before = highest()
if what == "load":
    given = load_state_dict(source)
elif what == "convert":
    convert_file(source, target, overwrite=True)
else:
    save_state_dict(target, given)
print(highest() - before)
"""


def highest(*arguments):
    """Bytes beyond what importing took."""
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same arrays in every format, and in the ways of their own that formats have."""
    folder = tmp_path_factory.mktemp("large")
    arrays = {f"layer{n}.weight": np.full((SIDE, SIDE), n, np.float32) for n in range(LAYERS)}
    for ending in FORMATS:
        save_state_dict(folder / f"many{ending}", arrays)
    one = {"weight": np.full((LAYERS * SIDE, SIDE), 1, np.float32)}
    for ending in FORMATS:
        save_state_dict(folder / f"one{ending}", one)
    np.savez(folder / "fortran.npz", weight=np.asfortranarray(one["weight"]))
    (folder / "shards").mkdir()
    save_state_dict(folder / "shards" / "model.safetensors", arrays, max_shard_bytes=60 << 20)
    if ".pt" in FORMATS:
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save(tensors, folder / "old.pt", _use_new_zipfile_serialization=False)
    yield folder
    for path in folder.rglob("*.*"):
        path.unlink()


SIZE = SIDE * SIDE * LAYERS * 4
SPECIAL = ["fortran.npz", "shards/model.safetensors", *(["old.pt"] if ".pt" in FORMATS else [])]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"{kind}{ending}" for kind in ("many", "one") for ending in FORMATS), *SPECIAL])
def test_reading_takes_the_arrays_memory(name, files, tmp_path):
    assert 0.9 * SIZE < highest("load", files / name, tmp_path / "x.npz") < 1.3 * SIZE


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
def test_writing_takes_no_second_copy(ending, files, tmp_path):
    assert highest("save", "", tmp_path / f"x{ending}") < 0.3 * SIZE


@pytest.mark.long
@pytest.mark.parametrize(
    ("source", "ending"),
    [
        (source, ending)
        for source in FORMATS
        for ending in FORMATS
        if source != ending and ".safetensors" in (source, ending)
    ],
)
def test_converting_takes_the_arrays_memory(source, ending, files, tmp_path):
    assert highest("convert", files / f"many{source}", tmp_path / f"x{ending}") < 1.3 * SIZE


def test_of_a_checkpoint_only_the_weights_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"state_dict": {"x": torch.ones(3)}, "optimizer": {"state": {0: {"exp_avg": torch.ones(1000)}}}}
    torch.save(state, tmp_path / "x.ckpt")
    from interop.formats.torch_file import read_torch_zip

    asked = []

    class Counting:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def readinto(self, room):
            asked.append(len(room))
            return self.file.readinto(room)

    with open(tmp_path / "x.ckpt", "rb") as file:
        loaded, _ = read_torch_zip(Counting(file), where="x", size=10_000, limit=10_000)
    assert loaded["x"].tolist() == [1, 1, 1]
    assert asked == [12]
